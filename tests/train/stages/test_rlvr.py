"""RLVR: the reward rises, one step equals a computation by hand, and what cannot be learned from is left out."""

import itertools
import math

import pytest
import torch

from tests.support.tiny import (
    EXAMPLES,
    TOKENIZER,
    length_reward,
    llama,
    log_of,
    rlvr,
    same,
    steps_of,
    weights,
)
from warpup.data import UniformSampler
from warpup.train import Recipe, TrainError, rollout
from warpup.train.rewards.reward_set import RewardSet

pytestmark = pytest.mark.usefixtures("one_thread")


def grad_norm(model):
    return torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()


def tag_reward(completion, example):
    """1 where the first word is `knight`: a bandit."""
    return float(completion.split()[:1] == ["knight"])


def test_rlvr_raises_a_bandit_reward(tmp_path):
    model = llama(initializer_range=0.02)
    Recipe([rlvr(reward=tag_reward, steps=40, prompts=4, samples=16, max_new_tokens=2)]).run(model, TOKENIZER, tmp_path)
    rewards = [reward for _, reward in steps_of(tmp_path, "reward")]
    assert sum(rewards[:3]) / 3 < 0.2
    assert sum(rewards[-3:]) / 3 > 0.9


@pytest.mark.parametrize(
    ("options", "divisor"),
    [
        ({}, "token"),
        ({"loss": "dr_grpo"}, "constant"),
        ({"normalizer": "sequence"}, "sequence"),
        ({"loss": "dr_grpo", "normalizer": "token"}, "token"),
        ({"top_k": 6, "temperature": 0.8}, "token"),
        ({"fails": 5}, "token"),
        ({"fails": 5, "normalizer": "sequence"}, "sequence"),
    ],
)
def test_policy_gradient_equals_a_hand_computation(tmp_path, monkeypatch, options, divisor):
    """One step on policy over several micro-batches: gradient of -sum of (r - mean of its group) * log p over the
    divisor, dropped groups and completions whose reward failed left out."""
    seen, calls = {}, itertools.count()
    fails = (options := dict(options)).pop("fails", 10**6)
    monkeypatch.setattr("warpup.train.engines.own.rollout", lambda *a, **k: seen.setdefault("rolls", rollout(*a, **k)))
    score = RewardSet.score
    monkeypatch.setattr(RewardSet, "score", lambda *a, **k: seen.setdefault("scores", score(*a, **k)))
    data = [EXAMPLES[0], EXAMPLES[1], EXAMPLES[2]]
    flat = EXAMPLES[1]["prompt"]
    stage = rlvr(data=data, steps=1, clip=0, max_tokens=64, **options)

    def reward(text, row):
        if next(calls) % fails == fails - 1:
            raise ValueError("unsure")
        return 0.25 if row["prompt"] == flat else length_reward(text, row) + ("(" in text)

    stage.reward = reward
    Recipe([stage]).run(llama(), TOKENIZER, tmp_path)
    rolls, rewards = seen["rolls"], torch.tensor(seen["scores"].rewards).view(3, 4)
    order = UniformSampler(3, seed=0).next(3)

    model, objective, tokens = llama(), 0.0, 0
    count = sum(int((~rewards[group].isnan()).sum()) for group, k in enumerate(order) if data[k]["prompt"] != flat)
    for group, k in enumerate(order):
        if data[k]["prompt"] == flat:
            continue
        prompt = TOKENIZER(data[k]["prompt"])["input_ids"]
        for j in (~rewards[group].isnan()).nonzero().flatten().tolist():
            completion = rolls.completion(4 * group + j)
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            if "top_k" in options:
                logits = logits.masked_fill(logits < logits.topk(6).values[:, -1:], -math.inf) / 0.8
            logp = torch.log_softmax(logits, -1).gather(1, torch.tensor(completion)[:, None]).sum()
            tokens += len(completion)
            part = logp / {"token": 1, "sequence": count * len(completion), "constant": 12 * 8}[divisor]
            objective = objective - (rewards[group, j] - rewards[group].nanmean()) * part
    (objective / (tokens if divisor == "token" else 1)).backward()
    assert steps_of(tmp_path, "grad_norm")[0][1] == pytest.approx(grad_norm(model), rel=1e-3)
    assert steps_of(tmp_path, "groups") == [(1, 2)]
    assert steps_of(tmp_path, "ratio_mean")[0][1] == pytest.approx(1, abs=1e-4)
    assert steps_of(tmp_path, "tokens") == [(1, tokens)]
    assert not steps_of(tmp_path, "ref_kl")  # without kl_coef there is no reference to be away from


