"""Boxes through element-wise functions: sound, tight, monotone, hand values, special values, messages."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import warpup
from tests.interval.spec_interval_activation import NUMBERS, VARIANTS, call_activation
from tests.support.cases import OPS
from warpup.interval.interval_activation import FUNCTIONS, MINIMA

CASE = OPS["interval_activation"]
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = st.sampled_from([(0,), (1,), (3,), (2, 0, 3), (511,), (512,), (513,), (5, 257), (4, 8, 1031)])
INF, NAN = math.inf, math.nan


def run(kind, center, radius, clean=None):
    return call_activation(center, radius, kind=kind, a=NUMBERS.get(kind, (0, 0))[0], b=NUMBERS.get(kind, (0, 0))[1],
                           clean=clean)  # fmt: skip


def plain(kind, x):
    return FUNCTIONS[kind](x, *NUMBERS.get(kind, (0, 0)))


@given(shape=SHAPES, dtype=st.sampled_from(FLOATS), kind=st.sampled_from(VARIANTS), seed=st.integers(0, 1000))
@settings(max_examples=30)
def test_shapes(backend, shape, dtype, kind, seed):
    # The radius is half the difference of two rounded values; what the naive formula errs by in one number is luck.
    CASE.check(CASE.inputs(shape, dtype, backend.device, seed, kind), times=4 if math.prod(shape) <= 3 else 2)


@pytest.mark.parametrize("kind", VARIANTS)
def test_sound_and_tight(backend, kind):
    """Of 1001 points in each box none is outside the bounds, and some come as near to them as the grid is fine."""
    generator = torch.Generator().manual_seed(0)
    center = (4 * torch.randn(400, generator=generator, dtype=torch.float64)).to(backend.device)
    radius = (2 * torch.rand(400, generator=generator, dtype=torch.float64)).to(backend.device)
    c, r = run(kind, center, radius)
    grid = torch.linspace(-1, 1, 1001, dtype=torch.float64, device=backend.device).unsqueeze(1)
    values = plain(kind, center + grid * radius)
    step = plain(kind, center + radius).abs().clamp_min(1) * (radius / 500).square() + 1e-12  # around a minimum
    assert (values.amin(0) >= c - r - 1e-9 * (1 + c.abs())).all()
    assert (values.amax(0) <= c + r + 1e-9 * (1 + c.abs())).all()
    assert (values.amin(0) <= c - r + step).all()
    assert (values.amax(0) >= c + r - step).all()


@pytest.mark.parametrize("kind", VARIANTS)
def test_a_larger_box_gives_a_larger_box(backend, kind):
    x = CASE.make("small", torch.float64, backend.device, variant=kind)
    c, r = run(kind, x["center"], x["radius"])
    wide_c, wide_r = run(kind, x["center"] + 0.1, x["radius"] + 0.3)
    slack = 1e-12 * (1 + c.abs() + r)
    assert (wide_c - wide_r <= c - r + slack).all()
    assert (wide_c + wide_r >= c + r - slack).all()


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("kind", VARIANTS)
def test_no_box_is_the_plain_function(backend, kind, dtype):
    x = torch.linspace(-12, 12, 2001, dtype=torch.float64).to(backend.device, dtype)
    center, radius, clean = run(kind, x, torch.zeros_like(x), x)
    assert torch.equal(center, clean)
    assert not radius.any()
    want = plain(kind, x.double()).to(dtype).double()  # e^12 is over float16's end
    one = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-14
    torch.testing.assert_close(clean.double(), want, rtol=2 * one, atol=one)


def test_gelu_hand_values(backend):
    """A minimum outside of the box is no bound: on [5, 6] the lower bound is 5, where a peer says -.17."""
    center = torch.tensor([5.5, -1.5, 0.0, -2.0], device=backend.device)
    radius = torch.tensor([0.5, 0.5, 2.0, 1.5], device=backend.device)
    c, r = warpup.interval_gelu(center, radius)
    lower, upper = (c - r).tolist(), (c + r).tolist()
    assert lower == pytest.approx([4.9999986, -0.1587, -0.16997, -0.16997], abs=1e-4)
    assert upper == pytest.approx([6.0, -0.0455, 1.9545, -0.0008], abs=1e-4)


@pytest.mark.parametrize("kind", MINIMA)
def test_minima(kind):
    """The constants are the functions' minima, and the bound there has no gradient but that of the upper end."""
    at, least = MINIMA[kind]
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    value = plain(kind, x)
    assert value.item() == pytest.approx(least, abs=1e-15)
    assert torch.autograd.grad(value, x)[0].item() == pytest.approx(0, abs=1e-12)
    center, radius = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (at + 0.1, 0.5))
    c, r = run(kind, center, radius)
    assert [g.item() for g in torch.autograd.grad(c - r, (center, radius))] == [0, 0]


