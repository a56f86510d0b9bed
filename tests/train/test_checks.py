"""What no setting of its kind can be is refused by name, whichever stage has it, before any work."""

import math

import pytest

from tests.support.tiny import EXAMPLES, rlvr, warmup
from warpup.train import Distill, HeldOut, Preference, StepReward, TrainError
from warpup.train.config import HeldOutConfig

STAGES = [
    rlvr(), warmup(), Preference(data=[{}]), StepReward(data=[{}]), Distill(data=[{}], teacher="large"),
]  # fmt: skip


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("betas", [(math.nan, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9,)], "two numbers from 0 to below 1"),
        ("weight_decay", [-1.0], "at least 0"),
        ("weight_decay", [math.nan, math.inf], "a finite number"),
        ("lr", [math.nan, math.inf], "a finite number"),
        ("clip", [math.nan, math.inf], "a finite number"),
        ("lr_schedule", ["", "sine"], "one of constant, cosine, linear, wsd"),
    ],
)
def test_what_no_optimizer_takes(stage, name, values, message):
    stage.check()
    for value in values:
        changed = type(stage)(**vars(stage) | {name: value})
        with pytest.raises(TrainError, match=rf"\.{name}: expected {message}"):
            changed.check()


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: type(stage).__name__)
def test_a_decay_that_nothing_reads_or_that_does_not_fit(stage):
    def check(**changed):
        type(stage)(**vars(stage) | changed).check()

    check(lr_schedule="wsd", steps=20, lr_warmup=10, lr_decay=0.5)
    with pytest.raises(TrainError, match=r'\.lr_decay: got 0.5, but only lr_schedule "wsd" reads it'):
        check(lr_decay=0.5)
    for share in (0.0, 1.5):
        with pytest.raises(TrainError, match=rf"\.lr_decay: expected a share of the steps, .* got {share}"):
            check(lr_schedule="wsd", lr_decay=share)
    with pytest.raises(TrainError, match=r"\.lr_decay: a rise of 11 steps and a decay of 10 do not fit into .*, 20;"):
        check(lr_schedule="wsd", steps=20, lr_warmup=11, lr_decay=0.5)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (rlvr(kl_coef=math.inf), "rlvr.kl_coef: expected a finite number, got inf"),
        (rlvr(correction="token"), "rlvr.correction: expected one of token_truncate, .*, got 'token'"),
        (rlvr(inner_epochs=2, clip_ratio=(math.nan, 0.2)), "rlvr.clip_ratio: expected two numbers of at least 0"),
        (rlvr(inner_epochs=2, clip_ratio=(-0.1, 0.2)), "rlvr.clip_ratio: expected two numbers of at least 0"),
        (warmup(objective="mle"), "warmup.objective: expected one of nll, dco, .*, got 'mle'"),
        (warmup(turns="first"), "warmup.turns: expected one of last, all, got 'first'"),
        (warmup(markers=("<learn>",)), "warmup.markers: expected two different texts"),
        (Preference(data=[{}], margin=math.nan), "preference.margin: expected a finite number, got nan"),
    ],
)
def test_words_and_numbers_that_no_setting_can_be(stage, message):
    with pytest.raises(TrainError, match=message):
        stage.check()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"samples": -1}, "held_out.samples: expected at least 0, got -1"),
        ({"max_new_tokens": 0}, "held_out.max_new_tokens: expected more than 0, got 0"),
        ({"points": 0}, "held_out.points: expected more than 0, got 0"),
        ({"stop_after": 0}, "held_out.stop_after: expected more than 0, got 0"),
    ],
)
def test_measurements_that_cannot_be(settings, said):
    with pytest.raises(TrainError, match=said):
        HeldOut(EXAMPLES, "warpup.data:verify", **settings)
    with pytest.raises(TrainError, match=said):
        HeldOutConfig(data="test.jsonl", **settings).check()
