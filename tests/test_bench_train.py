"""The trainer's benchmark: its clock counts each second once, its figures are the right medians, its candidates run."""

import time

import pytest

from bench.train import candidates, trainer
from bench.train.candidates import Work
from bench.train.meter import KINDS, Clock
from tests.support.models import pretrained
from tests.support.tiny import llama
from warpup.data import word_tokenizer


def test_a_clock_takes_inner_work_off_the_outer(monkeypatch):
    now = iter([0.0, 1.0, 3.0, 3.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    clock = Clock()
    inner = clock.timed("forward", lambda x: x + 1)  # from 1.0 to 3.0
    outer = clock.timed("backward", lambda x: inner(x) * 2)  # from 0.0 to 3.5
    assert outer(1) == 4
    assert clock.seconds == {"forward": 2.0, "backward": 1.5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--models", "nowhere"], "--models: nowhere/smollm2 is no model; `warpup fetch` makes it"),
        (["--models", ".", "-k", "ppo"], "-k: 'ppo' is in none of "),
    ],
)
def test_wrong_calls_say_what_is_wrong(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("sys.argv", ["trainer", *arguments])
    with pytest.raises(SystemExit, match="2"):
        trainer.main()
    assert message in capsys.readouterr().err


def test_figures_are_medians_over_all_rounds(monkeypatch):
    def found(name, work):
        if name == "broken":
            return "MemoryError"
        factor = 1 if name == "ours" else 3
        work = dict.fromkeys(KINDS, 0.0) | {"forward": 1.0 * factor, "backward": 0.5 * factor}
        steps = [{"seconds": s * factor, "sampling": 0.5 * factor, "tokens": 10, **work} for s in (2.0, 2.0, 9.0)]
        return {"steps": steps, "peak": 1000 * factor, "weights": 100}

    monkeypatch.setattr(trainer, "run", found)
    case = trainer.Comparison("case", "model", {}, ("ours", "theirs", "broken"))
    result = trainer.measure(case, Work("model"), rounds=2)
    ours, theirs, broken = result["rows"]
    assert (ours["median_us"], ours["update_us"], ours["tokens_per_second"], ours["rounds"]) == (2e6, 1.5e6, 5.0, 6)
    assert ours["beyond_bytes"] == 1000 - 300  # weights and the optimizer's two moments
    assert (theirs["ratio"], theirs["peak_ratio"], theirs["beyond_ratio"]) == (3.0, 3.0, 2700 / 700)
    assert ours["shares"] == {"forward": 0.5, "head": 0.0, "backward": 0.25, "optimizer": 0.0, "rest": 0.25}
    assert (broken["failure"], broken["ratio"]) == ("MemoryError", None)
    trainer.show(result)


CANDIDATES = [name for name in candidates.CANDIDATES if "_trl" not in name]


@pytest.mark.parametrize("name", CANDIDATES)
def test_candidates_run_on_a_tiny_model(name, tmp_path):
    # Among 3,000 words the end token, the last of them, is one that a model from nothing does not write.
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([f"w{n}" for n in range(3000)])
    llama(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    result = trainer.run(name, Work(str(tmp_path), **trainer.QUICK))
    assert isinstance(result, dict), result
    assert [sorted(step) for step in result["steps"]] == [sorted([*KINDS, "sampling", "seconds", "tokens"])]


@pytest.mark.parametrize("name", CANDIDATES)
def test_candidates_run(name):
    result = trainer.run(name, Work(str(pretrained("smollm2")), **trainer.QUICK))
    assert isinstance(result, dict), result
    [step] = result["steps"]
    assert 0 < step["forward"] < step["seconds"]
    assert (step["backward"] > 0) == ("rollout" not in name)
    assert result["weights"] == pytest.approx(4 * 134.5e6, rel=0.01)
    assert result["weights"] < result["peak"] < 20e9
