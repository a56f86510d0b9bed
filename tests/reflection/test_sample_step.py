"""`sample_step`: the same kept sets as sorting, the same distribution as transformers' processors, draws that depend on
nothing but the request."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import (
    EpsilonLogitsWarper,
    EtaLogitsWarper,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)
from transformers.generation import TopHLogitsWarper

import warpup
from tests.support.cases import OPS
from warpup.reflection import ReflectionBatch, ReflectionSchedule, ReflectionTokens
from warpup.reflection.sample_step import GENERATED, IN_PROMPT, mark_seen, reference_sample_step
from warpup.reflection.sampling import sampling_row

CASE = OPS["sample_step"]
TOKENS = ReflectionTokens((1, 2), (3,), (4,), (5,), (6,))
INF, NAN = math.inf, math.nan


def normal(*shape, scale=2.0, seed=0):
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch_of(rows, device, schedule=None, seeds=None, **options):
    batch = ReflectionBatch(rows, schedule, tokens=TOKENS, device=device)
    for r in range(rows):
        batch.set_sampling([r], seed=seeds[r] if seeds else r, **options)
    return batch


# ---- what is kept ---------------------------------------------------------------------------------------------------


@given(
    st.integers(1, 40),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
    st.integers(0, 45),
    st.sampled_from([0.0, 0.1, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.05, 0.9, 1.0]),
    st.sampled_from([0.1, 1.0, 3.0]),
    st.sampled_from(["normal", "equal", "few", "huge", "impossible"]),
    st.integers(0, 99),
)
def test_kept_set_is_that_of_sorting(backend, vocab, dtype, top_k, top_p, min_p, temperature, kind, seed):
    """Token, log-probs and mass against the reference, which sorts; ties, huge and impossible logits among them."""
    logits = normal(3, vocab, seed=seed)
    logits = {
        "normal": logits, "equal": logits.new_full((3, vocab), 1.5), "few": (logits / 2).round(), "huge": logits * 1e6,
        "impossible": logits.masked_fill(normal(3, vocab, seed=seed + 1) > 1, -INF),
    }[kind].to(backend.device, dtype)  # fmt: skip
    batch = batch_of(3, backend.device, top_k=top_k, top_p=top_p, min_p=min_p, temperature=temperature)
    got = batch.sample(logits)
    want = reference_sample_step(logits.double(), batch.tables, torch.arange(3))
    assert got.token.tolist() == want.token.tolist()
    for name in ("logp_raw", "logp", "kept", "delta", "temperature"):
        g, w = getattr(got, name), getattr(want, name)
        torch.testing.assert_close(g.double(), w, rtol=1e-5, atol=2e-5, msg=lambda m, name=name: f"{name}: {m}")


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("vocab", [1, 2047, 2048, 5003])
@pytest.mark.parametrize(
    "options",
    [{"top_k": 600, "top_p": 0.9}, {"top_k": 50, "top_p": 0.9, "min_p": 0.01}, {"top_k": 512}, {"top_k": 9},
     {"top_p": 0.8}, {"top_p": 0.99, "temperature": 9.0}, {"top_k": 3, "temperature": 0.01}],
)  # fmt: skip
def test_blocks(backend, vocab, options, ties):
    """Rows over several blocks of both backends; few tokens left and many, which the CUDA backend handles apart. The
    CPU takes the few from stripes of the row, found by their maxima."""
    batch = batch_of(4, backend.device, **options)
    logits = normal(4, vocab).to(backend.device)
    logits = (4 * logits).round() / 4 if ties else logits
    got, want = batch.sample(logits), reference_sample_step(logits.double(), batch.tables, torch.arange(4))
    assert got.token.tolist() == want.token.tolist()
    torch.testing.assert_close(got.kept.double(), want.kept, rtol=1e-5, atol=0)


@pytest.mark.parametrize("kind", ["equal", "neighbors", "outlier", "tiny", "wide"])
def test_a_nucleus_of_any_range(backend, kind):
    """The least logit that is kept is searched for between the largest one and the least that may be."""
    logits = normal(2, 3000)
    steps = torch.randint(600, logits.shape, generator=torch.Generator().manual_seed(3))
    logits = {
        "equal": torch.full_like(logits, 1.5), "neighbors": 1.5 + steps * 2.0**-23, "outlier": logits / 1000,
        "tiny": logits * 1e-30, "wide": logits * 1e4,
    }[kind]  # fmt: skip
    if kind == "outlier":
        logits[:, 7] = 9.0
    logits = logits.to(backend.device)
    batch = batch_of(2, backend.device, top_p=0.7123, temperature=1e4 if kind == "wide" else 1.0)
    got, want = batch.sample(logits), reference_sample_step(logits.double(), batch.tables, torch.arange(2))
    torch.testing.assert_close(got.least.double(), want.least, rtol=0, atol=0)
    torch.testing.assert_close(got.kept.double(), want.kept, rtol=1e-5, atol=0)


def test_transformers_keeps_the_same(backend):
    """Their processors in their order leave the tokens that ours does: the mass left is the same, and so is each
    log-prob. (They cut a tie at the nucleus's edge by the order of a sort; there is none here.)"""
    rows, vocab = 8, 400
    logits = normal(rows, vocab, scale=3.0)
    ids = torch.randint(vocab, (rows, 20), generator=torch.Generator().manual_seed(1))
    theirs = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.3), TemperatureLogitsWarper(0.8), TopKLogitsWarper(60),
            TopPLogitsWarper(0.9), MinPLogitsWarper(0.02),
        ]
    )  # fmt: skip
    seen = torch.zeros(rows, vocab, dtype=torch.uint8)
    mark_seen(seen, torch.arange(rows), ids, IN_PROMPT)
    batch = batch_of(rows, backend.device, temperature=0.8, top_k=60, top_p=0.9, min_p=0.02, repetition=1.3)
    processed = torch.log_softmax(theirs(ids, logits.clone()), -1)
    step = batch.sample(logits.to(backend.device), seen=seen.to(backend.device))
    token = step.token.cpu()
    assert processed.gather(1, token[:, None]).isfinite().all()
    torch.testing.assert_close(step.logp.cpu(), processed.gather(1, token[:, None])[:, 0], rtol=0, atol=2e-6)
    plain = torch.log_softmax(logits, -1).gather(1, token[:, None])[:, 0]
    torch.testing.assert_close(step.logp_raw.cpu(), plain, rtol=0, atol=2e-6)


