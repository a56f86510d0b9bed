"""Likelihood losses: closed forms, gradients, masks, denominators."""

import math
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from warpup import (
    after_shared_prefix,
    coverage_loss,
    coverage_weights,
    preference_loss,
    sequence_logprob,
    weighted_nll,
    z_loss,
)


def problem(batch=4, length=7, seed=0, dtype=torch.float64):
    """Log-probs with NaN outside the mask, one empty row."""
    generator = torch.Generator().manual_seed(seed)
    logp = -2 * torch.rand(batch, length, generator=generator, dtype=dtype)
    mask = torch.rand(batch, length, generator=generator) < 0.6
    mask[1] = False
    return logp.masked_fill(~mask, math.nan), mask


def gradient(loss, logp, *arguments, **options):
    logp = logp.detach().requires_grad_()
    value = loss(logp, *arguments, **options)
    return value.detach(), torch.autograd.grad(value, logp)[0]


def each_row(logp, mask):
    return [[v.item() for v, m in zip(*row, strict=True) if m] for row in zip(logp, mask, strict=True)]


# ---- weighted likelihood --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["none", "sequence", "token"])
@pytest.mark.parametrize("name", ["token", "sequence", "constant", 5.0, ("sequence", 3.0)])
def test_weighted_nll_by_hand(shape, name):
    logp, mask = problem()
    weights = {"none": None, "sequence": torch.tensor([0.5, 9.0, 2.0, 3.0]), "token": torch.arange(28.0).view(4, 7)}[
        shape
    ]
    spread = torch.ones(4, 7) if weights is None else weights.view(4, -1).expand(4, 7)
    sums, counts = [], mask.sum(1).tolist()
    for row, kept, weight in zip(logp, mask, spread, strict=True):
        sums.append(-sum(p.item() * w.item() for p, m, w in zip(row, kept, weight, strict=True) if m))
    means = sum(s / max(n, 1) for s, n in zip(sums, counts, strict=True))
    want = {
        "token": sum(sums) / sum(counts), "sequence": means / 3, "constant": sum(sums) / 28, 5.0: sum(sums) / 5,
        ("sequence", 3.0): means / 3,
    }[name]  # fmt: skip
    got, slope = gradient(weighted_nll, logp, mask, weights=weights, normalizer=name)
    assert got.item() == pytest.approx(want)
    assert (slope[~mask] == 0).all()
    assert slope.isfinite().all()


