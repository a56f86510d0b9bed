"""Boxes through softmax: sound, tight, with a dominating logit, masks, infinities, messages."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cases import OPS
from warpup import interval_softmax

SOFTMAX = OPS["interval_softmax"]
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
INF, NAN = math.inf, math.nan


@given(
    shape=st.sampled_from([(0, 3), (3, 1), (2, 2), (1, 7), (2, 3, 33), (1, 255), (2, 257), (1, 1030)]),
    dtype=st.sampled_from(FLOATS),
    variant=st.sampled_from(["plain", "masked"]),
    scale=st.sampled_from([1.0, 0.0, 20.0]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=30)
def test_softmax_shapes(backend, shape, dtype, variant, scale, seed):
    inputs = SOFTMAX.inputs(shape, dtype, backend.device, seed, variant if shape[-1] > 1 and shape[0] else "plain")
    center = inputs["center"]
    inputs["center"] = torch.where(center == -INF, center, scale * center)
    SOFTMAX.check(inputs)


def test_softmax_is_sound_and_tight(backend):
    generator = torch.Generator().manual_seed(0)
    center = (3 * torch.randn(20, 6, generator=generator, dtype=torch.float64)).to(backend.device)
    radius = torch.rand(20, 6, generator=generator, dtype=torch.float64).to(backend.device)
    c, r = interval_softmax(center, radius)
    inside = (2 * torch.rand(2000, 20, 6, generator=generator, dtype=torch.float64) - 1).to(backend.device)
    for offsets in (inside, inside.sign()):
        p = (center + offsets * radius).softmax(-1)
        assert (p >= c - r - 1e-14).all()
        assert (p <= c + r + 1e-14).all()
    for i in range(6):  # the corner that attains them
        corner = -torch.ones(6, dtype=torch.float64, device=backend.device)
        corner[i] = 1
        torch.testing.assert_close((center + corner * radius).softmax(-1)[:, i], (c + r)[:, i])
        torch.testing.assert_close((center - corner * radius).softmax(-1)[:, i], (c - r)[:, i])
    wide_c, wide_r = interval_softmax(center, 1.5 * radius)
    assert (wide_r > r).all()
    assert ((wide_c - wide_r < c - r) & (wide_c + wide_r > c + r)).all()


@pytest.mark.parametrize("gap", [0.0, 20.0, 60.0, 200.0, 1e4])
def test_softmax_with_a_dominating_logit(backend, gap):
    """What is left beside it is not taken from a sum in which it drowned: relative digits, not absolute ones."""
    center = torch.tensor([[gap, 0.0, -1.0, 0.5], [-1.0, gap, gap, 0.0]], device=backend.device)
    radius = torch.tensor([[0.5, 0.2, 0.1, 0.3], [0.3, 0.5, 0.1, 0.2]], device=backend.device)
    c, r = interval_softmax(center, radius)
    want_c, want_r = (t.float() for t in OPS["interval_softmax"].reference(center.double(), radius.double()))
    torch.testing.assert_close(c, want_c, rtol=2e-5 if gap < 1e3 else 1e-3, atol=1e-37)
    torch.testing.assert_close(r, want_r, rtol=2e-4 if gap < 1e3 else 1e-3, atol=1e-7 if gap else 0)
    # All that is not the largest, in full: 1 - c[0] would be 0 in float32 from a gap of 17 on.
    if 0 < gap < 80:
        assert (c[0, 1:] > 0).all()
        assert (c[0, 1:] / want_c[0, 1:] - 1).abs().max() < 2e-5


def test_softmax_masks_and_no_box(backend):
    center = torch.tensor([[0.0, -INF, 2.0], [-INF, 1.0, -INF], [-INF, -INF, -INF]], device=backend.device)
    radius = torch.tensor([[0.5, 0.0, 0.1], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]], device=backend.device)
    center.requires_grad_()
    c, r = interval_softmax(center, radius)
    assert c[:, 1].tolist() == [0, 1, 0]
    assert c[1].tolist() == [0, 1, 0]
    assert c[2].tolist() == r[2].tolist() == r[1].tolist() == [0, 0, 0]
    (c * torch.arange(3.0, device=backend.device)).sum().backward()
    assert center.grad.isfinite().all()
    assert not center.grad[1:].any()
    plain_c, plain_r = interval_softmax(center[:1], torch.zeros(1, 3, device=backend.device))
    torch.testing.assert_close(plain_c, center[:1].softmax(-1))
    assert not plain_r.any()


INFINITE = [  # center, radius, lower, upper: of the row's probabilities
    ([0, -INF], [1, 0], [1, 0], [1, 0]),
    ([0, -INF], [1, 2], [1, 0], [1, 0]),
    ([3, -INF, 3], [0, 5, 0], [0.5, 0, 0.5], [0.5, 0, 0.5]),
    ([-INF, -INF], [0, 1], [0, 0], [0, 0]),
    ([-INF], [1], [0], [0]),
    ([INF, 0], [0, 1], [1, 0], [1, 0]),
    ([INF, -INF], [1, 1], [1, 0], [1, 0]),
    ([INF, INF], [0, 0], [NAN, NAN], [NAN, NAN]),
    ([-INF, 0], [INF, 0], [NAN, NAN], [NAN, NAN]),
    ([0, 0], [INF, INF], [NAN, NAN], [NAN, NAN]),
    ([0, 0], [INF, 1], [0, 0], [1, 1]),
    ([-INF, 0, 0], [0, INF, 0], [0, 0, 0], [0, 1, 1]),
]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("center", "radius", "lower", "upper"), INFINITE)
def test_softmax_of_infinities(backend, center, radius, lower, upper, dtype):
    center, radius = (torch.tensor([row], dtype=dtype, device=backend.device) for row in (center, radius))
    c, r = interval_softmax(center, radius)
    for found, want in ((c - r, lower), (c + r, upper)):
        assert torch.equal(found.isnan(), torch.tensor([want], device=backend.device).isnan())
        assert found.nan_to_num(-1).tolist() == torch.tensor([want]).nan_to_num(-1).tolist()


def test_softmax_where_every_lower_end_overflows(backend):
    c, r = interval_softmax(*(torch.full((1, 2), x, device=backend.device) for x in (-3e38, 3e38)))
    assert (c - r).tolist() == [[0, 0]]
    assert (c + r).tolist() == [[1, 1]]


def test_softmax_of_tiny_boxes_is_not_turned_over(backend):
    center = torch.randn(64, 7, generator=torch.Generator().manual_seed(0)).to(backend.device)
    for radius in (0.0, 1e-12, 1e-8, 1e-7):
        assert (interval_softmax(center, torch.full_like(center, radius))[1] >= 0).all()


def test_softmax_dimensions_and_special_values(backend):
    x = SOFTMAX.make("small", torch.float32, backend.device)
    across = interval_softmax(x["center"].t(), x["radius"].t(), dim=0)
    assert all(torch.equal(a.t(), b) for a, b in zip(across, interval_softmax(**x), strict=True))
    x["center"][2, 5] = NAN
    c, r = interval_softmax(**x)
    assert c.isnan().all(1).tolist() == r.isnan().all(1).tolist() == [False, False, True, False, False]
    c, r = interval_softmax(torch.zeros(1, 2, device=backend.device), -torch.ones(1, 2, device=backend.device))
    assert (r < 0).all()  # no box, and never taken for one
    assert c[0].tolist() == pytest.approx([0.5, 0.5])


def test_messages():
    with pytest.raises(ValueError, match="center must have at least 1 dimension"):
        interval_softmax(torch.tensor(1.0), torch.tensor(1.0))