WARPERS = {  # transformers', in the order in which its generate puts them
    "top_h": TopHLogitsWarper,
    "top_k": TopKLogitsWarper,
    "top_p": TopPLogitsWarper,
    "min_p": MinPLogitsWarper,
    "typical_p": TypicalLogitsWarper,
    "epsilon_cutoff": EpsilonLogitsWarper,
    "eta_cutoff": EtaLogitsWarper,
}


@pytest.mark.parametrize(
    "options",
    [
        *({"typical_p": p} for p in (0.05, 0.2, 0.5, 0.9, 0.999)), *({"top_h": h} for h in (0.05, 0.3, 0.6, 0.95)),
        {"epsilon_cutoff": 0.003}, {"epsilon_cutoff": 0.9}, {"eta_cutoff": 0.003}, {"eta_cutoff": 0.6},
        {"top_k": 30, "typical_p": 0.7}, {"top_h": 0.7, "top_p": 0.8}, {"typical_p": 0.3, "eta_cutoff": 0.1},
        {"top_h": 0.9, "top_k": 40, "top_p": 0.95, "min_p": 0.01, "typical_p": 0.8, "epsilon_cutoff": 0.01,
         "eta_cutoff": 0.02},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("vocab", [50, 3000])
def test_each_filter_of_transformers(backend, vocab, options):
    """Their processors leave the tokens that lie between our least and most; in float64, where no edge is a matter of
    rounding, over flat and peaked rows. (At top_h 1 theirs drops a token or not as its two sums of the same numbers are
    rounded.)"""
    logits = normal(12, vocab, scale=1.0).double() * torch.linspace(0.2, 4.0, 12)[:, None]
    theirs = LogitsProcessorList([TemperatureLogitsWarper(0.8)])
    theirs += [warper(options[name]) for name, warper in WARPERS.items() if name in options]
    left = theirs(None, logits.clone()) > -torch.inf
    batch = batch_of(12, backend.device, temperature=0.8, **options)
    step = batch.sample(logits.to(backend.device))
    least, most = step.least.cpu()[:, None], step.most.cpu()[:, None]
    assert torch.equal((logits >= least) & (logits <= most), left)
    mass = torch.softmax(logits / 0.8, -1).where(left, 0.0).sum(-1)
    torch.testing.assert_close(step.kept.cpu(), mass)
    assert left.gather(1, step.token.cpu()[:, None]).all()


def test_penalties_and_bias(backend):
    """The bias, then the penalties as vLLM subtracts them, then the temperature."""
    rows, vocab = 6, 40
    generator = torch.Generator().manual_seed(0)
    logits, bias = normal(rows, vocab), torch.randn(rows, vocab, generator=generator)
    bias[:, ::3] = -torch.inf  # tokens that are not allowed
    counts = torch.randint(3, (rows, vocab), generator=generator).int()
    in_prompt = torch.rand(rows, vocab, generator=generator) < 0.3
    seen = in_prompt * IN_PROMPT + (counts > 0) * GENERATED
    given = {"counts": counts, "bias": bias, "seen": seen.to(torch.uint8)}
    batch = batch_of(rows, backend.device, temperature=0.7, repetition=1.4, frequency=0.3, presence=0.2)
    step = batch.sample(logits.to(backend.device), **{k: v.to(backend.device) for k, v in given.items()})
    z = logits + bias
    z = torch.where(in_prompt | (counts > 0), torch.where(z > 0, z / 1.4, z * 1.4), z)
    z = z - 0.3 * counts - 0.2 * (counts > 0)
    token = step.token.cpu()[:, None]
    want = torch.log_softmax(z / 0.7, -1).gather(1, token)[:, 0]
    torch.testing.assert_close(step.logp.cpu(), want)
    assert (token % 3 != 0).all()


# ---- the distribution -----------------------------------------------------------------------------------------------


def chi_squared_tail(statistic, freedom):
    """The chance of a larger one."""
    return torch.special.gammaincc(torch.tensor(freedom / 2), statistic.float() / 2).item()


def chi_squared(tokens, probabilities):
    """The p-value of counts under probabilities, rare tokens taken together."""
    expected = probabilities.double() * len(tokens)
    counts = torch.bincount(tokens, minlength=len(expected)).double()
    assert counts[expected == 0].sum() == 0, "an impossible token was drawn"
    common = expected >= 5
    expected = torch.cat([expected[common], expected[~common].sum()[None]])
    counts = torch.cat([counts[common], counts[~common].sum()[None]])
    kept = expected > 0
    return chi_squared_tail(((counts - expected)[kept] ** 2 / expected[kept]).sum(), int(kept.sum()) - 1)


@pytest.mark.parametrize("filters", [False, True])
@pytest.mark.parametrize("by", ["seed", "position", "stream"])
def test_same_distribution_as_transformers(by, filters):
    """Draws that differ in the request's seed alone, in the position alone, in the stream alone."""
    draws, vocab = 20000, 60
    logits = normal(vocab)
    options = {"temperature": 0.7, "top_k": 25, "top_p": 0.85} if filters else {"temperature": 1.3}
    theirs = [TemperatureLogitsWarper(options["temperature"])]
    theirs += [TopKLogitsWarper(25), TopPLogitsWarper(0.85)] if filters else []
    p = torch.softmax(LogitsProcessorList(theirs)(None, logits[None].clone()), -1)[0]
    if by == "stream":
        batch = batch_of(1, "cpu", **options)
        tokens = torch.cat([batch.sample(logits[None], stream=k).token for k in range(draws)])
    else:
        batch = ReflectionBatch(draws, tokens=TOKENS)
        batch.tables.sampling[:] = torch.tensor(sampling_row(**options), dtype=torch.float64)
        if by == "seed":
            batch.tables.sampling[:, 8] = torch.arange(draws)
        else:
            batch.tables.state[:, 0, 0] = torch.arange(draws)
        tokens = batch.sample(logits.expand(draws, -1)).token
    assert chi_squared(tokens, p) > 1e-4
    following = torch.stack([tokens[:-1], tokens[1:]], 1)[::2]  # neighbours are independent
    top = p.topk(3).indices
    table = torch.stack([((following[:, :1] == a) & (following[:, 1:] == top)).sum(0) for a in top]).double()
    expected = table.sum(1, keepdim=True) * table.sum(0) / table.sum()
    assert chi_squared_tail(((table - expected) ** 2 / expected).sum(), 4) > 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "filters", [{"top_k": 9}, {"top_p": 0.8}, {"min_p": 0.1}, {"top_k": 30, "top_p": 0.9, "min_p": 0.02}, {}], ids=str
)
def test_the_kept_tokens_by_the_least_logit(backend, dtype, filters):
    """From `least` alone: the set has the mass that was kept, the token is in it, and its renormalised log-prob is the
    one that was drawn at. In bfloat16 many logits are equal: they are kept together."""
    rows, vocab, ids = 50, 700, list(TOKENS.ids)
    schedule = ReflectionSchedule("constant", 1.7, tokens=TOKENS)
    logits = (2 * normal(rows, vocab)).to(backend.device, dtype)
    step = batch_of(rows, backend.device, schedule, temperature=0.9, **filters).sample(logits)
    moved = logits.float()
    moved[:, ids] += step.delta.unsqueeze(1)
    kept = moved >= step.least.unsqueeze(1)
    assert kept.gather(1, step.token.unsqueeze(1)).all()
    torch.testing.assert_close(torch.softmax(moved / 0.9, -1).where(kept, 0.0).sum(1), step.kept)
    logp = torch.log_softmax((moved / 0.9).masked_fill(~kept, -INF), -1).gather(1, step.token.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(logp, step.logp, rtol=1e-5, atol=1e-5)
    if filters:  # a logit that was kept
        assert (moved == step.least.unsqueeze(1)).any(1).all()
    else:
        assert (step.least == -INF).all()
    if filters == {"top_k": 9}:
        smallest = moved.topk(9).values[:, -1:]
        assert torch.equal(kept, moved >= smallest)


def test_rare_tokens_in_a_large_vocabulary():
    """151,936 equal logits: each share of the vocabulary is drawn as often as any other."""
    draws, vocab = 800, 151936
    batch = ReflectionBatch(draws, tokens=TOKENS)
    batch.tables.sampling[:, 8] = torch.arange(draws)
    tokens = batch.sample(torch.zeros(1, vocab).expand(draws, -1)).token
    assert len(tokens.unique()) > draws - 12
    distance = (tokens.sort().values / vocab - torch.arange(draws) / draws).abs().max()
    assert distance * draws**0.5 < 2.2  # Kolmogorov and Smirnov: a larger one has a chance of 1e-4


# ---- what a draw depends on -----------------------------------------------------------------------------------------


def test_neither_row_nor_batch_matters(backend):
    """The same requests in another order, in another batch, and one alone; in other slots."""
    rows, vocab = 12, 700
    schedule = ReflectionSchedule("constant", 2.0, tokens=TOKENS)
    logits = normal(rows, vocab).to(backend.device)
    options = {"top_k": 300, "top_p": 0.95, "temperature": 0.9}
    batch = batch_of(rows, backend.device, schedule, seeds=list(range(100, 100 + rows)), **options)
    want = batch.sample(logits)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1)).to(backend.device)
    got = batch.sample(logits[order], order)
    assert all(torch.equal(g, w[order]) for g, w in zip(got, want, strict=True))
    other = batch_of(1, backend.device, schedule, seeds=[107], **options)
    alone = other.sample(logits[7:8])
    assert all(torch.equal(g, w[7:8]) for g, w in zip(alone, want, strict=True))


