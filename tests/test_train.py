"""The trainer: what it learns from, that it resumes exactly, that its sampler is honest, and how it fails."""

import json
import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from warpup.data import UniformSampler, example, knights_and_knaves, verify, word_tokenizer
from warpup.train import (
    RLVR,
    HeldOut,
    Interrupted,
    Recipe,
    TrainError,
    Warmup,
    evaluate,
    load_model,
    newest_model,
    rollout,
)
from warpup.train import checkpoint as checkpoints
from warpup.train.batch import IGNORE, collate, completion_logprob, encode_pair, micro_batches
from warpup.train.optim import guarded_step, learning_rate
from warpup.train.recipe import locked
from warpup.train.rewards import load_reward, score
from warpup.train.rollout import choose
from warpup.train.warmup import LengthBuckets


@pytest.fixture(autouse=True)
def one_thread():
    """Models this small only lose by threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


TOKENIZER = word_tokenizer()
EXAMPLES = [example(puzzle) for puzzle in knights_and_knaves(40, seed=1)]


def llama(seed=0, **overrides):
    """A model of a few thousand parameters; attention reaches everywhere, so padding mistakes would show."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": len(TOKENIZER),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "initializer_range": 0.2,
        "pad_token_id": TOKENIZER.pad_token_id,
        "eos_token_id": TOKENIZER.eos_token_id,
        "bos_token_id": TOKENIZER.bos_token_id,
    }
    return LlamaForCausalLM(LlamaConfig(**settings | overrides))


