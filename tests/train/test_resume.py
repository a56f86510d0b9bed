"""A run that was killed, interrupted or broken goes on bit for bit where it was."""

import os
import signal

import pytest
import torch

from tests.support.tiny import (
    EXAMPLES,
    TOKENIZER,
    Killed,
    killer,
    length_reward,
    llama,
    rlvr,
    same,
    steps_of,
    warmup,
    weights,
)
from warpup.data import verify
from warpup.train import HeldOut, Interrupted, Recipe, TrainError
from warpup.train import checkpoint as checkpoints

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    ("stage", "at"),
    [(warmup(), 5), (rlvr(), 3), (rlvr(inner_epochs=2, kl_coef=0.1, sampler="sec", category="answer"), 5)],
)
def test_killed_and_resumed_equals_uninterrupted(stage, at, tmp_path):
    whole, halved = llama(), llama()
    Recipe([stage]).run(whole, TOKENIZER, tmp_path / "whole", seed=7)
    with pytest.raises(Killed):
        Recipe([stage]).run(halved, TOKENIZER, tmp_path / "halved", seed=7, report=killer(at))
    torch.rand(5)  # whatever else the process drew
    halved = llama()
    Recipe([stage]).run(halved, TOKENIZER, tmp_path / "halved", seed=7)
    assert same(weights(whole), weights(halved))
    assert steps_of(tmp_path / "whole", "loss") == steps_of(tmp_path / "halved", "loss")  # every step once, same value
    assert len(steps_of(tmp_path / "halved", "loss")) == stage.steps


def test_killed_between_stages_starts_the_second_from_the_first(tmp_path):
    whole, halved = llama(), llama()
    recipe = Recipe([warmup(), rlvr(kl_coef=0.1)])  # KL to the warmed model, not to the resumed one
    recipe.run(whole, TOKENIZER, tmp_path / "whole")
    for at in (8, 5):
        with pytest.raises(Killed):
            recipe.run(llama(), TOKENIZER, tmp_path / "halved", report=killer(at))
    recipe.run(halved, TOKENIZER, tmp_path / "halved")
    assert same(weights(whole), weights(halved))


def test_a_finished_run_is_only_loaded(tmp_path):
    model, again = llama(), llama()
    Recipe([warmup()]).run(model, TOKENIZER, tmp_path)
    Recipe([warmup()]).run(again, TOKENIZER, tmp_path, report=killer(1))
    assert same(weights(model), weights(again))
    assert not same(weights(model), weights(llama()))


def test_a_half_written_checkpoint_is_not_used(tmp_path):
    with pytest.raises(Killed):
        Recipe([warmup()]).run(llama(), TOKENIZER, tmp_path, report=killer(5))
    (tmp_path / "1-warmup" / ".step-00000006.partial").mkdir()
    (tmp_path / "1-warmup" / "step-00000007").mkdir()
    assert checkpoints.latest(tmp_path / "1-warmup").name == "step-00000003"


def test_ctrl_c_saves_and_says_how_to_resume(tmp_path):

    whole, model = llama(), llama()
    Recipe([warmup()]).run(whole, TOKENIZER, tmp_path / "whole")

    def interrupt(stage, step, steps, numbers):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Interrupted, match=r"saved at step 5 of 8.*same command resumes"):
        Recipe([warmup()]).run(llama(), TOKENIZER, tmp_path / "b", report=interrupt)
    assert checkpoints.latest(tmp_path / "b" / "1-warmup").name == "step-00000005"
    Recipe([warmup()]).run(model, TOKENIZER, tmp_path / "b")
    assert same(weights(whole), weights(model))


def test_broken_reward_stops_saves_and_resumes_exactly(tmp_path):
    whole, model = llama(), llama()
    Recipe([rlvr(save_every=100)]).run(whole, TOKENIZER, tmp_path / "whole")
    broken = []

    def breaking(completion, example):
        broken.append(1)
        if len(broken) > 3 * 12:
            raise RuntimeError("disk full")
        return length_reward(completion, example)

    breaking.__module__, breaking.__qualname__ = length_reward.__module__, length_reward.__qualname__
    with pytest.raises(TrainError, match=r"failed on all 12 completions.*RuntimeError: disk full"):
        Recipe([rlvr(save_every=100, reward=breaking)]).run(llama(), TOKENIZER, tmp_path / "b")
    assert checkpoints.latest(tmp_path / "b" / "1-rlvr").name == "step-00000003"  # not lost, though none was due
    Recipe([rlvr(save_every=100)]).run(model, TOKENIZER, tmp_path / "b")
    assert same(weights(whole), weights(model))


def test_measuring_changes_nothing(tmp_path):
    plain, measured = llama(), llama()
    Recipe([warmup(steps=4), rlvr(steps=4)]).run(plain, TOKENIZER, tmp_path / "a")
    held_out = HeldOut(EXAMPLES[:4], verify, points=2, samples=2, max_new_tokens=8)
    Recipe([warmup(steps=4), rlvr(steps=4)]).run(measured, TOKENIZER, tmp_path / "b", held_out=held_out)
    assert same(weights(plain), weights(measured))
    assert [step for step, _ in steps_of(tmp_path / "b", "held_out_greedy")] == [0, 2, 4, 0, 2, 4]
