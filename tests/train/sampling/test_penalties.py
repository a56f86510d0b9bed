"""Training under penalties on tokens that were seen: the loss makes them again, by hand and exactly."""

import math

import pytest
import torch

from tests.support.tiny import (
    EXAMPLES,
    TOKENIZER,
    Killed,
    completion_logprob,
    killer,
    llama,
    log_of,
    rlvr,
    same,
    weights,
)
from tests.train.model.test_heads import MODELS, PAIRS
from tests.train.sampling.test_episodes import Asks
from warpup import KeptTokens
from warpup.policy.kinds import PolicyOptions
from warpup.train import Recipe, TrainError, rollout
from warpup.train.model import heads
from warpup.train.model.batch import collate
from warpup.train.model.heads import Head
from warpup.train.model.tokens import encode_pair
from warpup.train.rewards.reward_set import VERIFIER
from warpup.train.sampling.decoding import DecodingStrategy, bias_of
from warpup.train.sampling.episodes import play
from warpup.train.sampling.penalties import Penalties, SeenTokens
from warpup.train.stages.policy_step import Experience

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*what makes its logits:UserWarning"),
]
PENALTIES = [
    {"repetition": 1.4}, {"repetition": 0.7}, {"presence": 0.8},
    {"repetition": 1.2, "presence": -0.5, "frequency": 0.4}, {"frequency": 0.9},
]  # fmt: skip


def penalized_by_hand(logits, prompt, before, repetition=1.0, presence=0.0, frequency=0.0, logit_bias=()):
    """One row of logits, a token at a time."""
    logits = logits.clone()
    for token, bias in logit_bias:
        logits[token] += bias
    for token in set(prompt) | set(before):
        logits[token] = logits[token] / repetition if logits[token] > 0 else logits[token] * repetition
    for token in set(before):
        logits[token] = logits[token] - presence - frequency * before.count(token)
    return logits


def learned_of(pairs):
    """(B, L) bool: all tokens of these completions."""
    return torch.arange(max(len(said) for _, said in pairs)) < torch.tensor([[len(said)] for _, said in pairs])