def test_weighted_nll_is_cross_entropy_and_rise_and_step():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 11, generator=generator, dtype=torch.float64)
    targets = torch.randint(11, (3, 5), generator=generator)
    logp = torch.log_softmax(logits, -1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    mask = torch.ones(3, 5)
    want = functional.cross_entropy(logits.view(15, 11), targets.view(15))
    torch.testing.assert_close(weighted_nll(logp, mask), want)

    rewards, tau = torch.tensor([1.0, 0.0, -2.0], dtype=torch.float64), 0.5
    rise = -(torch.exp(rewards / tau) * logp.sum(1)).sum() / 3
    torch.testing.assert_close(weighted_nll(logp, mask, weights=torch.exp(rewards / tau), normalizer=3), rise)

    step = torch.tensor([0, 0, 1, 1, 2])  # STeP: the second step of each row is wrong
    kept = mask.bool() & (step != 1)
    torch.testing.assert_close(weighted_nll(logp, kept), -logp[:, [0, 1, 4]].mean())


@pytest.mark.parametrize("loss", [weighted_nll, lambda logp, mask, **o: coverage_loss(logp, mask, n=4, **o), z_loss])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_micro_batches_with_an_explicit_divisor_add_up(loss, as_tensor):
    logp, mask = problem(6)
    divisor = torch.tensor(7.0) if as_tensor else 7.0
    want, slope = gradient(loss, logp, mask, normalizer=divisor)
    parts = [gradient(loss, logp[i : i + 2], mask[i : i + 2], normalizer=divisor) for i in (0, 2, 4)]
    torch.testing.assert_close(sum(value for value, _ in parts), want)
    torch.testing.assert_close(torch.cat([slope for _, slope in parts]), slope)


@pytest.mark.parametrize("normalizer", ["token", "sequence", "constant"])
def test_an_empty_mask_gives_0(normalizer):
    logp, _ = problem()
    nothing = torch.zeros(4, 7)
    for loss in (weighted_nll, z_loss):
        value, slope = gradient(loss, logp, nothing, normalizer=normalizer)
        assert value == 0
        assert (slope == 0).all()
    assert coverage_loss(logp, nothing, n=3) == 0
    assert weighted_nll(logp[:0], nothing[:0], normalizer=normalizer) == 0


def test_gradcheck():
    logp, mask = problem()
    logp = logp.nan_to_num(-1.0).requires_grad_()
    weights = torch.rand(4, 7, dtype=torch.float64)
    for normalizer in ("token", "sequence", "constant", 3.0):
        assert torch.autograd.gradcheck(
            lambda x, n=normalizer: weighted_nll(x, mask, weights=weights, normalizer=n), logp
        )
        assert torch.autograd.gradcheck(lambda x, n=normalizer: z_loss(x, mask, coef=0.3, normalizer=n), logp)
    for average in (False, True):
        assert torch.autograd.gradcheck(lambda x, a=average: sequence_logprob(x, mask, average=a), logp)


def test_sequence_logprob():
    logp, mask = problem()
    for average in (False, True):
        want = [sum(row) / (max(len(row), 1) if average else 1) for row in each_row(logp, mask)]
        assert sequence_logprob(logp, mask, average=average).tolist() == pytest.approx(want)


# ---- pass@n ---------------------------------------------------------------------------------------------------------


@given(st.floats(-800, 0), st.integers(1, 10_000))
def test_coverage_weights_are_exact(log_p, n):
    with localcontext() as context:
        context.prec = 400
        p = Decimal(log_p).exp()
        want = n * p * (1 - p) ** (n - 1) / (1 - (1 - p) ** n) if n > 1 else Decimal(1)
    got = coverage_weights(torch.tensor([log_p], dtype=torch.float64), n).item()
    assert got == pytest.approx(float(want), rel=1e-12 * n, abs=1e-300)
    single = coverage_weights(torch.tensor([log_p]), n).item()
    near = coverage_weights(torch.tensor([log_p]).double(), n).item()
    assert single == pytest.approx(near, rel=1e-6, abs=1e-37)


@pytest.mark.parametrize("n", [1, 2, 8, 64])
def test_coverage_loss_has_the_gradient_of_pass_at_n(n):
    logp, mask = problem()
    _, got = gradient(coverage_loss, logp, mask, n=n)

    def pass_at_n(logp):
        p = logp.masked_fill(~mask, 0).sum(1)[mask.any(1)].exp()
        return -torch.log(1 - (1 - p) ** n).mean()

    torch.testing.assert_close(got, gradient(pass_at_n, logp)[1])
    if n == 1:
        value = coverage_loss(logp, mask, n=1)
        assert value.item() == pytest.approx(-sum(map(sum, each_row(logp, mask))) / 3)


def test_coverage_leaves_what_is_sure_alone():
    weights = coverage_weights(torch.tensor([0.0, -1e-6, -math.log(16), -40.0, -1e4]), 16)
    assert weights[0] == 0
    assert weights[1] < 1e-30
    assert 0.5 < weights[2] < 0.7  # p = 1/n: (1-p)^(n-1) / (1 - (1-p)^n)
    assert weights[3:].tolist() == [1, 1]


def test_z_loss():
    lse = torch.tensor([[3.0, -2.0, math.nan]], dtype=torch.float64)
    value, slope = gradient(z_loss, lse, torch.tensor([[1, 1, 0]]))
    assert value.item() == pytest.approx(1e-4 * (9 + 4) / 2)
    assert slope[0].tolist() == pytest.approx([3e-4, -2e-4, 0])


# ---- pairs ----------------------------------------------------------------------------------------------------------


def test_a_shared_prefix_changes_nothing_but_is_out_of_the_masks():
    chosen, rejected = torch.tensor([[5, 6, 7, 8, 0], [1, 2, 3, 4, 4]]), torch.tensor([[5, 6, 9, 0], [4, 2, 3, 4]])
    masks = torch.tensor([[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]), torch.tensor([[0, 1, 1, 0], [0, 1, 1, 1]])
    steps = after_shared_prefix(chosen, rejected, *masks)
    assert steps[0].tolist() == [[0, 0, 1, 1, 0], [0, 1, 1, 1, 1]]
    assert steps[1].tolist() == [[0, 0, 1, 0], [0, 1, 1, 1]]
    whole = torch.arange(10.0).double().view(2, 5), torch.arange(8.0).double().view(2, 4) ** 2
    whole[1][0, :2] = whole[0][0, :2]  # the same prefix has the same log-probs
    with_prefix, without = (
        preference_loss(*(sequence_logprob(logp, mask) for logp, mask in zip(whole, chosen_masks, strict=True)))[0]
        for chosen_masks in (masks, steps)
    )
    torch.testing.assert_close(with_prefix, without)


def test_one_graph():
    logp, mask = problem()
    for loss in (
        lambda: weighted_nll(logp, mask, weights=torch.ones(4), normalizer="sequence"),
        lambda: coverage_loss(logp, mask, n=8),
        lambda: z_loss(logp, mask),
    ):
        torch.testing.assert_close(torch.compile(loss, fullgraph=True, backend="eager")(), loss())


# ---- messages -------------------------------------------------------------------------------------------------------

ROW, TABLE = torch.zeros(3), torch.zeros(3, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: weighted_nll(TABLE.bfloat16(), TABLE), "logp must be float32 or float64, got torch.bfloat16"),
        (lambda: weighted_nll(TABLE, TABLE[:2]), r"one shape \(B, T\), got \(3, 4\) and \(2, 4\)"),
        (lambda: weighted_nll(ROW, ROW), r"one shape \(B, T\), got \(3,\)"),
        (lambda: weighted_nll(TABLE, TABLE, weights=ROW[:2]), r"weights must have shape \(3,\) or \(3, 4\), got \(2,"),
        (lambda: weighted_nll(TABLE, TABLE, normalizer="tokens"), "one of .*'token'.*, got 'tokens'"),
        (lambda: z_loss(TABLE, TABLE, normalizer=0), "normalizer must be above 0, got 0"),
        (lambda: z_loss(TABLE, TABLE, normalizer=ROW), r"normalizer must be one number, got a tensor of shape \(3,\)"),
        (lambda: coverage_loss(TABLE, TABLE, n=0), "n must be at least 1, got 0"),
        (lambda: coverage_loss(TABLE, TABLE, n=2, normalizer="token"), "normalizer must be a number or None, got 'tok"),
        (lambda: coverage_loss(TABLE, TABLE, n=2, normalizer=0.0), "coverage_loss: normalizer must be above 0, got 0"),
        (lambda: after_shared_prefix(TABLE, TABLE, TABLE, TABLE[:1]), r"one B on both sides, got \(3, 4\) and \(1, 4"),
        (lambda: after_shared_prefix(TABLE, TABLE[:1], TABLE, TABLE[:1]), r"rejected_ids .* one B on both sides, got"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
