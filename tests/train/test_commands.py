"""`warpup train`, `sample` and `eval` on a model of one's own, and their one-line errors."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from tests.support.command import CONFIG, call, error
from warpup.train import commands, evaluate, load_model
from warpup.train.sample import SampleArguments, sampled_as

pytestmark = pytest.mark.usefixtures("one_thread")


def test_train_sample_eval(project, capsys):
    code, out, _ = call(capsys, "train", "run.toml", "--rlvr.lr", "0.001")
    assert code == 0
    assert out.startswith("trained 1-warmup 3 of 3 steps, 2-rlvr 2 of 2 steps: run/model ")
    assert "run/report.html" in out
    assert "RLVR: 2 steps" in (project / "run" / "report.html").read_text()
    log = [json.loads(line) for line in (project / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in log] == [
        *(("1-warmup", step) for step in range(4)),
        *(("2-rlvr", step) for step in range(3)),
    ]
    assert {line["lr"] for line in log if line["stage"] == "2-rlvr" and "lr" in line} == {0.001}  # the flag won
    assert log[3]["held_out_reward"] > 0

    code, out, _ = call(capsys, "sample", "run", "--prompt", "A says B knave . ?", "--n", 3, "--max-new-tokens", 5)
    assert code == 0
    assert out.count("A says B knave . ?\n  -> ") == 3
    code, out, _ = call(capsys, "sample", "run", "--data", "test.jsonl", "--n", 2, "--max-new-tokens", 5)
    assert out.count("  -> ") == 2
    thinks = ("sample", "run", "--prompt", "A <think>", "--n", 2, "--max-new-tokens", 5, "--thinking-budget")
    code, out, _ = call(capsys, *thinks, 0)
    assert out.count("  -> </think>") == 2
    code, out, _ = call(capsys, *thinks, '{"tokens": 0, "message": "wait"}')
    assert out.count("  -> wait </think>") == 2
    assert "--thinking-budget: 4 tokens of thinking and 1 that close it leave none" in error(capsys, *thinks, 4)

    code, out, told = call(capsys, "sample", "run", "--prompt", "A", "--n", 1)  # as it sampled in RLVR
    assert (code, told) == (0, "as the run has it: max_new_tokens 8\n")

    # The run's own held-out data and reward; the reward is code that the folder names, so it takes a word.
    text = error(capsys, "eval", "run", status=2)
    assert "train.json names the reward mine.py:score, code that would be run: give --trust" in text
    code, out, _ = call(capsys, "eval", "run", "--samples", 2, "--max-new-tokens", 8, "--json", "--trust")
    numbers = json.loads(out)
    assert (numbers["examples"], numbers["samples"]) == (4, 2)
    assert numbers["reward"] > 0
    assert numbers["avg"] is numbers["greedy"] is None  # JSON knows no NaN; what is right the reward does not say
    # As the run measured itself, unless told otherwise.
    code, out, told = call(capsys, "eval", "run", "--samples", 0, "--json", "--trust")
    assert told.startswith("as the run has it: data test.jsonl, reward mine.py:score, max_new_tokens 8, dtype auto\n")
    measured = [line["held_out_reward"] for line in log if "held_out_reward" in line]
    assert json.loads(out)["reward"] == pytest.approx(measured[-1])
    flags = ("--samples", 0, "--max-new-tokens", 2, "--limit", 1)
    code, out, told = call(capsys, "eval", "run", *flags, "--json", "--trust")
    assert told.startswith("as the run has it: data test.jsonl, reward mine.py:score, dtype auto\n")
    assert (json.loads(out)["length"], json.loads(out)["examples"]) == (2, 1)
    assert "--limit: expected at least 1, got 0" in error(capsys, "eval", "run", "--limit", 0, status=2)
    code, out, _ = call(capsys, "eval", "run", "--samples", 0, "--max-new-tokens", 2, "--trust")
    assert "nan" not in out
    assert out.splitlines()[-1].startswith("no accuracy: the reward gives a number alone")
    assert "--trust: it is about" in error(capsys, "eval", "run", "--trust", "--reward", "mine.py:score", status=2)
    code, out, _ = call(capsys, "eval", "start", "--data", "test.jsonl", "--samples", 1, "--max-new-tokens", 8)
    assert "reward" in out
    assert "-2" in out  # the verifier's: an untrained model has no format


@pytest.mark.parametrize(("given", "budget"), [("", 3), (None, None), (5, 5)])
def test_eval_takes_the_thinking_budget_of_the_run_unless_it_is_given(tmp_path, given, budget):
    held = {"data": "test.jsonl", "thinking_budget": 3}
    (tmp_path / "train.json").write_text(json.dumps({"held_out": held}))
    measured, _ = commands.measured_as(commands.EvalArguments(str(tmp_path), thinking_budget=given))
    assert measured.thinking_budget == budget


ANSWER = {"data": "a.jsonl", "max_new_tokens": 9, "stop": ["</answer>"], "thinking_budget": 3}
HELD_OUT = {"data": "b.jsonl", "max_new_tokens": 7, "stop": ["."], "thinking_budget": None}


@pytest.mark.parametrize(
    ("run", "given", "want"),
    [
        ({"rlvr": ANSWER, "held_out": HELD_OUT}, {}, (9, ("</answer>",), 3)),
        ({"rlvr": ANSWER | {"data": ""}, "held_out": HELD_OUT}, {}, (7, (".",), None)),  # a stage that is left out
        ({"rlvr": ANSWER, "stages": [ANSWER | {"max_new_tokens": 5}, {"data": "c.jsonl"}]}, {}, (5, ("</answer>",), 3)),
        ({"warmup": {"data": "c.jsonl"}, "held_out": {"data": ""}}, {}, (256, (), None)),
        ({"rlvr": ANSWER}, {"max_new_tokens": 2, "stop": ("x",), "thinking_budget": None}, (2, ("x",), None)),
        ({"rlvr": ANSWER}, {"chat": True}, (9, (), None)),  # turns end by themselves
    ],
)
def test_sample_takes_what_is_not_given_from_the_last_stage_that_samples(tmp_path, capsys, run, given, want):
    (tmp_path / "train.json").write_text(json.dumps({"held_out": {}} | run))
    held = sampled_as(SampleArguments(str(tmp_path), **given))
    assert (held.max_new_tokens, held.stop, held.thinking_budget) == want
    told = capsys.readouterr().err
    assert told.startswith("as the run has it: max_new_tokens") == (want[0] in (5, 7, 9)), told


def test_eval_in_another_precision_and_on_another_device(project, capsys, monkeypatch):
    seen = []

    def watched(model, tokenizer, *arguments, **options):
        seen.append((torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")))
        return evaluate(model, tokenizer, *arguments, **options)

    monkeypatch.setattr("warpup.train.evaluation.evaluate", watched)
    flags = ["--data", "test.jsonl", "--samples", 0, "--max-new-tokens", 4]
    for dtype in ("float32", "bfloat16"):
        assert call(capsys, "eval", "start", *flags, "--dtype", dtype)[0] == 0
    assert [on for on, _ in seen] == [False, True]
    assert seen[1][1] == torch.bfloat16
    assert "dtype: expected auto, float32 or bfloat16" in error(capsys, "eval", "start", *flags, "--dtype", "int8")
    assert "device: torch has no 'cpu:x' here" in error(capsys, "eval", "start", *flags, "--device", "cpu:x")


def test_eval_compares_decodings(project, capsys):
    names = ("s1", "cyclic:amplitude=4,period=6,phase=any")
    flags = ("--data", "test.jsonl", "--samples", 2, "--seeds", 2, "--max-new-tokens", 8, "--words", "wait,back")
    code, out, _ = call(capsys, "eval", "start", *flags, "--schedule", *names)
    assert code == 0
    assert all(name in out for name in ("plain", "s1", "cyclic:amplitude=4", "best beside plain"))
    rows = json.loads((project / "start" / "schedules.json").read_text())
    assert [row["decoding"] for row in rows] == ["plain", *names]
    assert all(row["length"][0] > 0 for row in rows)
    assert (project / "start" / "schedules.png").read_bytes().startswith(b"\x89PNG")

    code, out, _ = call(capsys, "eval", "start", *flags, "--schedule", "compare", "--json")
    compared = json.loads(out[out.index("[") :])
    assert (code, len(compared)) == (0, 12)  # plain, TIP, s1, nine waves
    assert "expected plain, cyclic" in error(capsys, "eval", "start", *flags, "--schedule", "zigzag")
    assert "expected --samples and --seeds" in error(
        capsys, "eval", "start", "--data", "test.jsonl", "--samples", 0, "--schedule", "plain", status=2
    )


def test_train_from_flags_and_yaml(project, capsys):
    (project / "run.yaml").write_text(
        "model: start\nout: other\nwarmup: {data: train.jsonl, steps: 1, betas: [0.8, 0.9]}\n"
    )
    assert call(capsys, "train", "run.yaml", "--seed", 3)[0] == 0
    config = json.loads((project / "other" / "config.json").read_text())
    [stage] = (project / "other").glob("*/stage.json")
    assert (config["seed"], json.loads(stage.read_text())["betas"]) == (3, [0.8, 0.9])
    flags = ["--model", "start", "--out", "third", "--warmup.data", "train.jsonl", "--warmup.steps", "1"]
    assert call(capsys, "train", *flags)[0] == 0
    assert load_model(project / "third" / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps = 3", "stepz = 3"), "run.toml: warmup: unknown key 'stepz': did you mean 'steps'?"),
        (("steps = 3", "learning_rate = 3"), "warmup: unknown key 'learning_rate': it is called 'lr' here"),
        (('model = "start"', 'model = "start"\nprompts = 3'), "run.toml: unknown key 'prompts': it stands in [rlvr]"),
        (("lr = 1e-2", 'lr = "1e-2"'), "warmup.lr: expected a number, got '1e-2'; a number stands without quotes"),
        (
            ('model = "start"', "model = start"),
            "run.toml: Invalid value (at line 2, column 9); a text stands in quotes",
        ),
        (("steps = 3", "steps = 'three'"), "run.toml: warmup.steps: expected a whole number, got 'three'"),
        (("steps = 3", "steps = 0"), "warmup.steps: expected more than 0, got 0"),
        (("samples = 4", "samples = 1"), "rlvr.samples: a group needs at least 2 completions, got 1"),
        (("[rlvr]", "[rlvrr]"), "run.toml: unknown key 'rlvrr': did you mean 'rlvr'?"),
        (("threads = 1", "threads = "), "run.toml: "),
        (('model = "start"', ""), "model: nothing given; set it in the config file or with --model"),
        (('model = "start"', 'model = "nowhere"'), "nowhere is not a saved model: it has no config.json"),
        (('data = "train.jsonl"', 'data = "nowhere.jsonl"'), "warmup.data: no file or directory nowhere.jsonl in /"),
        (('data = "train.jsonl"', 'data = ""'), "no stage has data"),
        (('[rlvr]\ndata = "train.jsonl"', "[rlvr]"), "but rlvr has no data and is left out; set rlvr.data"),
        (
            ('[held_out]\ndata = "test.jsonl"', "[held_out]"),
            "but held_out has no data and is left out; set held_out.da",
        ),
        (("points = 1", "points = 0"), "held_out.points: expected more than 0, got 0"),
        (("points = 1", "limit = 0"), "held_out.limit: expected at least 1, or none for all, got 0"),
        (("points = 1", "samples = -1"), "held_out.samples: expected at least 0, got -1"),
        (("threads = 1", "threads = 0"), "threads: expected at least 1, got 0"),
        (
            ("prompts = 2", 'words = "wait"'),
            "rlvr.words: got 'wait', but with schedule 'plain' no schedule acts on words",
        ),
        (
            ("prompts = 2", 'category = "level"'),
            "rlvr.category: got 'level', but the uniform sampler reads no category",
        ),
        (('"mine.py:score"\nsteps', '"mine.py:nothing"\nsteps'), "rlvr.reward: mine.py has no function nothing"),
        (("mine.py:score", "gone.py:score"), "held_out.reward: no file gone.py in /"),
        (('"mine.py:score"\nsteps', '"alone.py:score"\nsteps'), "reward alone.py:score: expected the parameters (com"),
        (('out = "run"', 'out = "start"'), "out: start holds a model; give a folder"),
        (("threads = 1", 'device = "meat"'), "device: torch has no 'meat' here: "),
        (("[warmup]", '[warmup]\nprompt = "question"'), "; set warmup.prompt to the name of yours"),
        (
            ("[rlvr]", '[rlvr]\nanswer = "a"'),
            'set rlvr.answer to the name of yours, or to "none" if the reward reads no',
        ),
    ],
)
def test_wrong_configs_end_in_one_line(project, capsys, change, message):
    (project / "alone.py").write_text("def score(completion):\n    return 1.0\n")
    (project / "run.toml").write_text(CONFIG.replace(*change))
    assert message in error(capsys, "train", "run.toml")
    assert not (project / "run" / "model").exists()


def test_what_is_not_there_is_named(project, capsys):
    assert "no config file nowhere.toml (`warpup init FOLDER`" in error(capsys, "train", "nowhere.toml")
    assert "give a config, as in `warpup train train.toml`" in error(capsys, "train", status=2)
    assert "--config: the config stands alone" in error(capsys, "train", "--config", "run.toml", status=2)
    assert "no folder gone/x in " in error(capsys, "sample", "gone/x", "--prompt", "A")
    assert "no folder nowhere" in error(capsys, "sample", "nowhere", "--prompt", "A")
    assert "no folder nowhere" in error(capsys, "eval", "nowhere")
    assert "--data: no file or directory gone.jsonl in /" in error(capsys, "eval", "start", "--data", "gone.jsonl")
    (project / "q.jsonl").write_text('{"question": "A"}')
    assert "['question']; give that column this name" in error(capsys, "eval", "start", "--data", "q.jsonl")
    assert "nothing to measure on: give --data" in error(capsys, "eval", "start", status=2)
    assert "no folder nowhere" in error(capsys, "report", "nowhere")


def test_a_run_that_learned_nothing_fails(project, capsys):
    """A constant reward teaches nothing, and asking again does not help."""
    (project / "mine.py").write_text("def score(completion, example):\n    return 1.0\n")
    for _ in range(2):
        said = error(capsys, "train", "run.toml")
        assert "nothing was learned: 2-rlvr 0 of 2 steps (skipped 2)" in said
        assert "delete run/2-rlvr" in said


def test_a_wrong_config_is_refused_before_torch_is_imported(project):
    """Which takes some six seconds."""
    code = (
        "import sys, json; from warpup.cli import main\n"
        "for flags in json.loads(sys.argv[1]):\n"
        "    print(main(['train', *flags]) in (1, 2), *({'torch', 'transformers'} & set(sys.modules)), flags)"
    )
    names = "lora.alpha=3 warmup.lr=-1 model=nowhere warmup.data=nowhere.jsonl warmup.objective=sft warmup.attempts=3"
    names += " rlvr.reward=mine.py:nothing rlvr.samples=1 rlvr.temperature=0 rlvr.loss=grop rlvr.advantage=rlo"
    names += " rlvr.baseline=man rlvr.kl=k9 rlvr.delta=3 rlvr.top-p=2 rlvr.environment=mine.py:Nothing rlvr.words=a"
    wrong = [["run.toml", f"--{flag}"] for flag in names.split()]
    for number, (kind, setting) in enumerate(
        {
            "sft": "steps = 1",
            "rlvr": 'loss = "grop"',
            "preference": 'loss = "dpoo"',
            "distill": 'divergence = "kl"',
            "step_reward": "separator = ''",
            "warmup": 'data = "nowhere.jsonl"',
        }.items()
    ):
        data = "" if "data" in setting else 'data = "train.jsonl"'
        text = f'model = "start"\nout = "run"\n[[stages]]\nkind = "{kind}"\n{data}\n{setting}\n'
        (project / f"{number}.toml").write_text(text)
        wrong.append([f"{number}.toml"])
    done = subprocess.run([sys.executable, "-c", code, json.dumps(wrong)], capture_output=True, text=True)
    assert done.stdout.splitlines() == [f"True {flags}" for flags in wrong], done.stderr


def test_another_runs_folder_and_a_broken_reward_end_in_one_line(project, capsys):
    assert call(capsys, "train", "run.toml")[0] == 0
    assert "run holds another run (seed: there 0, now 5)" in error(capsys, "train", "run.toml", "--seed", "5")
    (project / "mine.py").write_text("def score(completion, example):\n    raise ZeroDivisionError('oh')\n")
    text = error(capsys, "train", "run.toml", "--out", "new", "--held-out.data", "")
    assert "failed on all 8 completions of a step; first: ZeroDivisionError: oh" in text
    assert (project / "new" / "1-warmup" / "step-00000003" / "model.safetensors").exists()  # nothing trained is lost


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_saves_and_the_same_command_resumes(project):
    command = [sys.executable, "-m", "warpup", "train", "run.toml", "--warmup.steps", "400", "--held-out.data", ""]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = project / "run" / "metrics.jsonl"
    while run.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    text = run.communicate(timeout=60)[1]
    assert run.returncode == 130
    assert "stopped and saved at step" in text
    assert "the same command resumes it" in text
    assert "Traceback" not in text
    assert json.loads((project / "run" / "train.json").read_text())["warmup"]["steps"] == 400  # what eval reads
    [saved] = (project / "run" / "1-warmup").glob("step-*")
    assert int(saved.name[5:]) == metrics.read_text().count("\n")


def test_held_out_rewards_run_where_those_of_a_stage_do(project, capsys):
    """Several, in workers with a time limit; a wrong setting is told before the model is loaded."""
    (project / "mine.py").write_text(
        "import os\n\ndef score(completion, example):\n    return float(len(set(completion.split())))\n\n"
        f"def elsewhere(completion, example):\n    return 100.0 * (os.getpid() != {os.getpid()})\n"
    )
    old = 'data = "test.jsonl"\nreward = "mine.py:score"\n'
    new = old.replace('"mine.py:score"', '["mine.py:score", "mine.py:elsewhere"]') + "reward_timeout = 60\n"
    (project / "run.toml").write_text(CONFIG.replace(old, new + "reward_workers = 1\n"))
    assert call(capsys, "train", "run.toml")[0] == 0
    first = json.loads((project / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["held_out_reward"] > 100
    (project / "run.toml").write_text(CONFIG.replace(old, new).replace('model = "start"', 'model = "nowhere"'))
    assert "reward_timeout: a call of score in this process cannot be stopped" in error(capsys, "train", "run.toml")