def sample(model, decoding=None, **options):
    prompts = [encode_pair(TOKENIZER, row)[0] for row in EXAMPLES[:4]]
    rolls = rollout(
        model, prompts, eos=[TOKENIZER.eos_token_id, 20, 24], pad=0, max_new_tokens=20, copies=5, temperature=0.9,
        decoding=decoding, generator=torch.Generator().manual_seed(0), record=True, **options,
    )  # fmt: skip
    pairs = [(prompts[row // 5], rolls.completion(row)) for row in range(20)]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1)).tolist()
    return Experience(pairs, rolls, torch.zeros(20), 0.9), collate(pairs, order, pad=0)


@pytest.mark.parametrize(
    "filters", [{}, {"top_k": 6}, {"top_p": 0.9, "min_p": 0.02}, {"typical_p": 0.7, "eta_cutoff": 0.01}], ids=str
)
@pytest.mark.parametrize(
    "penalties",
    [
        *PENALTIES, {"logit_bias": {7: 1.5, 8: -math.inf}, "presence": 0.2},
        {"logit_bias": {7: -1e9}, "frequency": 0.1},  # another word for never: it moves no bound of other tokens
    ],
    ids=str,
)  # fmt: skip
def test_the_ratio_of_fresh_samples_is_one(monkeypatch, penalties, filters):
    """With filters too, and rows of logits in several pieces; the recorded sets are those of the penalized logits."""
    monkeypatch.setattr(heads, "ROWS", 7)
    model = llama().eval()
    experience, batch = sample(model, **penalties, **filters)
    old, replay = experience.packed(experience.rolls.logp, batch), experience.replay(batch)
    ratio = (completion_logprob(model, batch, 0.9, **replay) - old).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=3e-5)
    unpenalized = {"kept": replay["kept"]} if filters else {}
    assert (completion_logprob(model, batch, 0.9, **unpenalized) - old).abs().max() > 0.05
    if filters == {"top_k": 6}:
        assert (replay["kept"].counts() == 6).all()


def test_with_a_schedule_too():
    """The schedule comes first."""
    decoding = DecodingStrategy.parse("cyclic:amplitude=4,period=12,phase=any", TOKENIZER, ("wait", "back"))
    model = llama().eval()
    experience, batch = sample(model, decoding, **PENALTIES[3], top_p=0.9)
    assert experience.rolls.delta.abs().max() > 1
    logp = completion_logprob(model, batch, 0.9, **experience.replay(batch))
    torch.testing.assert_close(logp, experience.packed(experience.rolls.logp, batch), rtol=0, atol=3e-5)


@pytest.mark.parametrize("name", ["plain", "gemma2", "cohere", "twisted"])
@pytest.mark.parametrize("filtered", [False, True])
def test_by_hand_for_heads_of_every_form(name, filtered):
    """Log-probs, entropies, loss and gradient, from the model's own logits with every penalty made one by one."""
    model = MODELS[name][0]().eval()
    head, batch = Head(model), collate(PAIRS, range(3), pad=0)
    n, options = len(batch.completion), PENALTIES[3]
    logits = model(input_ids=batch.inputs, attention_mask=batch.attention, use_cache=False).logits.double()[batch.mask]
    contexts = [(prompt, said[:t]) for prompt, said in PAIRS for t in range(len(said))]
    moved = torch.stack([penalized_by_hand(z, *at, **options) for z, at in zip(logits, contexts, strict=True)])
    replay = {"penalties": Penalties(**options), "seen": SeenTokens(PAIRS, learned_of(PAIRS))}
    if filtered:
        mask = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0)) < 0.3
        mask[torch.arange(n), batch.completion] = True
        moved, replay["kept"] = moved.masked_fill(~mask, -torch.inf), KeptTokens.from_mask(mask)
    every = torch.log_softmax(moved / 0.8, -1)
    logp = every.gather(1, batch.completion[:, None]).squeeze(1)
    got, entropy = head.logprob(head.hidden(batch), batch.completion, 0.8, entropy=True, **replay)
    torch.testing.assert_close(got, logp.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(entropy, -torch.xlogy(every.exp(), every.exp()).sum(1).float(), rtol=1e-4, atol=1e-4)
    advantages = torch.tensor([1.0, -2.0, 0.5])
    loss, _ = head.policy_loss(
        PolicyOptions(kind="gpg", normalizer=("token", 1.0)), head.hidden(batch), batch.completion, logp.float(),
        advantages, batch.cu_seqlens, 0.8, replay=replay,
    )  # fmt: skip
    each = advantages.repeat_interleave(batch.cu_seqlens.diff())
    (want,) = torch.autograd.grad(-(logp * each).sum(), model.get_input_embeddings().weight)
    (grad,) = torch.autograd.grad(loss, model.get_input_embeddings().weight)
    torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-5)


def test_a_presence_penalty_keeps_tokens_from_coming_back():
    plain, penalized = (sample(llama().eval(), presence=p)[0].rolls for p in (0.0, 50.0))
    assert any(len(set(plain.completion(row))) < plain.lengths[row] for row in range(20))
    assert all(len(set(penalized.completion(row))) == penalized.lengths[row] for row in range(20))
    assert plain.penalties is None


def test_a_logit_bias_is_replayed_and_keeps_tokens_out():
    plain, bias = sample(llama().eval())[0].rolls, {7: 1.5, 8: -math.inf}
    model = llama().eval()
    experience, batch = sample(model, logit_bias=bias, frequency=0.3)
    rolls = experience.rolls
    assert (plain.tokens == 8).any()
    assert not (rolls.tokens == 8).any()
    assert (rolls.tokens == 7).sum() > (plain.tokens == 7).sum()
    for (prompt, said), logp in zip(experience.pairs, rolls.logp, strict=True):
        logits = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1].detach()
        for t, token in enumerate(said):
            row = penalized_by_hand(logits[t], prompt, said[:t], frequency=0.3, logit_bias=bias.items())
            assert logp[t] == pytest.approx(float(torch.log_softmax(row / 0.9, -1)[token]), abs=3e-5)
    assert completion_logprob(model, batch, 0.9, **experience.replay(batch)).isfinite().all()


def test_the_tokens_of_a_logit_bias_are_named_by_text(tmp_path):
    """As the vocabulary or the tokenizer has them; the step's ratio is 1 under it."""
    wait = TOKENIZER.convert_tokens_to_ids("wait")
    assert bias_of(TOKENIZER, {"wait": 1.5, TOKENIZER.eos_token: -2.0}) == {wait: 1.5, TOKENIZER.eos_token_id: -2.0}
    Recipe([rlvr(steps=1, kl_coef=0.1, logit_bias={"wait": 2.0, "back": -math.inf})]).run(llama(), TOKENIZER, tmp_path)
    (line,) = (line for line in log_of(tmp_path) if "loss" in line)
    assert line["ratio_max"] == pytest.approx(1, abs=1e-4)
    for texts, message in (
        ({"wait wait": 1.0}, "rlvr.logit_bias: 'wait wait' is 2 tokens"),
        ({"wait": 1.0, " wait": 1.0}, "rlvr.logit_bias: ' wait' is the same token as another text"),
    ):
        with pytest.raises(TrainError, match=message):
            Recipe([rlvr(logit_bias=texts)]).run(llama(), TOKENIZER, tmp_path / "wrong")


