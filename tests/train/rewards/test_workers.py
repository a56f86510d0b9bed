"""Several rewards with weights; rewards that are slow, hang or die; where a reward's name is looked for."""

import asyncio
import math
import os
import subprocess
import sys
import time

import pytest
import torch

from warpup.advantage import gdpo
from warpup.data import verify
from warpup.train import TrainError
from warpup.train.rewards.calls import Completion
from warpup.train.rewards.loading import load_reward
from warpup.train.rewards.reward_set import RewardSet

pytestmark = pytest.mark.usefixtures("one_thread")


def say(*texts):
    return [Completion(text, text, list(range(len(text.split()))), True) for text in texts]


def length(completion, example):
    return len(completion)


def picky(completion, example):
    return {"none": None, "bad": math.nan}.get(completion, 1.0)


def both_tokens(completions):
    return [[1.0] * len(text.split()) for text in completions]


def test_several_rewards_are_summed_with_their_weights():
    scores = RewardSet([length, picky], [2.0, 0.5]).score(say("abc", "none", "bad"), [{}] * 3)
    assert scores.rewards[:2] == [6.5, 8.0]  # who abstains adds nothing
    assert math.isnan(scores.rewards[2])  # who fails leaves no sum that could be compared
    assert scores.columns["length"] == [3.0, 4.0, 3.0]
    assert scores.columns["picky"][0] == 1.0
    assert scores.errors == ["picky: reward is nan"]
    assert scores.abstained == 1
    table = torch.tensor(scores.table(), dtype=torch.float64)
    assert table.isnan().tolist() == [[False, False], [False, True], [True, True]]
    assert gdpo(table, 3, weights=torch.tensor([2.0, 0.5])).isfinite().all()


def test_rewards_of_tokens_and_of_completions_together():
    scores = RewardSet([length, both_tokens], [1.0, 10.0]).score(say("a b", "c"), [{}] * 2, group=2)
    assert scores.token_rewards == [[10.0, 13.0], [11.0]]
    assert scores.rewards == [23.0, 11.0]


def test_the_first_verdict_that_tells_counts():
    scores = RewardSet([length, verify]).score(
        say("<think></think><answer>A knight</answer>"), [{"answer": "A knight"}]
    )
    assert scores.correct == [1.0]
    assert scores.format_ok == [1.0]


