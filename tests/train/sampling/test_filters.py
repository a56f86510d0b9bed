"""Training under top-k, top-p and other filters: what was cut off is recorded, and the loss cuts it off again."""

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
    mixture,
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
from warpup.train.sampling.decoding import DecodingStrategy
from warpup.train.sampling.episodes import play
from warpup.train.stages.policy_step import Experience

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore:.*what makes its logits:UserWarning"),
]
FILTERS = [
    {"top_k": 5}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_h": 0.4}, {"typical_p": 0.7}, {"epsilon_cutoff": 0.03},
    {"eta_cutoff": 0.1}, {"top_k": 20, "top_p": 0.95, "min_p": 0.02},
]  # fmt: skip


@pytest.fixture(autouse=True, params=[0.0, 1.0], ids=["rows", "sparse"])
def way(request, monkeypatch):
    """Sets of a large part of the vocabulary, for which whole rows of logits are made, and of a small one."""
    monkeypatch.setattr(heads, "FEW", request.param)
    monkeypatch.setattr(heads, "ROWS", 50)


def sample(model, filters, decoding=None, temperature=0.9, rows=None):
    prompts = [encode_pair(TOKENIZER, row)[0] for row in EXAMPLES[:4]]
    rolls = rollout(
        model, prompts, eos=[TOKENIZER.eos_token_id, 20, 24], pad=0, max_new_tokens=20, copies=5,
        temperature=temperature, decoding=decoding, rows=rows, generator=torch.Generator().manual_seed(0), record=True,
        **filters,
    )  # fmt: skip
    pairs = [(prompts[row // 5], rolls.completion(row)) for row in range(20)]
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1)).tolist()
    return Experience(pairs, rolls, torch.zeros(20), temperature), collate(pairs, order, pad=0)


@pytest.mark.parametrize("filters", FILTERS, ids=str)
@pytest.mark.parametrize("make", [llama, mixture])
def test_the_ratio_of_fresh_samples_is_one(make, filters):
    """Rows end early and leave the batch, and the loss reads them in another order."""
    model = make().eval()
    experience, batch = sample(model, filters)
    assert 0 < experience.rolls.finished.sum() < 20
    old, replay = experience.packed(experience.rolls.logp, batch), experience.replay(batch)
    ratio = (completion_logprob(model, batch, 0.9, **replay) - old).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=3e-5)
    assert (completion_logprob(model, batch, 0.9) - old).abs().max() > 0.05
    # The sets are those of the model's own logits, and have the mass that was recorded.
    logits = model(input_ids=batch.inputs, attention_mask=batch.attention, use_cache=False).logits[batch.mask]
    kept = replay["kept"].to_mask(logits.shape[1])
    mass = torch.softmax(logits / 0.9, -1).where(kept, 0.0).sum(1)
    torch.testing.assert_close(experience.packed(experience.rolls.kept_mass, batch), mass, rtol=1e-4, atol=1e-5)
    least, most = logits.masked_fill(~kept, torch.inf).amin(1), logits.masked_fill(~kept, -torch.inf).amax(1)
    assert ((logits >= least[:, None]) & (logits <= most[:, None])).eq(kept).all()
    # Typical tokens alone leave out likelier ones too.
    assert (most == logits.amax(1)).all() == ("typical_p" not in filters)
    if "top_k" in filters and len(filters) == 1:
        assert (kept.sum(1) == 5).all()


def test_with_a_schedule_too():
    decoding = DecodingStrategy.parse("cyclic:amplitude=4,period=12,phase=any", TOKENIZER, ("wait", "back"))
    model = llama().eval()
    experience, batch = sample(model, FILTERS[-1], decoding)
    ratio = (
        completion_logprob(model, batch, 0.9, **experience.replay(batch))
        - experience.packed(experience.rolls.logp, batch)
    ).exp()
    torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=3e-5)


def test_rows_change_nothing_and_padding_is_empty():
    model = llama().eval()
    whole = sample(model, FILTERS[1])[0].rolls
    counts = whole.kept.counts().view(whole.tokens.shape)
    assert torch.equal(counts > 0, whole.learned())
    for rows in (1, 7):
        part = sample(model, FILTERS[1], rows=rows)[0].rolls
        assert torch.equal(part.tokens, whole.tokens)
        assert all(map(torch.equal, part.kept, whole.kept))
        torch.testing.assert_close(part.kept_mass, whole.kept_mass)


def test_nothing_is_recorded_where_nothing_is_cut():
    rolls = sample(llama().eval(), {})[0].rolls
    assert rolls.kept is None
    assert rolls.kept_mass is None


