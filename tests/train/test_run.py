"""Around a step: what is saved when it fails or is stopped, and what is left out."""

import json
import math
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
from warpup.train import HeldOut, Interrupted, Recipe, TrainError, load_model
from warpup.train import checkpoint as checkpoints
from warpup.train.log import MetricsLog
from warpup.train.run import StageRun

pytestmark = pytest.mark.usefixtures("one_thread")


def test_nan_loss_is_counted_left_out_and_ends_the_run(tmp_path):
    model = llama()
    with torch.no_grad():
        model.model.embed_tokens.weight[TOKENIZER.eos_token_id] = math.nan
        model.lm_head.weight[TOKENIZER.eos_token_id] = math.nan
    before = weights(model)
    with pytest.raises(TrainError, match=r"loss nan .* 5 steps in a row"):
        Recipe([warmup()]).run(model, TOKENIZER, tmp_path)
    assert all(
        torch.equal(a.nan_to_num(7), b.nan_to_num(7))
        for a, b in zip(before.values(), weights(model).values(), strict=True)
    )
    assert [n for _, n in steps_of(tmp_path, "nonfinite")] == [1, 2, 3, 4]


def test_an_optimizer_step_refuses_an_infinite_gradient_and_clips_others(tmp_path):
    layer = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.ones_(layer.weight)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    with StageRun("stage", tmp_path, layer, None, seed=0, log=MetricsLog(tmp_path / "metrics.jsonl")) as run:
        run.at = 0

        def step(gradient, loss=1.0, lr=0.5):
            layer.weight.grad = torch.tensor([gradient])
            norm = run.optimizer_step(optimizer, loss, lr, 1.0)
            assert layer.weight.grad is None  # cleared either way
            return norm

        step([math.inf, 0.0])
        step([1.0, 1.0], loss=math.nan)
        assert layer.weight.tolist() == [[1.0, 1.0]]
        assert (run.stepped, run.bad_steps, run.counts["nonfinite"]) == (False, 2, 2)
        assert step([3.0, 4.0]) == pytest.approx(5.0)
        assert (run.stepped, run.bad_steps) == (True, 0)
    torch.testing.assert_close(layer.weight.detach(), torch.tensor([[0.7, 0.6]]))


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


def test_a_stage_that_failed_in_its_first_step_may_have_other_settings(tmp_path):
    def broken(completion, example):
        raise RuntimeError("no server")

    with pytest.raises(TrainError, match=r"failed on all 12 completions.*no server"):
        Recipe([rlvr(reward=broken)]).run(llama(), TOKENIZER, tmp_path)
    Recipe([rlvr(steps=1, lr=1e-3)]).run(llama(), TOKENIZER, tmp_path)
    assert steps_of(tmp_path, "lr") == [(1, 1e-3)]


def test_measuring_changes_nothing(tmp_path):
    plain, measured = llama(), llama()
    Recipe([warmup(steps=4), rlvr(steps=4)]).run(plain, TOKENIZER, tmp_path / "a")
    held_out = HeldOut(EXAMPLES[:4], verify, points=2, samples=2, max_new_tokens=8)
    Recipe([warmup(steps=4), rlvr(steps=4)]).run(measured, TOKENIZER, tmp_path / "b", held_out=held_out)
    assert same(weights(plain), weights(measured))
    assert [step for step, _ in steps_of(tmp_path / "b", "held_out_greedy")] == [0, 2, 4, 0, 2, 4]


def test_a_reward_that_does_not_tell_what_is_right_is_compared_by_itself(tmp_path):
    """Most rewards are plain numbers: accuracy is NaN then, and the reward says which weights are best."""
    held_out = HeldOut(EXAMPLES[:2], length_reward, points=2, max_new_tokens=6, keep_best=True, stop_after=5)
    Recipe([warmup(steps=4)]).run(llama(), TOKENIZER, tmp_path, held_out=held_out)
    rewards = [value for _, value in steps_of(tmp_path, "held_out_reward")]
    assert all(math.isnan(value) for _, value in steps_of(tmp_path, "held_out_greedy") if value is not None)
    state = json.loads((checkpoints.latest(tmp_path / "1-warmup") / "trainer.json").read_text())
    assert state["best"] == max(rewards)
    assert (tmp_path / "1-warmup" / "best" / "config.json").exists()


def test_best_weights_are_kept_and_a_stage_ends_without_progress(tmp_path):
    """Scores of measurements .2 .4 .3 .3: the second one's weights are the best, and two more end the stage."""
    scores = iter([0.2, 0.4, 0.3, 0.3])
    kept = {}

    class Scripted(HeldOut):
        def measure(self, model, tokenizer):
            score = next(scores)
            kept[score] = weights(model)
            return {"held_out_greedy": score}

    held_out = Scripted(EXAMPLES[:1], "warpup.data:verify", points=8, keep_best=True, stop_after=2)
    recipe = Recipe([warmup(steps=8)])
    ended = weights(recipe.run(llama(), TOKENIZER, tmp_path, held_out=held_out))
    assert checkpoints.step_of(checkpoints.latest(tmp_path / "1-warmup")) == 3
    best, _ = load_model(tmp_path / "1-warmup" / "best")
    assert same(weights(best), kept[0.4])
    assert not same(ended, kept[0.4])
    again = recipe.run(llama(), TOKENIZER, tmp_path, held_out=held_out)  # it has ended: nothing is measured or trained
    assert same(weights(again), ended)
    recipe.run(llama(), TOKENIZER, tmp_path)  # unless nothing ends it any more
    assert checkpoints.step_of(checkpoints.latest(tmp_path / "1-warmup")) == 8