def test_seed_position_and_stream_matter(backend):
    logits = torch.zeros(2, 500, device=backend.device)
    batch = batch_of(2, backend.device, seeds=[5, 2**53 - 1])
    tokens = [batch.sample(logits).token.tolist(), batch.sample(logits, stream=1).token.tolist()]
    assert batch.sample(logits).token.tolist() == tokens[0]
    batch.update(batch.sample(logits).token)
    tokens.append(batch.sample(logits).token.tolist())
    assert len({t for pair in tokens for t in pair}) == 6


def test_threads(threads):
    batch = batch_of(64, "cpu", top_k=50, top_p=0.9)
    logits = normal(64, 3000)
    threads(1)
    want = batch.sample(logits)
    for count in (2, 3):
        threads(count)
        assert all(torch.equal(g, w) for g, w in zip(batch.sample(logits), want, strict=True))


def test_logits_stay(backend):
    batch = batch_of(2, backend.device, ReflectionSchedule("constant", 2.0, tokens=TOKENS))
    logits = normal(2, 50).to(backend.device)
    before = logits.clone()
    batch.sample(logits)
    assert torch.equal(logits, before)


# ---- the schedule and the replay ------------------------------------------------------------------------------------


def test_replay_gives_the_log_prob(backend):
    """On what the step reports alone: `replay_logprob` at (delta, T), and the closed form with p_r."""
    schedule = ReflectionSchedule("triangle", 5.0, 12, tokens=TOKENS)
    batch = batch_of(8, backend.device, schedule, temperature=0.8, top_p=0.9)
    batch.begin(range(8), [[7]] * 8, [[8] * n for n in range(8)])
    logits = normal(8, 80).to(backend.device)
    step = batch.sample(logits)
    unfiltered = step.logp + step.kept.log()
    replayed = warpup.replay_logprob(
        logits, step.token, temperature=step.temperature, delta=step.delta, token_set=TOKENS.ids
    )
    torch.testing.assert_close(unfiltered, replayed, rtol=0, atol=2e-6)
    plain = warpup.token_logprob(logits, step.token, temperature=0.8)
    raised = torch.isin(step.token, torch.tensor(TOKENS.ids, device=backend.device)) * step.delta / 0.8
    closed = plain + raised - torch.log1p(torch.expm1(step.delta / 0.8) * step.p_r)
    torch.testing.assert_close(unfiltered, closed, rtol=0, atol=3e-6)


