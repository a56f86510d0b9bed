"""The sparse support beyond the contract: equal to the dense mask, sets of any kind, messages, losses on it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import warpup
from tests.support.cases import OPS, upcast
from warpup import KeptTokens, linear_logprob, linear_policy_loss, replay_logprob
from warpup.logprob import kept as kept_module
from warpup.policy.linear_policy_loss import reference_linear_policy_loss

CASE = OPS["kept_logits"]
EXTRAS = {"entropy": True, "lse": True, "sum_p2": True}


def problem(dtype=torch.float64, rows=7, width=16, vocab=61, share=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(rows, vocab, generator=generator) < share
    targets = torch.randint(vocab, (rows,), generator=generator)
    mask[torch.arange(rows), targets] = True
    hidden, weight = torch.randn(rows, width, generator=generator), torch.randn(vocab, width, generator=generator) / 4
    return {"hidden": hidden.to(dtype), "weight": weight.to(dtype), "targets": targets}, mask


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_equals_the_dense_mask(dtype):
    x, mask = problem(dtype)
    x |= {"temperature": 0.7, "delta": 1.5, "token_set": [0, 4, 60], **EXTRAS}
    CASE.check({**x, "bias": torch.randn(61).to(dtype), "kept": KeptTokens.from_mask(mask)})
    if dtype == torch.float64:
        for got, want in zip(
            linear_logprob(**x, kept=KeptTokens.from_mask(mask)), linear_logprob(**x, kept_mask=mask), strict=True
        ):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


@given(
    rows=st.sampled_from([0, 1, 2, 33]), vocab=st.sampled_from([1, 2, 300]), share=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 2**20), dtype=st.sampled_from([torch.float32, torch.float16, torch.float64]),
)  # fmt: skip
@settings(max_examples=30)
def test_sizes(rows, vocab, share, seed, dtype):
    x, mask = problem(dtype, rows, 5, vocab, share, seed)
    if rows:
        mask[seed % rows] = False  # a row without a token
    x |= {"bias": torch.zeros(vocab, dtype=dtype), "kept": KeptTokens.from_mask(mask), **EXTRAS}
    # The rule of the dense operator's test: the library adds a product up in another order for another shape.
    want = CASE.run(upcast(x), CASE.reference)
    for got, naive, w in zip(CASE.run(x), CASE.run(x, CASE.reference), want, strict=True):
        if w.numel():
            error, plain = ((t.double() - w).abs().max() for t in (got, naive))
            roundings = 4 if got.element_size() == 2 else 64
            assert error <= 2 * plain + roundings * torch.finfo(got.dtype).eps * w.abs().max().clamp_min(1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_16_bits_in_several_pieces(monkeypatch, dtype):
    """Five gathered rows of the weight at a time, through the middle of sets and over rows without a token."""
    x, mask = problem(dtype)
    mask[[2, 3]] = False
    x |= {"bias": torch.randn(61).to(dtype), "kept": KeptTokens.from_mask(mask)}
    whole = CASE.run(x)
    monkeypatch.setattr(kept_module, "GATHERED_BYTES", {"cpu": 4 * 16 * 5})
    CASE.check(x)
    for got, want in zip(CASE.run(x), whole, strict=True):
        torch.testing.assert_close(got, want)


def test_logits_of_no_dense_array():
    """4096 rows of two million columns, of which five are kept: dense logits would be 33 GB."""
    rows, vocab = 4096, 2_000_000
    ids = torch.arange(rows * 5).view(rows, 5) * 97
    kept = KeptTokens(ids.view(-1).int(), torch.arange(rows + 1) * 5)
    hidden, weight = torch.randn(rows, 2, requires_grad=True), torch.randn(vocab, 2)
    logp = linear_logprob(hidden, weight, ids[:, 2], kept=kept)
    want = torch.log_softmax((weight[ids] @ hidden.unsqueeze(2)).squeeze(2), 1)[:, 2]
    torch.testing.assert_close(logp, want)
    got, expected = (torch.autograd.grad(v.sum(), hidden)[0] for v in (logp, want))
    torch.testing.assert_close(got, expected)


def test_a_pair_with_leading_dimensions():
    x, mask = problem(rows=6)
    whole = KeptTokens.from_mask(mask)
    want = linear_logprob(**x, kept=whole)
    shaped = {"hidden": x["hidden"].view(2, 3, -1), "weight": x["weight"], "targets": x["targets"].view(2, 3)}
    got = linear_logprob(**shaped, kept=(whole.token_ids.long(), whole.offsets.int()))
    assert torch.equal(got, want.view(2, 3))


def test_outside_the_set_and_without_a_set():
    """As with the mask: a target outside has logp -inf, a row without a token gives zeros; neither is NaN backward."""
    x, mask = problem(rows=3)
    mask[0, x["targets"][0]], mask[1] = False, False
    results = []
    for option in ({"kept": KeptTokens.from_mask(mask)}, {"kept_mask": mask}):
        hidden = x["hidden"].clone().requires_grad_()
        logp, entropy = linear_logprob(hidden, x["weight"], x["targets"], entropy=True, **option)
        results.append((logp, entropy, torch.autograd.grad((logp, entropy), hidden, (torch.ones(3).double(),) * 2)[0]))
    (logp, _, grad), _ = results
    assert logp[0] == -math.inf
    assert logp[1] == 0
    assert grad.isfinite().all()
    assert grad[0].abs().sum() > 0
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_replay_from_logits():
    x, mask = problem()
    kept = KeptTokens.from_mask(mask)
    options = {"temperature": 0.5 + torch.rand(7), "delta": torch.randn(7), "token_set": [1, 2], **EXTRAS}
    results = []
    for option in ({"kept": kept}, {"kept_mask": mask}):
        logits = (x["hidden"] @ x["weight"].T).requires_grad_()
        found = replay_logprob(logits, x["targets"], **options, **option)
        results.append((*found, *torch.autograd.grad([f.sum() for f in found], logits)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    assert (results[0][-1][~mask] == 0).all()


def test_a_row_of_impossible_tokens():
    logits = torch.tensor([[-math.inf, -math.inf, 1.0], [0.5, -math.inf, 1.0]], requires_grad=True)
    kept = KeptTokens(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 2, 4]))
    logp, lse = replay_logprob(logits, torch.tensor([0, 0]), kept=kept, lse=True)
    assert logp.tolist() == [0, 0]
    assert lse.tolist() == [0, 0.5]
    (grad,) = torch.autograd.grad(logp.sum() + lse.sum(), logits)
    assert grad.tolist() == [[0, 0, 0], [1, 0, 0]]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_rows_that_do_not_count_have_no_gradient(value, softcap):
    """Through every result: the first row has no logit above -inf or is ignored, whatever is in it."""
    logits = torch.tensor([[value, value], [0.5, 1.0]], requires_grad=True)
    targets = torch.tensor([0 if value == -math.inf else -100, 1])
    kept = KeptTokens.from_mask(torch.ones(2, 2, dtype=torch.bool))
    results = []
    for option in ({"kept": kept}, {}):
        found = replay_logprob(logits, targets, softcap=softcap, **option, **EXTRAS)
        results.append((*found, *torch.autograd.grad(sum(f.sum() for f in found), logits)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    assert results[0][-1][0].tolist() == [0, 0]


@pytest.mark.parametrize("kind", ["grpo", "gspo", "cispo"])
def test_policy_loss(kind):
    """From hidden states on the kept tokens alone, of a kind of tokens and of one of sequences; a row outside the mask
    needs none."""
    x, kept_mask = problem(rows=12)
    mask = torch.rand(2, 6) < 0.8
    mask[0, 0] = False
    kept_mask[0] = False
    options = {"kept": KeptTokens.from_mask(kept_mask), "temperature": 0.8, "kind": kind, "entropy_coef": 0.1}
    results = []
    for function in (linear_policy_loss, reference_linear_policy_loss):
        hidden, weight = (x[name].clone().requires_grad_() for name in ("hidden", "weight"))
        with torch.no_grad():
            logp = linear_logprob(hidden, weight, x["targets"], temperature=0.8, kept=options["kept"])
        old = logp.masked_fill(logp == -math.inf, 0.0).view(2, 6) + 0.3 * torch.sin(torch.arange(12.0)).view(2, 6)
        loss, _ = function(
            hidden.view(2, 6, -1), weight, x["targets"].view(2, 6), old, torch.tensor([1.0, -0.5]), mask, **options
        )
        results.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


def test_sets():
    mask = torch.rand(2, 3, 11) < 0.4
    mask[1, 0] = False
    kept = KeptTokens.from_mask(mask)
    assert kept.token_ids.dtype == torch.int32
    assert torch.equal(kept.to_mask(11).view(2, 3, 11), mask)
    rows = torch.tensor([5, 3, 0, 5])
    assert torch.equal(kept.select(rows).to_mask(11), mask.view(6, 11)[rows])
    assert torch.equal(kept.select(rows[:0]).to_mask(11), mask.view(6, 11)[:0])


def test_autocast_and_frozen_weight():
    x, mask = problem(torch.float32)
    hidden, kept = x["hidden"].requires_grad_(), KeptTokens.from_mask(mask)
    with torch.autocast("cpu", torch.bfloat16):
        logp = linear_logprob(hidden, x["weight"], x["targets"], kept=kept)
    rounded = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in x.items()}
    assert torch.equal(logp, linear_logprob(**rounded, kept=kept))
    assert torch.autograd.grad(logp.sum(), hidden)[0].dtype == torch.float32


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept": ([0, 3], [0, 1, 2])}, None),
        ({"kept": ([0, 3], [0, 2])}, r"kept.offsets must be int32 or int64 of shape \(3,\) on cpu, got torch.int64"),
        ({"kept": ([0.0, 3.0], [0, 1, 2])}, "kept.token_ids must be int32 or int64"),
        ({"kept": ([0, 3], [0, 1, 3])}, "kept.offsets must rise from 0 to the number of token_ids, 2"),
        ({"kept": ([0, 3], [0, 3, 2])}, "kept.offsets must rise from 0"),
        ({"kept": ([0, 3], [1, 1, 2])}, "kept.offsets must rise from 0"),
        ({"kept": ([0, 7], [0, 1, 2])}, r"kept.token_ids must be in \[0, 7\), got 7"),
        ({"kept": ([-1, 3], [0, 1, 2])}, r"kept.token_ids must be in \[0, 7\), got -1"),
        ({"kept": ([0, 2, 2], [0, 1, 3])}, "must rise within a row, each id once; row 1 has 2 before 2"),
        ({"kept": ([5, 3], [0, 2, 2])}, "must rise within a row, each id once; row 0 has 5 before 3"),
        ({"kept": ([5, 3], [0, 1, 2])}, None),
        ({"kept_mask": torch.ones(2, 7, dtype=torch.bool)}, "kept_mask has no meaning beside kept"),
        ({"chunk": 4}, "chunk has no meaning beside kept"),
        ({"targets": torch.tensor([0, 7])}, r"targets\[1\] = 7 is outside \[0, 7\)"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"temperature": torch.tensor([1.0, -1.0])}, "temperature must be above 0"),
        ({"delta": 1.0}, "delta needs token_set"),
    ],
)
def test_wrong_input(change, message):
    x = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(7, 4), "targets": torch.tensor([0, 3])}
    x |= {"kept": ([0, 3], [0, 1, 2]), **change}
    x["kept"] = tuple(map(torch.tensor, x["kept"]))
    if message is None:
        linear_logprob(**x)
        return
    with pytest.raises(ValueError, match=f"linear_logprob: .*{message}"):
        linear_logprob(**x)


def test_wrong_beside_it():
    x, mask = problem()
    kept = KeptTokens.from_mask(mask)
    logits = x["hidden"] @ x["weight"].T
    with pytest.raises(ValueError, match="replay_logprob: inplace_backward has no meaning beside kept"):
        replay_logprob(logits, x["targets"], kept=kept, inplace_backward=True)
    with pytest.raises(ValueError, match="linear_policy_loss: chunk has no meaning beside kept"):
        warpup.linear_policy_loss(
            x["hidden"].view(1, 7, -1), x["weight"], x["targets"].view(1, 7), torch.zeros(1, 7), torch.ones(1),
            torch.ones(1, 7), kept=kept, chunk=2,
        )  # fmt: skip


def test_a_mask_is_of_bools():
    with pytest.raises(ValueError, match=r"KeptTokens\.from_mask: mask must be bool, got float32"):
        KeptTokens.from_mask(torch.ones(2, 3))
