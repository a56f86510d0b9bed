"""What the trainer learns from: which tokens count, how batches are cut, and that the reward rises."""

import pytest
import torch

from tests.support.tiny import (
    EXAMPLES,
    TOKENIZER,
    gpt2,
    length_reward,
    llama,
    log_of,
    rlvr,
    same,
    steps_of,
    warmup,
    weights,
)
from warpup.data import UniformSampler
from warpup.train import Recipe, load_model, newest_model, rollout
from warpup.train.batch import IGNORE, collate, encode_pair, micro_batches
from warpup.train.optim import learning_rate
from warpup.train.rewards import score
from warpup.train.warmup import LengthBuckets

pytestmark = pytest.mark.usefixtures("one_thread")


def test_loss_is_over_completion_tokens_only(tmp_path):
    model, before = llama(), llama()
    Recipe([warmup(steps=1, batch_size=40, max_tokens=300)]).run(model, TOKENIZER, tmp_path)  # several micro-batches

    total, count = 0.0, 0
    for row in EXAMPLES:  # one unpadded row at a time
        prompt, completion = encode_pair(TOKENIZER, row)
        assert completion[-1] == TOKENIZER.eos_token_id
        logits = before(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        total = total - torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(completion)[:, None]).sum()
        count += len(completion)
    (total / count).backward()
    [(_, loss)], [(_, norm)] = steps_of(tmp_path, "loss"), steps_of(tmp_path, "grad_norm")
    assert loss == pytest.approx(total.item() / count, rel=1e-5)
    assert norm == pytest.approx(grad_norm(before), rel=1e-4)
    assert steps_of(tmp_path, "tokens") == [(1, count)]


def grad_norm(model):
    return torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()


def test_collate_aligns_targets_with_inputs():
    batch = collate([([5, 6, 7], [8, 9]), ([5], [6])], [1, 0], pad=0)
    assert batch.inputs.tolist() == [[5, 0, 0, 0], [5, 6, 7, 8]]
    assert batch.targets.tolist() == [[6, IGNORE, IGNORE, IGNORE], [IGNORE, IGNORE, 8, 9]]
    assert batch.attention.tolist() == [[1, 0, 0, 0], [1, 1, 1, 1]]
    assert batch.rows == [1, 0]


def test_micro_batches_hold_every_row_once_within_the_limit():
    pairs = [([1] * n, [2] * n) for n in (3, 9, 1, 5, 30)]
    batches = list(micro_batches(pairs, range(5), pad=0, max_tokens=24))
    assert sorted(row for batch in batches for row in batch.rows) == [0, 1, 2, 3, 4]
    assert all(batch.inputs.numel() <= 24 or len(batch.rows) == 1 for batch in batches)
    assert len(batches) < 5


def test_length_buckets_take_each_row_once_an_epoch_and_group_lengths():
    pairs = [([1], [2] * (1 + n % 17)) for n in range(64)]
    buckets = LengthBuckets(pairs, 8, seed=3)
    epoch = [buckets[step] for step in range(8)]
    assert sorted(row for rows in epoch for row in rows) == list(range(64))
    assert [buckets[step] for step in (9, 2)] == [LengthBuckets(pairs, 8, seed=3)[9], epoch[2]]
    assert [buckets[step] for step in range(8, 16)] != epoch
    assert max(max(buckets.lengths[r] for r in rows) - min(buckets.lengths[r] for r in rows) for rows in epoch) <= 4


def test_learning_rate_rises_then_follows_its_schedule():
    assert [learning_rate(i, 10, 1.0, 2, "linear") for i in (0, 1, 2, 6)] == [0.5, 1.0, 1.0, 0.5]
    assert learning_rate(6, 10, 1.0, 2, "cosine") == pytest.approx(0.5)
    assert learning_rate(9, 10, 3.0, 0, "constant") == 3.0


def tag_reward(completion, example):
    """1 where the first word is `knight`: a bandit."""
    return float(completion.split()[:1] == ["knight"])


