"""`masked_whiten`, against its definition."""

import math

import pytest
import torch

from tests.advantage.inputs import FLOATS, check, coin, normal
from warpup import masked_whiten
from warpup.advantage.masked_whiten import reference_masked_whiten

NAN = math.nan


@pytest.mark.parametrize("shape", [(1,), (2, 3), (7, 600), (4096,), (2, 4099)])
@pytest.mark.parametrize("dtype", FLOATS)
def test_masked_whiten(backend, shape, dtype):
    for correction in (0, 1):
        for shift_mean in (True, False):
            options = {"x": 3 + normal(*shape, dtype=dtype), "correction": correction, "shift_mean": shift_mean}
            check(masked_whiten, reference_masked_whiten, backend, **options, mask=coin(*shape))


def test_masked_whiten_reads_nothing_outside_the_mask(backend):
    x, mask = normal(5000), coin(5000)
    want = masked_whiten(x.to(backend.device), mask.to(backend.device))
    x[~mask] = NAN
    assert torch.equal(masked_whiten(x.to(backend.device), mask.to(backend.device)), want)


def test_masked_whiten_without_variance(backend):
    """Equal values, one value, none: nothing is divided by rounding noise."""
    x = torch.full((6000,), 0.7, device=backend.device)
    for mask in (torch.ones_like(x), torch.arange(6000, device=backend.device) == 4500, torch.zeros_like(x)):
        for eps in (1e-8, 0.0):
            assert (masked_whiten(x, mask, eps=eps) == 0).all()
            assert torch.equal(masked_whiten(x, mask, shift_mean=False, eps=eps), torch.where(mask != 0, x, 0.0))


def test_masked_whiten_at_an_offset(backend):
    """The mean, near 1e4, is no float32: what rounding takes from it must not show in the result."""
    x = 1e4 + (torch.arange(6000, device=backend.device) % 3 == 0) * 0.25
    got = masked_whiten(x, torch.ones_like(x)).double().cpu()
    assert abs(got.var().item() - 1) < 1e-6
    assert abs(got.mean().item()) < 1e-6


def test_no_gradient(backend):
    x = normal(4, 6).to(backend.device).requires_grad_()
    assert not masked_whiten(x, torch.ones(4, 6, device=backend.device)).requires_grad


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0,)])
def test_empty(backend, shape):
    x = torch.zeros(shape, device=backend.device)
    assert masked_whiten(x, x).shape == shape


X, M = torch.zeros(3, 4), torch.ones(3, 4)
ERRORS = [
    (lambda: masked_whiten(X, M[0]), r"masked_whiten: mask must have shape \(3, 4\), got \(4,\)"),
    (lambda: masked_whiten(X, M, correction=3), r"correction must be 0 or 1, got 3"),
    (lambda: masked_whiten(X, M, eps=-1.0), r"eps must be at least 0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