def gpt2(seed=0):
    """Another architecture: learned absolute positions, tied embeddings."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(TOKENIZER), n_embd=32, n_layer=2, n_head=2, n_positions=256, initializer_range=0.2,
        pad_token_id=TOKENIZER.pad_token_id, eos_token_id=TOKENIZER.eos_token_id, bos_token_id=TOKENIZER.bos_token_id,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def log_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def steps_of(out, name):
    return [(line["step"], line[name]) for line in log_of(out) if name in line]


def warmup(**overrides):
    return Warmup(
        **{"data": EXAMPLES, "steps": 8, "batch_size": 4, "lr": 1e-2, "lr_warmup": 2, "save_every": 3} | overrides
    )


def tag_reward(completion, example):
    """1 where the first word is `knight`: a bandit."""
    return float(completion.split()[:1] == ["knight"])


def rlvr(**overrides):
    settings = {
        "data": EXAMPLES, "reward": length_reward, "steps": 6, "prompts": 3, "samples": 4, "max_new_tokens": 8,
        "lr": 1e-2, "save_every": 2,
    }  # fmt: skip
    return RLVR(**settings | overrides)


def length_reward(completion, example):
    return len(set(completion.split())) / 8


# ---- what is learned from ----


def test_loss_is_over_completion_tokens_only(tmp_path):
    model, before = llama(), llama()
    Recipe([warmup(steps=1, batch_size=40, max_tokens=300)]).run(model, TOKENIZER, tmp_path)

    total, count = 0.0, 0
    for row in EXAMPLES:  # one unpadded row at a time
        prompt, completion = encode_pair(TOKENIZER, row)
        assert completion[-1] == TOKENIZER.eos_token_id
        logits = before(torch.tensor([prompt + completion])).logits[0].double()
        logp = torch.log_softmax(logits, -1)
        for position, token in enumerate(completion, start=len(prompt)):
            total -= logp[position - 1, token].item()
            count += 1
    [(_, loss)] = steps_of(tmp_path, "loss")
    assert loss == pytest.approx(total / count, rel=1e-5)
    assert steps_of(tmp_path, "tokens") == [(1, count)]


def test_accumulated_gradients_equal_one_big_batch(tmp_path):
    small, big = llama(), llama()
    Recipe([warmup(steps=1, batch_size=40, max_tokens=200)]).run(small, TOKENIZER, tmp_path / "a")
    Recipe([warmup(steps=1, batch_size=40, max_tokens=10**6)]).run(big, TOKENIZER, tmp_path / "b")
    (_, one), (_, other) = steps_of(tmp_path / "a", "grad_norm")[0], steps_of(tmp_path / "b", "grad_norm")[0]
    assert one == pytest.approx(other, rel=1e-4)


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
    expected = torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
    assert steps_of(tmp_path, "grad_norm")[0][1] == pytest.approx(expected, rel=1e-3)
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


# ---- the sampler ----


@pytest.mark.filterwarnings("error")  # a cache under an old name of the argument, for one
@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampler_log_probs_equal_teacher_forcing(make, temperature):
    model = make().eval()
    prompts = [encode_pair(TOKENIZER, row)[0] for row in EXAMPLES[:5]]
    assert len({len(p) for p in prompts}) > 1  # left padding is at work
    rolls = rollout(
        model, prompts, eos=TOKENIZER.eos_token_id, pad=0, max_new_tokens=24, copies=6, temperature=temperature,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert 0 < rolls.finished.sum() < 30  # rows were dropped on the way
    for row in range(30):
        completion = rolls.completion(row)
        batch = collate([(prompts[row // 6], completion)], [0], pad=0)
        logp = completion_logprob(model, batch, temperature)[batch.mask]
        torch.testing.assert_close(rolls.logp[row, : len(completion)], logp, atol=2e-5, rtol=1e-5)
        assert (completion[-1] == TOKENIZER.eos_token_id) == bool(rolls.finished[row])
        assert TOKENIZER.eos_token_id not in completion[:-1]
        assert not rolls.tokens[row, len(completion) :].any()
        assert not rolls.logp[row, len(completion) :].any()


@pytest.mark.parametrize("make", [llama, gpt2])
def test_greedy_rollout_equals_generate(make):
    model = make().eval()
    prompts = [encode_pair(TOKENIZER, row)[0] for row in EXAMPLES[:6]]
    rolls = rollout(model, prompts, eos=TOKENIZER.eos_token_id, pad=0, max_new_tokens=20, temperature=0)
    for row, prompt in enumerate(prompts):
        expected = model.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), max_new_tokens=20, do_sample=False
        )
        assert rolls.completion(row) == expected[0, len(prompt) :].tolist()


def test_finished_rows_leave_the_batch():
    model = llama().eval()
    with torch.no_grad():
        model.lm_head.weight[TOKENIZER.eos_token_id] *= 3  # many rows end early
    sizes, forward = [], model.forward
    model.forward = lambda **inputs: sizes.append(len(inputs["input_ids"])) or forward(**inputs)
    rolls = rollout(
        model, [[5, 6]], eos=TOKENIZER.eos_token_id, pad=0, max_new_tokens=40, copies=64,
        generator=torch.Generator().manual_seed(1),
    )  # fmt: skip
    assert sizes[0] == 1  # the prompt ran once
    assert sum(sizes[1:]) <= rolls.lengths.sum().item() * 1.12  # not 64 * longest
    assert sum(sizes[1:]) < 0.7 * 64 * rolls.lengths.max().item()


def test_choose_keeps_to_the_nucleus():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(2000, 1)
    generator = torch.Generator().manual_seed(0)
    assert set(choose(logits, 1.0, 0.75, generator).tolist()) == {0, 1}
    assert set(choose(logits, 1.0, 1.0, generator).tolist()) == {0, 1, 2, 3}
    share = (choose(logits, 0.5, 1.0, generator) == 0).float().mean().item()
    assert share == pytest.approx(0.25 / (0.25 + 0.09 + 0.0225 + 0.0025), abs=0.04)


# ---- exact resume ----


class Killed(BaseException):
    pass


def killer(at):
    """A report that dies after a step, as a kill would: nothing of that step is saved."""

    def report(stage, step, steps, numbers):
        if step == at:
            raise Killed

    return report


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
    import os
    import signal

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


def test_measuring_changes_nothing(tmp_path):
    plain, measured = llama(), llama()
    Recipe([warmup(steps=4), rlvr(steps=4)]).run(plain, TOKENIZER, tmp_path / "a")
    held_out = HeldOut(EXAMPLES[:4], verify, points=2, samples=2, max_new_tokens=8)
    Recipe([warmup(steps=4), rlvr(steps=4)]).run(measured, TOKENIZER, tmp_path / "b", held_out=held_out)
    assert same(weights(plain), weights(measured))
    assert [step for step, _ in steps_of(tmp_path / "b", "held_out_greedy")] == [0, 2, 4, 0, 2, 4]


def test_evaluate_counts_right_answers():
    model = llama().eval()
    held = [{"prompt": row["prompt"], "n": i} for i, row in enumerate(EXAMPLES[:6])]

    class Verdict:
        def __init__(self, right):
            self.reward, self.correct, self.format_ok = 2.0 * right, right, True

    random_state = torch.get_rng_state()
    result = evaluate(
        model, TOKENIZER, held, lambda text, row: Verdict(row["n"] < 2), samples=3, max_new_tokens=5, rows=4
    )
    assert torch.equal(torch.get_rng_state(), random_state)
    assert result.avg == result.greedy == pytest.approx(1 / 3)
    assert (result.reward, result.format_ok) == (pytest.approx(2 / 3), 1.0)
    assert [trace["correct"] for trace in result.traces] == [1, 1, 0, 0, 0, 0]
    words = evaluate(
        model, TOKENIZER, held, verify_nothing, samples=0, max_new_tokens=5, reflection_words=TOKENIZER.get_vocab()
    )
    assert words.reflections == pytest.approx(words.length, abs=1)
    assert math.isnan(words.avg)


def verify_nothing(text, row):
    return 0.0


# ---- how it fails ----


def test_tokenizer_without_pad(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.pad_token = None
    with pytest.raises(TrainError, match="no pad token"):
        Recipe([warmup()]).run(llama(), tokenizer, tmp_path)


def test_tokenizer_larger_than_the_model(tmp_path):
    with pytest.raises(TrainError, match=r"tokenizer has 41 tokens.*embedding 40 rows|do not fit"):
        Recipe([warmup()]).run(llama(vocab_size=len(TOKENIZER) - 1), TOKENIZER, tmp_path)


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


def test_guarded_step_refuses_an_infinite_gradient():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.tensor([math.inf, 0.0])
    assert guarded_step(optimizer, 1.0, 0.1, 1.0)[0] is False
    assert weight.tolist() == [1.0, 1.0]
    weight.grad = torch.tensor([3.0, 4.0])
    assert guarded_step(optimizer, 1.0, 0.5, 1.0) == (True, pytest.approx(5.0))
    torch.testing.assert_close(weight.detach(), torch.tensor([0.7, 0.6]))


def test_nan_logits_name_the_place():
    model = llama().eval()
    with torch.no_grad():
        model.lm_head.weight[3] = math.nan
    with pytest.raises(TrainError, match="logits are NaN at generated token 0"):
        rollout(model, [[5]], eos=2, pad=0, max_new_tokens=3)


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


def test_no_usable_group_is_counted_and_ends_the_run(tmp_path):
    with pytest.raises(TrainError, match=r"no usable group in 3 steps.*mean 0\.5"):
        Recipe([rlvr(reward=lambda completion, example: 0.5, patience=3)]).run(llama(), TOKENIZER, tmp_path)
    assert steps_of(tmp_path, "skipped") == [(1, 1), (2, 2)]
    assert steps_of(tmp_path, "dropped_groups") == [(1, 3), (2, 6)]


def test_folder_of_another_run_is_refused(tmp_path):
    Recipe([warmup(steps=1)]).run(llama(), TOKENIZER, tmp_path)
    with pytest.raises(TrainError, match=r"holds another run .*stages\[0\].lr: there 0.01, now 0.5.*another folder"):
        Recipe([warmup(steps=1, lr=0.5)]).run(llama(), TOKENIZER, tmp_path)
    with pytest.raises(TrainError, match=r"model.weights"):
        Recipe([warmup(steps=1)]).run(llama(seed=1), TOKENIZER, tmp_path)
    with pytest.raises(TrainError, match=r"data: there 40 examples"):
        Recipe([warmup(steps=1, data=EXAMPLES[:-1])]).run(llama(), TOKENIZER, tmp_path)


def test_folder_in_use_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(TrainError, match="another process is training"):
        Recipe([warmup(steps=1)]).run(llama(), TOKENIZER, tmp_path)


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (warmup(data="nowhere.jsonl"), r"warmup.data: .*nowhere.jsonl"),
        (warmup(data=[]), "warmup.data: no examples"),
        (warmup(data=[{"prompt": "A"}]), "example 0 needs a prompt and a completion"),
        (rlvr(data=[{"prompt": ""}]), "a prompt has no tokens"),
        (rlvr(max_new_tokens=5000), r"longest prompt with max_new_tokens has 50\d\d tokens, the model takes at most"),
        (warmup(data=[EXAMPLES[0] | {"completion": "A " * 3000}]), "longest example has 30.. tokens"),
        (rlvr(loss="gpro"), "rlvr.loss: expected one of .*grpo.*, got 'gpro'"),
        (rlvr(sampler="dump"), "40 of 40 examples have no 'category' column"),
        (rlvr(reward="nomodule.here:f"), "cannot import nomodule.here"),
        (rlvr(reward="warpup.data:nothing"), "warpup.data has no function nothing"),
        (rlvr(reward="nowhere.py:f"), "no file nowhere.py"),
        (rlvr(reward="f"), "expected `module:function` or `file.py:function`, got 'f'"),
    ],
)
def test_wrong_data_and_rewards_are_named(stage, message, tmp_path):
    with pytest.raises(TrainError, match=message):
        Recipe([stage]).run(llama(), TOKENIZER, tmp_path)


def test_reward_from_a_file(tmp_path):
    (tmp_path / "mine.py").write_text("def good(completion, example):\n    return len(completion) + example['bonus']\n")
    function = load_reward(f"{tmp_path / 'mine.py'}:good")
    assert score(function, ["ab", "abc"], [{"bonus": 1}] * 2).rewards == [3.0, 4.0]
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(TrainError, match=r"cannot import .*ModuleNotFoundError"):
        load_reward(f"{tmp_path / 'broken.py'}:good")


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


def test_missing_models_are_named(tmp_path):
    with pytest.raises(TrainError, match="no folder"):
        newest_model(tmp_path / "nothing")
    with pytest.raises(TrainError, match="holds no model and no checkpoint"):
        newest_model(tmp_path)
    with pytest.raises(TrainError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(TrainError, match="cannot load the model"):
        load_model(tmp_path)