def test_rlvr_raises_a_bandit_reward(tmp_path):
    model = llama(initializer_range=0.02)
    Recipe([rlvr(reward=tag_reward, steps=40, prompts=4, samples=16, max_new_tokens=2)]).run(model, TOKENIZER, tmp_path)
    rewards = [reward for _, reward in steps_of(tmp_path, "reward")]
    assert sum(rewards[:3]) / 3 < 0.2
    assert sum(rewards[-3:]) / 3 > 0.9


def test_warmup_then_rlvr_learns_from_both(tmp_path):
    model = llama()
    Recipe([warmup(), rlvr(steps=2)]).run(model, TOKENIZER, tmp_path)
    log = [line for line in log_of(tmp_path)]
    assert [line["stage"] for line in log] == ["1-warmup"] * 8 + ["2-rlvr"] * 2
    assert not same(weights(load_model(tmp_path / "1-warmup" / "step-00000008")[0]), weights(model))
    assert same(weights(load_model(newest_model(tmp_path))[0]), weights(model))


def test_any_saved_model_loads_trains_and_saves(tmp_path):
    start = gpt2()
    start.save_pretrained(tmp_path / "start")
    TOKENIZER.save_pretrained(tmp_path / "start")
    model, tokenizer = load_model(tmp_path / "start")
    assert same(weights(start), weights(model))
    Recipe([warmup(steps=3), rlvr(steps=2)]).run(model, tokenizer, tmp_path / "run")
    again, _ = load_model(newest_model(tmp_path / "run"))
    assert same(weights(again), weights(model))
    assert not same(weights(again), weights(start))


@pytest.mark.parametrize(
    ("options", "divisor"),
    [
        ({}, "token"),
        ({"loss": "dr_grpo"}, "constant"),
        ({"normalizer": "sequence"}, "sequence"),
        ({"loss": "dr_grpo", "normalizer": "token"}, "token"),
    ],
)
def test_policy_gradient_equals_a_hand_computation(tmp_path, monkeypatch, options, divisor):
    """One step on policy over several micro-batches: gradient of -sum of (r - mean of its group) * log p over the
    divisor, dropped groups left out."""
    seen = {}
    monkeypatch.setattr("warpup.train.rlvr.rollout", lambda *a, **k: seen.setdefault("rolls", rollout(*a, **k)))
    monkeypatch.setattr(
        "warpup.train.rlvr.score", lambda f, texts, asked: seen.setdefault("scores", score(f, texts, asked))
    )
    data = [EXAMPLES[0], EXAMPLES[1], EXAMPLES[2]]
    flat = EXAMPLES[1]["prompt"]
    stage = rlvr(data=data, steps=1, clip=0, max_tokens=64, **options)
    stage.reward = lambda text, row: 0.25 if row["prompt"] == flat else length_reward(text, row) + ("(" in text)
    Recipe([stage]).run(llama(), TOKENIZER, tmp_path)
    rolls, rewards = seen["rolls"], torch.tensor(seen["scores"].rewards).view(3, 4)
    order = UniformSampler(3, seed=0).next(3)

    model, objective, tokens = llama(), 0.0, 0
    for group, k in enumerate(order):
        if data[k]["prompt"] == flat:
            continue
        prompt = TOKENIZER(data[k]["prompt"])["input_ids"]
        for j in range(4):
            completion = rolls.completion(4 * group + j)
            logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            logp = torch.log_softmax(logits, -1).gather(1, torch.tensor(completion)[:, None]).sum()
            tokens += len(completion)
            part = logp / {"token": 1, "sequence": 8 * len(completion), "constant": 12 * 8}[divisor]
            objective = objective - (rewards[group, j] - rewards[group].mean()) * part
    (objective / (tokens if divisor == "token" else 1)).backward()
    assert steps_of(tmp_path, "grad_norm")[0][1] == pytest.approx(grad_norm(model), rel=1e-3)
    assert steps_of(tmp_path, "groups") == [(1, 2)]
    assert steps_of(tmp_path, "ratio_mean")[0][1] == pytest.approx(1, abs=1e-4)
    assert steps_of(tmp_path, "tokens") == [(1, tokens)]


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