def test_temperature_by_phase(backend):
    """GRPO-ATS: code is greedy, with log-prob 0, the text around it is not."""
    batch = batch_of(3, backend.device, temperature={"think": 1.5, "answer": 0.7, "code": 0.0})
    batch.begin([0, 1, 2], [[3], [3, 4], [3, 5]])
    for r in range(3):
        batch.set_sampling([r], {"think": 1.5, "answer": 0.7, "code": 0.0}, seed=r)
    logits = normal(3, 30).to(backend.device)
    logits[2, [9, 17]] = 50.0
    step = batch.sample(logits)
    assert step.temperature.tolist() == pytest.approx([1.5, 0.7, 0.0])
    assert (step.token[2], step.logp[2], step.kept[2]) == (9, 0.0, 1.0)
    assert step.logp_raw[2].item() == pytest.approx(-math.log(2), abs=1e-5)


def test_emulated_fine_tuning(backend):
    """beta scales what fine-tuning changed in a small model; a constant of a row cancels."""
    large, tuned, base = (normal(4, 50, seed=s).to(backend.device) for s in range(3))
    batch = batch_of(4, backend.device, beta=1.5)
    step = batch.sample(large, tuned=tuned + 3, base=base - 2)
    logp = torch.log_softmax(large + 1.5 * (tuned - base), -1).gather(1, step.token[:, None])[:, 0]
    torch.testing.assert_close(step.logp, logp, rtol=0, atol=3e-6)
    torch.testing.assert_close(step.logp_raw, logp, rtol=0, atol=3e-6)


