"""Boxes through compositions of torch functions: sound, as tight as documented; without a width the layer itself."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

import warpup
from warpup.interval.interval_attention import interval_attention, interval_matmul

DOUBLE = torch.float64


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def box(*shape, scale=1.0, width=0.5):
    return scale * torch.randn(shape, dtype=DOUBLE), width * torch.rand(shape, dtype=DOUBLE)


def points(b, count=300):
    """Random points of a box, then random corners."""
    center, radius = b
    offsets = 2 * torch.rand(count, *center.shape, dtype=DOUBLE) - 1
    return torch.cat([center + offsets * radius, center + offsets.sign() * radius])


def assert_sound(found, values):
    center, radius = found
    assert values.shape[1:] == center.shape == radius.shape
    assert (values >= center - radius - 1e-12).all()
    assert (values <= center + radius + 1e-12).all()


UNARY = {  # name: (on a box, the layer itself, the input's shape)
    "layer_norm": (lambda c, r: warpup.interval_layer_norm(c, r, 6), lambda x: F.layer_norm(x, (6,)), (4, 6)),
    "layer_norm_2d": (
        lambda c, r: warpup.interval_layer_norm(c, r, (3, 2)), lambda x: F.layer_norm(x, (3, 2)), (4, 3, 2)
    ),
    "layer_norm_1": (lambda c, r: warpup.interval_layer_norm(c, r, 1), lambda x: F.layer_norm(x, (1,)), (4, 1)),
    "rms_norm": (lambda c, r: warpup.interval_rms_norm(c, r, 6), lambda x: F.rms_norm(x, (6,)), (4, 6)),
    "max_pool2d": (
        lambda c, r: warpup.interval_max_pool2d(c, r, 3, 2, 1), lambda x: F.max_pool2d(x, 3, 2, 1), (2, 3, 7, 6)
    ),
    "avg_pool2d": (
        lambda c, r: warpup.interval_avg_pool2d(c, r, 2, count_include_pad=False), lambda x: F.avg_pool2d(x, 2),
        (2, 3, 6, 4),
    ),
    "adaptive_avg_pool2d": (
        lambda c, r: warpup.interval_adaptive_avg_pool2d(c, r, 2), lambda x: F.adaptive_avg_pool2d(x, 2), (2, 3, 5, 7)
    ),
}  # fmt: skip


@pytest.mark.parametrize("width", [0.0, 1e-3, 0.1, 1.0, 30.0])
@pytest.mark.parametrize("name", UNARY)
def test_layers(name, width):
    on_box, layer, shape = UNARY[name]
    b = box(*shape, width=width)
    found = on_box(*b)
    batched = points(b).flatten(0, 1)  # pooling takes one batch dimension
    assert_sound(found, layer(batched).unflatten(0, (-1, shape[0])))
    if width == 0:
        torch.testing.assert_close(found[0], layer(b[0]))
        assert found[1].abs().max() < 1e-12
        return
    wide = on_box(b[0], 1.5 * b[1])
    assert (wide[0] - wide[1] <= found[0] - found[1] + 1e-12).all()
    assert (wide[0] + wide[1] >= found[0] + found[1] - 1e-12).all()


@pytest.mark.parametrize("name", UNARY)
def test_gradients(name):
    on_box, _, shape = UNARY[name]
    inputs = tuple(t.requires_grad_() for t in box(*shape, scale=2, width=0.3))
    if name != "layer_norm_1":  # where nothing varies
        assert torch.autograd.gradcheck(lambda c, r: on_box(c, r + 0.05), inputs)


def test_norm_bounds():
    """|y| is at most sqrt(n - 1) after LayerNorm, sqrt(n) after RMSNorm, however wide the box; weights scale it."""
    c, r = box(5, 8, width=1e5)
    for norm, most in ((warpup.interval_layer_norm, 7), (warpup.interval_rms_norm, 8)):
        found = norm(c, r, 8)
        assert (found[0].abs() + found[1]).max() <= math.sqrt(most) + 1e-9
    weight, bias = torch.randn(8, dtype=DOUBLE), torch.randn(8, dtype=DOUBLE)
    small = (c, 1e-6 * r)
    plain, scaled = warpup.interval_layer_norm(*small, 8), warpup.interval_layer_norm(*small, 8, weight, bias)
    torch.testing.assert_close(scaled[0], plain[0] * weight + bias)
    torch.testing.assert_close(scaled[1], plain[1] * weight.abs())
    torch.testing.assert_close(warpup.interval_rms_norm(*small, 8, weight)[1][0, 0], weight[0].abs() *
                               warpup.interval_rms_norm(*small, 8)[1][0, 0])  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("width", [0.0, 1e-3, 0.1])
def test_norms_of_16_bits_are_those_of_float32(dtype, width):
    """Squares of 400 overflow float16, those of anything lose digits."""
    c, r = ((400 * t).to(dtype) for t in box(50, 16, width=width))
    weight, bias = torch.randn(16).to(dtype), torch.randn(16).to(dtype)
    small = 1e-3 * c / 400  # where eps counts, float32's for 16 bits too
    torch.testing.assert_close(warpup.interval_rms_norm(small, 0 * r, 16)[0], F.rms_norm(small, (16,)))
    for call in (
        lambda c, r, w, b: warpup.interval_layer_norm(c, r, 16, w, b),
        lambda c, r, w, b: warpup.interval_rms_norm(c, r, 16, w, 1e-5),
    ):
        found, want = call(c, r, weight, bias), call(*(t.double() for t in (c, r, weight, bias)))
        for got, exact in zip(found, want, strict=True):
            assert got.dtype == dtype
            torch.testing.assert_close(got, exact.to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-4)


def test_rms_norm_is_tight():
    """Both ends are attained: x[i] at its end, the others nearest to or farthest from 0."""
    c, r = box(50, 5, width=2.0)
    center, radius = warpup.interval_rms_norm(c, r, 5, eps=1e-5)
    near, far = c.sign() * (c.abs() - r).clamp_min(0), c + c.sign() * r
    for i in range(5):
        for end, bound, pick in (
            (c + r, center + radius, torch.maximum),
            (c - r, center - radius, torch.minimum),
        ):
            found = []
            for rest in (near, far):
                x = rest.clone()
                x[:, i] = end[:, i]
                found.append(F.rms_norm(x, (5,), eps=1e-5)[:, i])
            torch.testing.assert_close(pick(*found), bound[:, i])


def test_layer_norm_is_not_much_wider_than_what_happens():
    """Against what corners show, and against the box of x - mean(x) divided by the least and greatest deviation."""
    b = box(20, 8, width=0.2)
    values = F.layer_norm(points(b, 20000), (8,))
    shown = (values.amax(0) - values.amin(0)) / 2
    _, radius = warpup.interval_layer_norm(*b, 8)
    assert (radius / shown).mean() < 2
    c, r = b
    d, spread = c - c.mean(-1, keepdim=True), r * (1 - 2 / 8) + r.mean(-1, keepdim=True)
    least, most = (
        ((d.abs() + s * spread).clamp_min(0).square().mean(-1, keepdim=True) + 1e-5) ** -0.5 for s in (1, -1)
    )
    ends = torch.stack([e * root for e in (d - spread, d + spread) for root in (least, most)])
    assert (radius <= (ends.amax(0) - ends.amin(0)) / 2).all()


def test_add_and_sub():
    a, b = box(4, 3), box(4, 3)
    x, y = points(a), points(b)
    assert_sound(warpup.interval_add(a, b), x + y)
    assert_sound(warpup.interval_sub(a, b), x - y)
    upper = warpup.interval_sub(a, b)[0] + warpup.interval_sub(a, b)[1]
    torch.testing.assert_close(upper, (a[0] + a[1]) - (b[0] - b[1]))


def test_matmul():
    a, b = box(3, 4, 5), box(5, 6)
    found = interval_matmul(a, b)
    assert_sound(found, points(a) @ points(b).unsqueeze(1))
    exact = interval_matmul(a, (b[0], 0 * b[1]))
    torch.testing.assert_close(exact[1], a[1] @ b[0].abs())
    # A product of numbers against its tightest box, the hull of four products: sound, and at most 1.5 times as wide.
    a, b = box(2000, 1, 1, width=3), box(2000, 1, 1, width=3)
    ends = [(a[0] + s * a[1]) * (b[0] + t * b[1]) for s in (-1, 1) for t in (-1, 1)]
    tight = (torch.stack(ends).amax(0) - torch.stack(ends).amin(0)) / 2
    ratio = interval_matmul(a, b)[1] / tight
    assert ratio.min() >= 1 - 1e-12
    assert 1.2 < ratio.max() <= 1.5 + 1e-12


MASKS = {
    "none": {},
    "causal": {"is_causal": True},
    "bool": {"attn_mask": torch.arange(20).view(4, 5) % 3 != 0},
    "added": {"attn_mask": torch.arange(20.0, dtype=DOUBLE).view(4, 5) / 10},
    "scale": {"scale": 0.7},
}


@pytest.mark.parametrize("width", [0.0, 0.05, 0.5, 5.0])
@pytest.mark.parametrize("mask", MASKS)
def test_attention(mask, width):
    q, k, v = (box(2, n, e, width=width) for n, e in ((4, 3), (5, 3), (5, 6)))
    found = interval_attention(q, k, v, **MASKS[mask])
    values = F.scaled_dot_product_attention(points(q), points(k), points(v), **MASKS[mask])
    assert_sound(found, values)
    if width == 0:
        torch.testing.assert_close(found[0], values[0])
        assert found[1].abs().max() < 1e-12
        return
    # No more than the hull of the values, and a shift of all of them costs nothing.
    assert (found[0] + found[1] <= (v[0] + v[1]).amax(-2, keepdim=True) + 1e-12).all()
    moved = interval_attention(q, k, (v[0] + 100, v[1]), **MASKS[mask])
    torch.testing.assert_close(moved[1], found[1], rtol=1e-9, atol=1e-9)


TINY = {
    "layer_norm": lambda c, r: warpup.interval_layer_norm(c, r, 16),
    "rms_norm": lambda c, r: warpup.interval_rms_norm(c, r, 16),
    "gelu": warpup.interval_gelu,
    "gelu_tanh": lambda c, r: warpup.interval_gelu(c, r, approximate="tanh"),
    "silu": warpup.interval_silu,
    "softplus": warpup.interval_softplus,
    "attention": lambda c, r: interval_attention((c, r), (c[:5], r[:5]), (c[:5], r[:5])),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("radius", [0.0, 1e-12, 1e-7, 1e-4])
@pytest.mark.parametrize("name", TINY)
def test_tiny_boxes_are_not_turned_over_by_roundings(name, radius, dtype):
    for scale in (1e-3, 1.0, 30.0, *([] if name == "attention" else [1000.0])):  # whose scores overflow float16
        center = (scale * torch.randn(64, 16)).to(dtype)
        center[:8] = center[:8, :1]  # rows without any variance
        found = TINY[name](center, torch.full_like(center, radius))[1]
        assert found.min() >= 0, scale  # nor NaN


def test_attention_beats_the_plain_product():
    q, k, v = box(4, 3, width=0.1), box(5, 3, width=0.1), box(5, 6, width=0.1)
    v = (v[0] + 3, v[1])
    scores = interval_matmul((q[0] / math.sqrt(3), q[1] / math.sqrt(3)), (k[0].t(), k[1].t()))
    plain = interval_matmul(warpup.interval_softmax(*scores), v)
    assert (interval_attention(q, k, v)[1] < 0.7 * plain[1]).all()


def test_attention_without_keys_to_see_and_gradients():
    q, k, v = (box(n, 3, width=0.2) for n in (2, 4, 4))
    tensors = [t.requires_grad_() for b in (q, k, v) for t in b]
    mask = torch.tensor([[True, True, False, True], [False] * 4])
    center, radius = interval_attention(q, k, v, attn_mask=mask)
    assert not center[1].any()
    assert not radius[1].any()
    grads = torch.autograd.grad(center.sum() + radius.sum(), tensors)
    assert all(g.isfinite().all() for g in grads)

    def call(*t):
        return interval_attention((t[0], t[1]), (t[2], t[3]), (t[4], t[5]), is_causal=True)

    assert torch.autograd.gradcheck(call, tensors)
    with pytest.raises(ValueError, match="attn_mask and is_causal were both given"):
        interval_attention(q, k, v, attn_mask=mask, is_causal=True)


def test_compile():
    """The compositions trace whole, also where a kernel stands among them."""

    def both(qc, kc, r):
        c, s = interval_attention((qc, r), (kc, r), (kc, r), is_causal=True)
        return warpup.interval_layer_norm(c, s, 3)

    inputs = [torch.randn(4, 3), torch.randn(4, 3), 0.1 * torch.rand(4, 3)]
    for got, want in zip(torch.compile(both, fullgraph=True, backend="aot_eager")(*inputs), both(*inputs), strict=True):
        torch.testing.assert_close(got, want)


def test_input_boxes():
    x = torch.tensor([[[0.0, 0.5]], [[0.95, 0.05]]], dtype=DOUBLE)  # (2, 1, 2)
    c, r = warpup.interval_box(x, 0.1, low=0, high=1)
    assert (c - r).flatten().tolist() == pytest.approx([0, 0.4, 0.85, 0], abs=1e-12)
    assert (c + r).flatten().tolist() == pytest.approx([0.1, 0.6, 1, 0.15])
    outside, width = warpup.interval_box(torch.tensor([-0.5, 2]), 0.1, low=0, high=1)
    assert outside.tolist() == [0, 1]
    assert width.tolist() == [0, 0]
    x = torch.zeros(1, 2, 2, 2)
    c, r = warpup.interval_box(x, 0.1, std=[0.5, 0.25], low=torch.tensor([-0.1, -1.0]))
    assert r[0, :, 0, 0].tolist() == pytest.approx([0.15, 0.4])
    assert c[0, :, 0, 0].tolist() == pytest.approx([0.05, 0])
    c, r = warpup.interval_box(x, torch.tensor([0.0, 0.3]))
    assert torch.equal(c, x)
    assert r[0, :, 1, 1].tolist() == pytest.approx([0, 0.3])


X = torch.zeros(1, 2, 3)
BAD = [
    (lambda: warpup.interval_box(X, -0.1), "eps must be at least 0, got -0.1"),
    (lambda: warpup.interval_box(X, [0.1, math.nan]), "eps must be at least 0, got [0.1, nan]"),
    (lambda: warpup.interval_box(X, 0.1, std=0.0), "std must be above 0, got 0.0"),
    (lambda: warpup.interval_box(X, [0.1, 0.1, 0.1]), "eps must be one number or (2,), got shape (3,)"),
    (lambda: warpup.interval_box(X, 0.1, high=torch.ones(3)), "high must be one number or (2,), got shape (3,)"),
    (lambda: warpup.interval_layer_norm(X, X, 2), "normalized_shape must end center's shape (1, 2, 3), got (2,)"),
    (lambda: warpup.interval_rms_norm(X, X, ()), "interval_rms_norm: normalized_shape must end"),
    (lambda: warpup.interval_layer_norm(X, X[..., :1], 3), "interval_layer_norm: radius must have its center's shape"),
    (lambda: warpup.interval_layer_norm(X, X, 3, X[0, 0, :1]), "weight must have the normalized_shape (3,), got (1,)"),
    (lambda: warpup.interval_rms_norm(X, X, (2, 3), X[0, 0]), "weight must have the normalized_shape (2, 3), got (3,)"),
    (lambda: warpup.interval_avg_pool2d(X, X[:, :1], 1), "interval_avg_pool2d: radius must have its center's shape"),
    (lambda: warpup.interval_max_pool2d(X, X[0], 1), "interval_max_pool2d: radius must have its center's shape"),
    (lambda: warpup.interval_adaptive_avg_pool2d(X, X[..., :2], 1), "(1, 2, 3), got (1, 2, 2)"),
    (lambda: warpup.interval_add((X, X), (X, X[:, :1])), "interval_add: radius of b must have its center's shape"),
    (lambda: warpup.interval_sub((X, X[0]), (X, X)), "interval_sub: radius of a must have its center's shape"),
    (lambda: interval_matmul((X.half(), X.half()), (X.mT, X.mT)), "interval_matmul: a and b must have one dtype"),
    (lambda: interval_matmul((X, X[:, :1]), (X.mT, X.mT)), "interval_matmul: radius of a must have its center's shape"),
    (lambda: interval_attention((X, X), (X, X[0]), (X, X)), "interval_attention: radius of key must have its"),
]


@pytest.mark.parametrize(("call", "message"), BAD)
def test_messages(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_negative_radius_and_nan_are_told():
    """A negative radius is not taken for a box, and NaN comes through."""
    c = torch.randn(2, 3, 4, 4)
    for call in (warpup.interval_max_pool2d, warpup.interval_avg_pool2d):
        _, r = call(c, torch.full_like(c, -5.0), 2)
        assert (r < 0).all()
        assert call(c, torch.full_like(c, math.nan), 2)[1].isnan().all()
    for norm in (warpup.interval_layer_norm, warpup.interval_rms_norm):
        assert norm(c, torch.full_like(c, math.nan), 4)[1].isnan().all()