@pytest.mark.parametrize("name", ["plain", "gemma2", "cohere", "twisted"])
def test_heads_of_every_form(name):
    """Log-probs, entropies, loss and gradient are those of the model's own logits, cut off by hand."""
    model = MODELS[name][0]().eval()
    head, batch = Head(model), collate(PAIRS, range(3), pad=0)
    n = len(batch.completion)
    logits = model(input_ids=batch.inputs, attention_mask=batch.attention, use_cache=False).logits.double()[batch.mask]
    mask = torch.rand(logits.shape, generator=torch.Generator().manual_seed(0)) < 0.3
    mask[torch.arange(n), batch.completion] = True
    delta, ids = torch.linspace(-1, 1, n), torch.tensor([2, 8, 9])
    replay = {"delta": delta, "token_set": ids, "kept": KeptTokens.from_mask(mask)}
    moved = logits.index_add(1, ids, delta.double()[:, None].expand(n, 3)).masked_fill(~mask, -torch.inf)
    every = torch.log_softmax(moved / 0.8, -1)
    logp = every.gather(1, batch.completion[:, None]).squeeze(1)
    got, entropy = head.logprob(head.hidden(batch), batch.completion, 0.8, entropy=True, **replay)
    torch.testing.assert_close(got, logp.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(entropy, -torch.xlogy(every.exp(), every.exp()).sum(1).float(), rtol=1e-4, atol=1e-4)
    loss, _ = head.policy_loss(
        PolicyOptions(kind="gpg", normalizer=("token", 1.0)), head.hidden(batch), batch.completion, logp.float(),
        torch.tensor([1.0, -2.0, 0.5]), batch.cu_seqlens, 0.8, replay=replay,
    )  # fmt: skip
    advantages = torch.tensor([1.0, -2.0, 0.5]).repeat_interleave(batch.cu_seqlens.diff())
    (want,) = torch.autograd.grad(-(logp * advantages).sum(), model.get_input_embeddings().weight)
    (grad,) = torch.autograd.grad(loss, model.get_input_embeddings().weight)
    torch.testing.assert_close(grad, want, rtol=1e-4, atol=1e-5)


def test_episodes():
    """Tokens that the environment wrote have no sets; the others are where they were drawn."""
    model = llama().eval()
    episodes = play(
        model, TOKENIZER, Asks, EXAMPLES[:3], turns=3, ends=[TOKENIZER.eos_token_id, 5], copies=4, limit=500,
        max_new_tokens=6, temperature=0.9, generator=torch.Generator().manual_seed(0), record=True, **FILTERS[-1],
    )  # fmt: skip
    rolls, batch = episodes.rolls, collate(episodes.pairs, range(12), pad=0)
    assert not rolls.sampled[rolls.tokens != 0].all()
    assert torch.equal(rolls.kept.counts().view(rolls.tokens.shape) > 0, rolls.learned())
    replay = Experience(episodes.pairs, rolls, torch.zeros(12), 0.9).replay(batch)
    logp = completion_logprob(model, batch, 0.9, **replay)
    torch.testing.assert_close(logp, rolls.logp[rolls.learned()], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("options", [{}, {"environment": Asks, "reward": VERIFIER, "turns": 2}], ids=["plain", "turns"])
def test_killed_and_resumed_bit_for_bit(tmp_path, options):
    def stage():
        return rlvr(steps=3, save_every=1, kl_coef=0.1, inner_epochs=2, **FILTERS[-1], **options)

    whole = weights(Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "whole"))
    with pytest.raises(Killed):
        Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "run", report=killer(2))
    assert same(whole, weights(Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "run")))
    lines = [line for line in log_of(tmp_path / "whole") if "loss" in line]
    assert all(0.3 < line["kept"] < 1 for line in lines)


def test_the_first_step_has_ratio_one_and_no_kl(tmp_path):
    """The reference's log-probs are of the same support."""
    for name, options in (("cut", FILTERS[0]), ("plain", {})):
        Recipe([rlvr(steps=1, kl_coef=0.1, mask_truncated=True, **options)]).run(llama(), TOKENIZER, tmp_path / name)
    (line,), (plain,) = ([x for x in log_of(tmp_path / name) if "loss" in x] for name in ("cut", "plain"))
    assert line["ratio_max"] == pytest.approx(1, abs=1e-4)
    assert line["ref_kl"] == pytest.approx(0, abs=1e-6)
    assert "kept" not in plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 1.2}, "rlvr.top_p: expected 0 to 1"),
        ({"top_k": -1}, r"rlvr.top_k: expected 0 \(off\)"),
        ({"min_p": 2.0}, "rlvr.min_p: expected 0"),
        ({"top_k": 1}, "rlvr.top_k: 1 leaves the likeliest token alone"),
        ({"top_p": 0.0}, "rlvr.top_p: 0 leaves the likeliest token alone"),
        ({"top_h": 1.5}, "rlvr.top_h: expected 0"),
        ({"typical_p": 0.0}, "rlvr.typical_p: expected above 0"),
        ({"epsilon_cutoff": 1.0}, "rlvr.epsilon_cutoff: expected 0"),
        ({"eta_cutoff": -0.1}, "rlvr.eta_cutoff: expected 0"),
        ({"advantage": "tree", "branches": 2, "eta_cutoff": 0.1}, "rlvr.eta_cutoff: .*'tree' does not follow it"),
        ({"advantage": "segment", "logit_bias": {"wait": 1.0}}, "rlvr.logit_bias: .*'segment' does not follow it"),
        ({"advantage": "segment", "frequency": 0.1}, "rlvr.frequency: .*'segment' does not follow it"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(TrainError, match=message):
        rlvr(**options).check()