def test_presence(backend):
    """Generated tokens pay, those of the prompt do not."""
    seen = torch.zeros(1, 4, dtype=torch.uint8, device=backend.device)
    mark_seen(seen, torch.tensor([0], device=backend.device), torch.tensor([[0, 1]], device=backend.device), IN_PROMPT)
    mark_seen(seen, torch.tensor([0], device=backend.device), torch.tensor([1], device=backend.device), GENERATED)
    assert seen.tolist() == [[1, 3, 0, 0]]
    batch = batch_of(1, backend.device, presence=3.0)
    found = {}
    for k in range(60):
        step = batch.sample(torch.zeros(1, 4, device=backend.device), seen=seen, stream=k)
        found[step.token.item()] = step.logp.item()
    total = 3 + math.exp(-3)
    assert found[0] == found[2] == pytest.approx(-math.log(total), abs=1e-6)
    assert found.get(1, -3 - math.log(total)) == pytest.approx(-3 - math.log(total), abs=1e-6)


def test_continuous_tokens(backend):
    """The mean of K rows of the embedding; K = 1 is the ordinary draw."""
    from warpup.reflection.sample_step import continuous_tokens

    batch = batch_of(5, backend.device)
    logits, embedding = normal(5, 40).to(backend.device), normal(40, 6, seed=3).to(backend.device)
    slots = torch.arange(5, device=backend.device)
    mixed, steps = continuous_tokens(logits, batch.tables, slots, embedding, 4)
    torch.testing.assert_close(mixed, embedding[steps.token].mean(1))
    assert steps.token.shape == steps.logp.shape == (5, 4)
    one, single = continuous_tokens(logits, batch.tables, slots, embedding, 1)
    assert torch.equal(single.token[:, 0], batch.sample(logits).token)
    assert torch.equal(one, embedding[single.token[:, 0]])