@pytest.mark.parametrize("normalizer", ["token", "sequence", "constant"])
def test_micro_batches_of_a_policy_step_add_up(tmp_path, normalizer):
    """Two optimizer steps on one batch of rollouts, so that ratios and the KL are at work."""
    numbers = []
    for name, limit in (("small", 64), ("big", 10**6)):
        options = {"inner_epochs": 2, "kl_coef": 0.5, "normalizer": normalizer, "max_tokens": limit}
        Recipe([rlvr(steps=1, **options)]).run(llama(), TOKENIZER, tmp_path / name)
        [line] = log_of(tmp_path / name)
        numbers.append([line[key] for key in ("ratio_max", "ratio_mean", "loss", "grad_norm", "approx_kl", "ref_kl")])
    assert numbers[0] == pytest.approx(numbers[1], rel=1e-3)
    assert numbers[0][0] > 1.01


def test_a_loss_keeps_its_own_clip_range(tmp_path):
    """`dapo` clips above at 1.28: with 1.2 in its place the second step on the same rollouts is another one."""
    runs = {}
    for clip in (None, (0.2, 0.28), (0.2, 0.2)):
        model = llama()
        stage = rlvr(steps=1, loss="dapo", inner_epochs=3, lr=3e-2, clip_ratio=clip)
        Recipe([stage]).run(model, TOKENIZER, tmp_path / str(clip))
        runs[clip] = weights(model)
    assert same(runs[None], runs[0.2, 0.28])
    assert not same(runs[None], runs[0.2, 0.2])


def test_failing_rewards_are_counted_and_left_out(tmp_path):
    calls = iter(range(10**6))

    def flaky(completion, example):
        n = next(calls)
        if n % 4 == 0:
            raise KeyError("no such key")
        return math.inf if n % 4 == 1 else float(n % 4)

    Recipe([rlvr(steps=2, reward=flaky)]).run(llama(), TOKENIZER, tmp_path)
    assert steps_of(tmp_path, "reward_errors") == [(1, 6), (2, 12)]
    assert [reward for _, reward in steps_of(tmp_path, "reward")] == [2.5, 2.5]
    assert {message for _, message in steps_of(tmp_path, "message")} == {"KeyError: 'no such key'", "reward is inf"}
    assert all(math.isfinite(loss) for _, loss in steps_of(tmp_path, "loss"))


def test_no_usable_group_is_counted_and_ends_the_run(tmp_path):
    with pytest.raises(TrainError, match=r"no usable group in 3 steps.*mean 0\.5"):
        Recipe([rlvr(reward=lambda completion, example: 0.5, patience=3)]).run(llama(), TOKENIZER, tmp_path)
    assert steps_of(tmp_path, "skipped") == [(1, 1), (2, 2)]
    assert steps_of(tmp_path, "dropped_groups") == [(1, 3), (2, 6)]


def test_a_group_with_a_reward_at_its_mean_is_used(tmp_path):
    """Only groups whose advantages are all 0 are left out."""
    calls = itertools.cycle((0.0, 1.0, 2.0, 1.0))
    Recipe([rlvr(steps=1, reward=lambda text, row: next(calls))]).run(llama(), TOKENIZER, tmp_path)
    assert steps_of(tmp_path, "groups") == [(1, 3)]
    assert steps_of(tmp_path, "advantage") == [(1, 0.5)]
    assert steps_of(tmp_path, "dropped_groups") == [(1, 0)]