def test_rows_change_nothing():
    whole, part = (sample(llama().eval(), rows=rows, **PENALTIES[3])[0].rolls for rows in (None, 3))
    assert torch.equal(whole.tokens, part.tokens)
    torch.testing.assert_close(whole.logp, part.logp)


def test_the_first_step_has_ratio_one_and_no_kl(tmp_path):
    """Prompts run through the model once for all their completions."""
    Recipe([rlvr(steps=1, kl_coef=0.1, top_p=0.95, **PENALTIES[3])]).run(llama(), TOKENIZER, tmp_path)
    (line,) = (line for line in log_of(tmp_path) if "loss" in line)
    assert line["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert line["ratio_mean"] == pytest.approx(1, abs=1e-5)
    assert line["ref_kl"] == pytest.approx(0, abs=1e-6)


def test_killed_and_resumed_bit_for_bit(tmp_path):
    def stage():
        return rlvr(steps=3, save_every=1, kl_coef=0.1, top_p=0.9, **PENALTIES[3])

    whole = weights(Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "whole"))
    with pytest.raises(Killed):
        Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "run", report=killer(2))
    assert same(whole, weights(Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "run")))


class Silent(Asks):
    """Between its turns nothing is said."""

    def step(self, completion):
        return super().step(completion)._replace(observation="")


@pytest.mark.parametrize("make", [Asks, Silent])
@pytest.mark.parametrize("filters", [{}, {"top_k": 6}], ids=str)
def test_over_turns_each_turn_is_a_completion_of_its_own(make, filters):
    """All before a turn is its prompt: by hand, and the ratio of fresh samples is 1."""
    model, options = llama().eval(), PENALTIES[3]
    played = play(
        model, TOKENIZER, make, EXAMPLES[:3], turns=3, ends=[TOKENIZER.eos_token_id, 5], copies=4, limit=500,
        max_new_tokens=6, generator=torch.Generator().manual_seed(0), record=True, **options, **filters,
    )  # fmt: skip
    rolls = played.rolls
    experience, batch = Experience(played.pairs, rolls, torch.zeros(12), 1.0), collate(played.pairs, range(12), pad=0)
    replay = experience.replay(batch)
    old = experience.packed(rolls.logp, batch)
    torch.testing.assert_close(completion_logprob(model, batch, **replay), old, rtol=0, atol=3e-5)
    assert max(len(texts) for texts in played.texts) > 1
    if filters:
        return
    by_hand = []
    for n, (prompt, said, own) in enumerate(played.pairs):
        logits = model(torch.tensor([prompt + said])).logits[0].detach()
        turns = rolls.turn[n].tolist()
        for t in (t for t, mine in enumerate(own) if mine):
            begin = turns.index(turns[t])
            row = penalized_by_hand(logits[len(prompt) + t - 1], prompt + said[:begin], said[begin:t], **options)
            by_hand.append(torch.log_softmax(row, -1)[said[t]])
    torch.testing.assert_close(torch.stack(by_hand), old, rtol=0, atol=3e-5)


def test_a_step_on_episodes_under_penalties(tmp_path):
    stage = rlvr(steps=1, environment=Asks, reward=VERIFIER, turns=3, max_new_tokens=4, max_tokens=40, **PENALTIES[3])
    Recipe([stage]).run(llama(), TOKENIZER, tmp_path)
    (line,) = (line for line in log_of(tmp_path) if "loss" in line)
    assert line["ratio_max"] == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"repetition": 0.0}, "rlvr.repetition: expected "),
        ({"presence": float("nan")}, "rlvr.presence: expected "),
        ({"frequency": float("nan")}, "rlvr.frequency: expected "),
        ({"logit_bias": {"a": "b"}}, "rlvr.logit_bias: expected a number, or -inf for never, got 'b' of 'a'"),
        ({"logit_bias": {"a": math.inf}}, "rlvr.logit_bias: expected a number, .* got inf"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(TrainError, match=message):
        rlvr(**options).check()