# ---- special values -------------------------------------------------------------------------------------------------


def test_impossible_and_poisoned_rows(backend):
    logits = normal(5, 30).to(backend.device)
    logits[0] = -INF
    logits[1, 7], logits[2, 7] = NAN, INF
    logits[3, 1:] = -INF
    for options in ({}, {"top_k": 3, "top_p": 0.5}, {"temperature": 0.0}):
        step = batch_of(5, backend.device, **options).sample(logits)
        assert step.token[:4].tolist() == [0, 0, 0, 0]
        assert step.logp[0] == step.logp_raw[0] == step.kept[0] == 0
        assert step.logp[1:3].isnan().all()
        assert step.logp_raw[1:3].isnan().all()
        assert step.logp[3] == step.logp_raw[3] == 0
        assert step.kept[3:].isfinite().all()
    zeros = torch.zeros(3, 30, device=backend.device)
    bias = zeros.clone()
    bias[0, 7], bias[1, 7], bias[2] = NAN, INF, -INF  # what is added is as what was there
    for options in ({}, {"top_k": 3}, {"typical_p": 0.5}, {"temperature": 0.0}):
        step = batch_of(3, backend.device, **options).sample(zeros, bias=bias)
        assert step.token.tolist() == [0, 0, 0]
        for column in (step.logp, step.logp_raw, step.kept, step.p_r, step.least, step.most):
            assert column.isnan().tolist() == [True, True, False]
            assert column[2] == 0
    banned = batch_of(1, backend.device, ReflectionSchedule("constant", -INF, tokens=ReflectionTokens((0, 1))))
    assert banned.sample(torch.zeros(1, 2, device=backend.device)).token.item() == 0
    assert banned.sample(torch.zeros(1, 3, device=backend.device)).token.item() == 2


def test_no_rows_and_rows_of_nobody(backend):
    batch = batch_of(2, backend.device)
    assert batch.sample(torch.zeros(0, 9, device=backend.device)).token.shape == (0,)
    step = batch.sample(torch.zeros(2, 9, device=backend.device), torch.tensor([-1, 0], device=backend.device))
    assert [column[0].item() for column in step] == [-1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert step.token[1] == batch.sample(torch.zeros(1, 9, device=backend.device)).token[0]
    assert step.logp[1].item() == pytest.approx(-math.log(9), abs=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, r"temperature: expected 0 or a number from 1.08e-19 to 9.22e\+18"),
        ({"temperature": 1e-39}, r"temperature: expected 0 or a number from .*, got 1e-39"),  # NaN and token 0 it gave
        ({"temperature": {"think": 1.0}}, "temperature: expected"),
        ({"temperature": NAN}, "temperature: expected"),
        ({"top_k": -1}, r"top_k: expected 0 \(off\) or a whole number above, got -1"),
        ({"top_k": 0.5}, r"top_k: expected 0 \(off\) or a whole number above, got 0.5"),
        ({"top_p": 1.5}, r"top_p: expected 0 to 1 \(off\), got 1.5"),
        ({"min_p": -0.1}, "min_p: expected"),
        ({"repetition": 0.0}, "repetition: expected a number from"),
        ({"repetition": 1e-46}, "repetition: expected a number from .*, got 1e-46"),
        ({"presence": INF}, "presence: expected a finite float32"),
        ({"presence": 1e39}, r"presence: expected a finite float32, got 1e\+39"),
        ({"frequency": INF}, "frequency: expected a finite float32"),
        ({"top_h": 1.1}, r"top_h: expected 0 \(off\) to 1, got 1.1"),
        ({"typical_p": 0.0}, r"typical_p: expected above 0 to 1 \(off\), got 0.0"),
        ({"epsilon_cutoff": 1.0}, r"epsilon_cutoff: expected 0 \(off\) to below 1, got 1.0"),
        ({"eta_cutoff": -0.1}, "eta_cutoff: expected"),
        ({"temperature": 0.0, "typical_p": 0.5}, "temperature 0 takes the likeliest token"),
        ({"seed": 2**53}, "seed: expected an integer from 0"),
        ({"seed": 0.5}, "seed: expected an integer from 0"),
        ({"beta": NAN}, "beta: expected a finite float32"),
        ({"beta": 1e39}, "beta: expected a finite float32"),
        ({"temperature": 0.0, "top_k": 3}, "temperature 0 takes the likeliest token, so they have no effect"),
        ({"temperature": 0.0, "top_p": 0.5}, "temperature 0 takes the likeliest token"),
        ({"temperature": 0.0, "min_p": 0.5}, "temperature 0 takes the likeliest token"),
    ],
)
def test_wrong_sampling(options, message):
    with pytest.raises(ValueError, match=message):
        batch_of(1, "cpu", **({"seeds": [options.pop("seed")]} if "seed" in options else {}), **options)