def test_tiny_boxes_keep_their_digits(backend):
    """tanh and ELU near 0, where 1 - e^x would lose them."""
    radius = torch.tensor([1e-6, 1e-12, 1e-30], device=backend.device)
    for kind in ("tanh", "elu"):
        _, r = run(kind, torch.zeros(3, device=backend.device), radius)
        slope = 1 if kind == "tanh" else 0.85
        torch.testing.assert_close(r, slope * radius, rtol=1e-5, atol=0)


def test_special_values(backend):
    center = torch.tensor([NAN, 0, -INF, 0, 1], device=backend.device)
    radius = torch.tensor([1, NAN, 0, INF, -1], device=backend.device)
    for kind in VARIANTS:
        c, r = run(kind, center, radius)
        assert c[:2].isnan().all()
        assert r[:2].isnan().all()
        assert r[4] < 0 or r[4].isnan(), kind  # no box, and never taken for one
    c, r = warpup.interval_sigmoid(center, radius)
    assert c[2:4].tolist() == [0, 0.5]
    assert r[2:4].tolist() == [0, 0.5]
    assert warpup.interval_gelu(center, radius)[0][2] == warpup.interval_silu(center, radius)[0][2] == 0
    assert warpup.interval_exp(torch.tensor([100.0, -200]), torch.zeros(2))[0].tolist() == [INF, 0]


def test_layouts_and_expanded_gradients(backend):
    x = (
        torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0))
        .to(backend.device)
        .movedim(0, 2)
        .requires_grad_()
    )
    radius = torch.full((), 0.3, device=backend.device).expand(4, 5, 3)
    c, r = warpup.interval_tanh(x, radius)
    c.sum().backward()
    want = 0.5 * ((1 - (x - 0.3).tanh() ** 2) + (1 - (x + 0.3).tanh() ** 2))
    torch.testing.assert_close(x.grad, want, rtol=1e-5, atol=1e-6)
    assert r.shape == x.shape


BAD = [
    (lambda x: warpup.interval_tanh(x, x[:2]), "radius must have shape (3), got (2)"),
    (lambda x: warpup.interval_tanh(x, x.double()), "radius must be float32, got float64"),
    (lambda x: warpup.interval_tanh(x, x, clean=x[:1]), "clean must have shape (3), got (1)"),
    (lambda x: warpup.interval_tanh(x.long(), x), "center must be float32, float64, bfloat16 or float16, got int64"),
    (lambda x: warpup.interval_gelu(x, x, approximate="erf"), "approximate must be none or tanh, got 'erf'"),
    (lambda x: warpup.interval_leaky_relu(x, x, -0.1), "negative_slope must be at least 0, got -0.1"),
    (lambda x: warpup.interval_elu(x, x, NAN), "alpha must be at least 0, got nan"),
    (lambda x: warpup.interval_clamp(x, x, 1, 0), "min must not be above max, got 1 and 0"),
    (lambda x: call_activation(x, x, kind="relu7", a=0, b=0, clean=None), "got 'relu7'"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_messages(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call(torch.ones(3))


def test_named_functions(backend):
    """Each public name is its own function."""
    x = CASE.make("small", torch.float32, backend.device)
    given = x["center"], x["radius"]
    named = {kind: getattr(warpup, f"interval_{kind}") for kind in VARIANTS if kind != "gelu_tanh"}
    named["gelu_tanh"] = lambda *box: warpup.interval_gelu(*box, approximate="tanh")
    for kind, function in named.items():
        got = function(*given, *(n for n in NUMBERS.get(kind, ()) if n or kind == "clamp"))
        assert all(torch.equal(g, w) for g, w in zip(got, run(kind, *given), strict=True)), kind