def test_names_of_columns_are_told_apart():
    assert RewardSet(["warpup.data:verify", length]).names == ["verify", "length"]
    both = ["warpup.data:verify", "warpup.data.verify:verify"]
    assert RewardSet(both).names == both
    assert RewardSet([length, length]).names == [f"{__name__}:length 1", f"{__name__}:length 2"]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([],), {}, "reward: expected at least one"),
        (([length, picky], [1.0]), {}, r"reward_weights: expected 2 finite numbers.*got \[1.0\]"),
        (([length], [math.inf]), {}, "reward_weights"),
        ((length,), {"timeout": 0}, "reward_timeout: expected more than 0 seconds, got 0"),
        ((length,), {"timeout": 1.0}, "reward_timeout: a call of length in this process cannot be stopped; set"),
        ((length,), {"workers": -1}, "reward_workers: expected at least 0, got -1"),
        ((lambda c, e: 1.0,), {"workers": 1}, "reward_workers: .*lambda.* cannot be sent .*file.py:function"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(arguments, options, message):
    with pytest.raises(TrainError, match=message):
        RewardSet(*arguments, **options)


def test_an_async_reward_is_awaited_for_all_at_once():
    seen = []

    async def slow(completion, example, *, length):
        loop = asyncio.get_running_loop()
        seen.append(loop)
        barrier = example["barrier"]
        barrier.append(completion)
        while len(barrier) < 8:  # passes only if all eight run together
            await asyncio.sleep(0.001)
        return length

    rewards = RewardSet(slow)
    assert rewards.score(say(*["a b"] * 8), [{"barrier": barrier} for barrier in [[]] * 8]).rewards == [2.0] * 8
    rewards.score(say(*["a"] * 8), [{"barrier": barrier} for barrier in [[]] * 8])
    assert len(set(map(id, seen))) == 1  # one loop, so that a client can stay open

    async def stuck(completion, example):
        await asyncio.sleep(0 if completion == "quick" else 60)
        return 1.0

    scores = RewardSet(stuck, timeout=1.0).score(say("quick", "never"), [{}] * 2)
    assert scores.rewards[0] == 1.0
    assert scores.errors == ["TimeoutError: no answer within 1.0 s"]

    async def ranks(completions):
        return list(range(len(completions)))

    assert RewardSet(ranks).score(say("a", "b", "c"), [{}] * 3, group=3).rewards == [0.0, 1.0, 2.0]


HARD = """
import dataclasses, os, signal, subprocess, time
from pathlib import Path
import neighbour

@dataclasses.dataclass
class Verdict:
    reward: float
    correct: bool

def hard(completion, example):
    if completion == "hang":
        Path(example["child"]).write_text(str(subprocess.Popen(["sleep", "600"]).pid))
        while True: pass
    if completion == "die": os.kill(os.getpid(), signal.SIGKILL)
    if completion == "raise": raise KeyError(completion)
    if completion == "pid": return os.getpid()
    return Verdict(neighbour.VALUE, True)

def group(completions, lengths): return [[1.0] * n for n in lengths]
"""


@pytest.fixture
def hard(tmp_path):
    (tmp_path / "hard.py").write_text(HARD)
    (tmp_path / "neighbour.py").write_text("VALUE = 7.0\n")
    return f"{tmp_path / 'hard.py'}:"


def gone(pid):
    """Whether a process has ended (a zombie that nobody waited for has)."""
    for _ in range(100):
        try:
            with open(f"/proc/{pid}/stat") as stat:
                if stat.read().rpartition(")")[2].split()[0] == "Z":
                    return True
        except FileNotFoundError:
            return True
        time.sleep(0.05)
    return False


def test_workers_stop_what_hangs_and_outlive_what_dies(hard, tmp_path):
    rewards = RewardSet([hard + "hard", hard + "group"], [1.0, 0.0], timeout=60.0, workers=2)
    rewards.score(say("go"), [{}])  # the workers' start is not part of a call's time
    rewards.timeout = 3.0
    rows = [{"child": str(tmp_path / "pid")}] * 5
    scores = rewards.score(say("right", "hang", "die", "raise", "right"), rows)
    assert scores.columns["hard"][0] == scores.columns["hard"][4] == 7.0
    assert scores.correct[0] == 1.0
    assert scores.errors == [
        "hard: TimeoutError: no answer within 3.0 s, the worker was stopped",
        "hard: ChildProcessError: the worker process died, exit status -9",
        "hard: KeyError: 'raise'",
    ]
    assert gone(int((tmp_path / "pid").read_text()))  # with all that it had started
    again = rewards.score(say("right"), rows[:1])
    assert again.rewards == [7.0]
    assert again.token_rewards == [[7.0]]
    pid = int(RewardSet(hard + "hard", workers=1).score(say("pid"), [{}]).rewards[0])
    assert pid != os.getpid()
    assert gone(pid)  # with the set that it belonged to
    assert RewardSet(length, workers=1).score(say("ab"), [{}]).rewards == [2.0]  # a function of a module
    unsent = RewardSet(length, workers=1).score(say("a", "b"), [{"f": lambda: 0}, {}])
    assert unsent.rewards[1] == 1.0
    assert "pickle" in unsent.errors[0].lower()


def test_workers_end_with_a_killed_parent(hard, tmp_path):
    script = tmp_path / "script.py"  # without the guard that multiprocessing needs
    script.write_text(
        "from warpup.train.rewards.calls import Completion\nfrom warpup.train.rewards.reward_set import RewardSet\n"
        f"rewards = RewardSet({hard + 'hard'!r}, workers=1)\n"
        "print(int(rewards.score([Completion('pid', '', [1], True)], [{}]).rewards[0]), flush=True)\n"
        f"rewards.score([Completion('hang', '', [1], True)], [{{'child': {str(tmp_path / 'pid')!r}}}])\n"
    )
    with subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        while not (tmp_path / "pid").exists():
            time.sleep(0.02)
        parent.kill()
    assert gone(worker)


def test_a_function_of_the_script_itself_says_what_to_do(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from warpup.train.rewards.reward_set import RewardSet\ndef mine(completion, example): return 1.0\n"
        "RewardSet(mine, workers=1)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert "reward_workers: __main__:mine cannot be sent" in done.stderr
    assert "name it `file.py:function`" in done.stderr


def test_where_a_name_is_looked_for(tmp_path, monkeypatch):
    (tmp_path / "neighbour.py").write_text("VALUE = 3.0\n")
    (tmp_path / "json.py").write_text("raise RuntimeError('Python's own json is meant')\n")
    (tmp_path / "math.py").write_text(
        "import dataclasses, json\nimport neighbour\n\n@dataclasses.dataclass\nclass V:\n    reward: 'float'\n\n"
        "def f(completion, example):\n    import late\n    return V(neighbour.VALUE + late.VALUE)\n"
    )
    (tmp_path / "late.py").write_text("VALUE = 0.5\n")
    (tmp_path / "colorsys.py").write_text("VALUE = 6.0\n")  # Python has one too, which nothing has imported yet
    (tmp_path / "colors.py").write_text("import colorsys\n\ndef f(completion, example):\n    return colorsys.VALUE\n")
    (tmp_path / "here.py").write_text("COUNT = []\n\ndef f(completion, example):\n    return 4.0\n")
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "inner.py").write_text(
        "from . import part\n\ndef f(completion, example):\n    return 5.0\n"
    )
    (tmp_path / "package" / "part.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])

    def value(name):
        return RewardSet(name).score(say("a"), [{}]).rewards

    assert value(f"{tmp_path / 'math.py'}:f") == [3.5]
    assert math.sqrt(4) == 2  # and Python's own is still there
    assert value("here:f") == value("here.py:f") == [4.0]
    assert value("package.inner:f") == [5.0]
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert value("colors.py:f") == [6.0]  # a neighbour comes first, as with `python colors.py`
    monkeypatch.delitem(sys.modules, "colorsys")
    assert load_reward("here.py:f") is load_reward("here.py:f")  # a file that loads a model loads it once
    (tmp_path / "here.py").write_text("def f(completion, example):\n    return 44.0\n")
    assert value("here.py:f") == [44.0]
    for name, message in [
        ("package/inner.py:f", r"relative import.*`package.inner:function`"),
        ("nothing_such:f", r"ModuleNotFoundError.*no such module is installed or in .*`nothing_such.py:function`"),
        ("here.py:g", "here.py has no function g, it has f"),
        ("warpup.rewards:dificulty", "warpup.rewards has no function dificulty, it has difficulty$"),
        (
            "warpup.rewards:overlong(maximum=3)",
            r"unexpected keyword argument 'maximum'; it is overlong\(completion, example, \*, .*max_length",
        ),
        ("math.py:V", "is a class; name a function"),
        ("here.py", "expected `module:function`"),
    ]:
        with pytest.raises(TrainError, match=message):
            load_reward(name)
