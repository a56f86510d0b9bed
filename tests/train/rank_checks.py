"""What each of two processes does in test_ranks.py."""

import math
from pathlib import Path

import pytest

from tests.support.processes import become, run_checks
from tests.support.tiny import EXAMPLES, TOKENIZER, Killed, killer, llama, log_of, mixture, rlvr, same, warmup, weights
from warpup.train import Distill, Preference, Recipe, TrainError, checkpoint
from warpup.train.ranks import data_parallel, rank, share, size, totals
from warpup.train.run import HeldOut

PAIRS = [
    {"prompt": e["prompt"], "chosen": e["completion"], "rejected": " ".join(reversed(e["completion"].split()))}
    for e in EXAMPLES
]


def words(completion, example):
    return len(set(completion.split())) / 8


def recipes():
    """By name: what makes a model, and stages for it."""
    return {
        "warmup": (llama, lambda: [warmup(batch_size=5)]),
        "rlvr": (llama, lambda: [rlvr(lr=1e-4, inner_epochs=2, kl_coef=0.1, minibatches=2, top_p=0.9)]),
        "critic": (llama, lambda: [rlvr(steps=3, lr=1e-4, value_lr=1e-4, advantage="gae", entropy_quantile=0.5)]),
        "preference": (llama, lambda: [Preference(data=PAIRS, steps=4, batch_size=3, lr=1e-3, save_every=2)]),
        "distill": (
            llama,
            lambda: [Distill(data=EXAMPLES, teacher=llama(7), steps=4, batch_size=3, lr=1e-4, online=0.5,
                             max_new_tokens=6, save_every=2)],
        ),
        "mixture": (mixture, lambda: [warmup(batch_size=5, balance=0.1)]),
        "one row": (llama, lambda: [warmup(batch_size=1, packing=True)]),
    }  # fmt: skip


SAMPLED = ("rlvr", "critic", "distill")
HELD = HeldOut(EXAMPLES[:3], words, points=2, samples=2, max_new_tokens=6)


def trained(name, folder, report=None):
    """Of a gradient that is nearly 0, Adam makes a step of the rounding's sign: so in float64 or, where completions
    are sampled, which is done in float32, at a low rate."""
    make, stages = recipes()[name]
    model = make() if name in SAMPLED else make().double()
    options = {"held_out": HELD} if name == "rlvr" else {}
    options |= {"report": report} if report else {}
    Recipe(stages()).run(model, TOKENIZER, folder / name.replace(" ", "-"), **options)
    return weights(model)


def check_runs(folder):
    for name in recipes():
        trained(name, folder / "two")


def check_stopped(folder):
    """For one process to go on with."""
    with pytest.raises(Killed):
        trained("warmup", folder / "stopped", killer(4))


def check_resumed(folder):
    """Killed after its fourth step, a run of two ends with the bits of one that was not."""
    with pytest.raises(Killed):
        trained("rlvr", folder / "resumed", killer(4))
    model = llama()
    checkpoint.load_weights(model, folder / "two" / "rlvr" / "model")
    assert same(trained("rlvr", folder / "resumed"), weights(model))


def check_different_models(folder):
    with pytest.raises(TrainError, match=r"ranks . and . differ in model: give all processes the same"):
        Recipe([warmup()]).run(llama(seed=rank()), TOKENIZER, folder / "different")


def check_what_takes_one_process(folder):
    with pytest.raises(TrainError, match="advantage: tree is for one process; start it without torchrun"):
        Recipe([rlvr(advantage="tree", samples=4)]).run(llama(), TOKENIZER, folder / "alone")


def check_a_measurement_that_fails_on_one_is_left_out_on_all(folder):
    """The first rank alone calls the reward function; the second one must not wait for its scores."""
    calls, run = [], folder / "unmeasured"

    def breaking(completion, example):
        calls.append(completion)
        if len(calls) > 3:  # from the second measurement on
            raise ValueError("no reward")
        return 0.0

    held = HeldOut(EXAMPLES[:3], breaking, points=1, max_new_tokens=4)
    Recipe([warmup(steps=4)]).run(llama(), TOKENIZER, run, held_out=held)
    assert bool(calls) == (rank() == 0)
    assert_unmeasured(run, "failed on all 3 completions")


def check_nan_logits_on_one_rank_leave_a_measurement_out_on_all(folder):
    """The first rank must not wait for the second one's completions."""
    run, model, done = folder / "nan", llama(), []

    def breaking(module, arguments, output):
        if done and rank() == 1 and not module.training:  # from the second measurement on
            output.logits.fill_(math.nan)

    model.register_forward_hook(breaking)
    held = HeldOut(EXAMPLES[:3], words, points=1, max_new_tokens=4)
    report = lambda stage, step, *rest: done.append(step)  # noqa: E731
    Recipe([warmup(steps=4)]).run(model, TOKENIZER, run, report=report, held_out=held)
    assert_unmeasured(run, "the model's logits are NaN")


def assert_unmeasured(run, why):
    """The measurement after the fourth step, which was the last, has failed, and is counted in that step's numbers."""
    (event,) = [line for line in log_of(run) if "event" in line]
    assert (event["event"], event["step"]) == ("held_out_failures", 4)
    assert why in event["message"]
    last = log_of(run)[-1]
    assert (last["step"], last["held_out_failures"]) == (4, 1)
    assert "held_out_greedy" not in last


def check_shares(folder):
    assert size() == 2
    assert list(share(range(5))) == [[0, 1], [2, 3, 4]][rank()]
    assert list(share([7])) == [[], [7]][rank()]
    mine = {"loss": 1.0, "most": 2.0} if rank() else {"loss": 0.5, "most": 3.0, "own": 4.0}
    assert totals(mine, largest=["most"]) == {"loss": 1.5, "most": 3.0, "own": 4.0}


CHECKS = [name for name in globals() if name.startswith("check_")]


def main(number, world, port, folder, names):
    """Entry of a process."""
    run_checks({name: globals()[name] for name in names}, number, world, port, folder)


def one_raises(number, world, port, folder, names):
    """The second rank fails in its third step."""
    become(number, world, port)

    def report(stage, step, steps, numbers):
        if step == 3 and number == 1:
            raise ValueError("this one")

    try:
        with data_parallel():
            trained("warmup", Path(folder), report)
    except Exception as error:
        Path(folder, f"raised.{number}").write_text(f"{type(error).__name__}: {error}")
        raise