def test_wrong_calls():
    batch, logits = batch_of(2, "cpu"), torch.zeros(2, 9)
    with pytest.raises(ValueError, match="tuned and base are given together"):
        batch.sample(logits, tuned=logits)
    with pytest.raises(ValueError, match="base must be float32, got float64"):
        batch.sample(logits, tuned=logits, base=logits.double())
    with pytest.raises(ValueError, match=r"seen must have shape \(2, 9\), got \(2, 8\)"):
        batch.sample(logits, seen=torch.zeros(2, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"slots\[1\] = 2 is outside"):
        batch.sample(logits, torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="no vocabulary"):
        batch.sample(torch.zeros(2, 0))
    for options in ({"repetition": 1.2}, {"presence": 0.5}):
        with pytest.raises(ValueError, match="slot 0 has a repetition or presence penalty, which needs seen, got None"):
            batch_of(2, "cpu", **options).sample(logits)
    with pytest.raises(ValueError, match=r"slot 0 has beta 0\.5, which scales tuned - base, got None"):
        batch_of(2, "cpu", beta=0.5).sample(logits)
    with pytest.raises(ValueError, match="count must be at least 1, got 0"):
        warpup.continuous_tokens(logits, batch.tables, torch.arange(2), torch.zeros(9, 3), 0)
    for column, value, message in (
        (0, -1, "temperature must be above 0, got -1, which is not 0, in slot 1"),
        (2, 1e-39, r"temperature must be in \[1.0842e-19, .* got 1e-39, which is not 0, in slot 1"),
        (6, 0, "repetition must be above 0, got 0 in slot 1"),
        (7, 1e39, r"presence must be a finite float32, got 1e\+39"),
        (4, -0.5, "top_p must be at least 0, got -0.5 in slot 1"),
    ):
        wrong = batch_of(2, "cpu")
        wrong.tables.sampling[1, column] = value
        with pytest.raises(ValueError, match=message):
            wrong.sample(logits)


def test_mark_seen_of_no_request(backend):
    """What `sample_step` gives for a row of no request (slot -1, token -1) marks nothing, beside one that does."""
    seen = torch.zeros(3, 5, dtype=torch.uint8, device=backend.device)
    mark_seen(seen, *(torch.tensor(x, device=backend.device) for x in ([-1, 0, 2, 1], [0, 0, -1, 4])))
    mark_seen(seen, *(torch.tensor(x, device=backend.device) for x in ([0, -1], [[0, 1], [0, 2]])), IN_PROMPT)
    assert seen.tolist() == [[3, 1, 0, 0, 0], [0, 0, 0, 0, 2], [0, 0, 0, 0, 0]]
    for wrong in ((seen.long(), [0], [0]), (seen, [0, 1], [0]), (seen.t(), [0], [0])):
        with pytest.raises(ValueError, match="mark_seen"):
            mark_seen(wrong[0], *(torch.tensor(x, device=backend.device) for x in wrong[1:]))
