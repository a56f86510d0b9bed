"""Batch normalisation and ReLU of boxes beyond the contract: layouts, what is kept, the sums, messages."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cases import OPS, leaves, upcast
from warpup import BoxSums, interval_batch_norm, interval_relu
from warpup.interval.interval_batch_norm import reference_interval_batch_norm, reference_interval_relu

NORM, RELU = OPS["interval_batch_norm"], OPS["interval_relu"]


def gentle(x):
    """So that the backward may start from the ReLU's results."""
    return {**x, "weight": x["weight"].sign() * (x["weight"].abs() + 0.3)}


def close(got, want, dtype, scale=64):
    for g, w in zip(got, want, strict=True):
        assert g.shape == w.shape
        if not w.is_floating_point():
            assert torch.equal(g, w)
        elif w.numel():
            assert (g.double() - w).abs().max() <= scale * torch.finfo(dtype).eps * w.abs().max().clamp_min(1)


@st.composite
def problems(draw):
    batch, channels = draw(st.sampled_from([1, 2, 33, 70])), draw(st.sampled_from([1, 3, 16, 600]))
    spatial = draw(st.sampled_from([(), (1,), (5,), (3, 4), (2, 1, 3), (1, 4100)]))
    if channels * torch.Size(spatial).numel() > 20_000:
        channels = 3
    if batch * channels * torch.Size(spatial).numel() > 40_000:
        batch = 1
    dtype = torch.float64  # float32 would take a bound next to 0 for one on its other side, and its whole gradient
    variant = draw(st.sampled_from(NORM.variants))
    x = NORM.inputs((batch, channels, *spatial), dtype, "cpu", draw(st.integers(0, 2**31)), variant)
    if batch * torch.Size(spatial).numel() < 4:  # the variance of so few may be as small as its rounding
        x["eps"] = 1.0
    if len(spatial) == 2 and draw(st.booleans()):
        x = {k: v.to(memory_format=torch.channels_last) if getattr(v, "ndim", 0) == 4 else v for k, v in x.items()}
    return x | {"relu": draw(st.booleans()), "sums": draw(st.booleans())}, draw(st.booleans())


@given(problem=problems())
@settings(max_examples=40)
def test_shapes_layouts_and_options(backend, problem):
    x, kept = problem
    x = {k: v.to(backend.device) if isinstance(v, torch.Tensor) else v for k, v in x.items()}
    x = gentle(x) if kept else x
    got = NORM.run(x)
    dtype = x["center"].dtype
    # With values of order 1: sums of n of them that may cancel, and gradients of sums of squares, which are of order n.
    slack = 64 * x["center"].numel() ** (1 if x["sums"] else 0.5)
    close(got, NORM.run(upcast(x), reference_interval_batch_norm), dtype, slack)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("variant", ["clean", "frozen"])
def test_from_the_relus_results_as_from_its_inputs(variant, dtype, backend):
    """The backward that keeps the results is the derivative, and keeps what the next layer keeps."""
    x = gentle(NORM.make("small", dtype, backend.device, variant=variant))
    NORM.check(x)
    x = {k: v.detach().requires_grad_() if k in NORM.differentiable else v for k, v in x.items()}
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        outputs = interval_batch_norm(**x)
    same = backend.device == "cpu"
    assert (outputs[0].data_ptr() in kept and outputs[1].data_ptr() in kept) == same
    assert (x["center"].data_ptr() in kept) != same
    assert outputs[2].data_ptr() not in kept


def test_gradcheck_from_results(backend):
    x = gentle(NORM.make("grad", torch.float64, backend.device, variant="clean"))
    names = NORM.differentiable
    inputs = tuple(x[k].requires_grad_() for k in names)
    assert torch.autograd.gradcheck(lambda *v: interval_batch_norm(**{**x, **dict(zip(names, v, strict=True))}), inputs)


@pytest.mark.parametrize("variant", NORM.variants)
@pytest.mark.parametrize("name", BoxSums._fields)
def test_each_sum_and_its_gradient(name, variant, backend):
    x = NORM.make("grad", torch.float64, backend.device, variant=variant) | {"sums": True}
    names = NORM.differentiable
    inputs = tuple(x[k].requires_grad_() for k in names)

    def one(*values):
        return getattr(interval_batch_norm(**{**x, **dict(zip(names, values, strict=True))})[-1], name)

    assert torch.allclose(one(*inputs).double(), getattr(reference_interval_batch_norm(**x)[-1], name).double())
    if name in ("count", "active", "inactive"):
        assert one(*inputs).dtype == torch.int64
    else:
        assert torch.autograd.gradcheck(one, inputs, fast_mode=backend.name == "hostcuda")  # it is slow


def test_sums_keep_their_digits(backend):
    """Squares around a mean that is 100 times the spread, summed up in float64."""
    generator = torch.Generator().manual_seed(0)
    c = 100 + torch.randn(64, 900, generator=generator)
    r = torch.rand(64, 900, generator=generator)
    sums = interval_relu(c.to(backend.device), r.to(backend.device), sums=True)[-1]
    want = reference_interval_relu(c.double(), r.double(), sums=True)[-1]
    for got, w in zip(sums, want, strict=True):
        assert float(got) == pytest.approx(float(w), rel=1e-6)


def test_negative_scale_by_hand(backend):
    """(x - 3) / 2 times -1 plus 2, for x in [1, 3]: from 2 to 3."""
    one = torch.ones(1, device=backend.device)
    x = torch.full((1, 1), 2.0, device=backend.device)
    c, r = interval_batch_norm(x, x / 2, 3 * one, 4 * one, -one, 2 * one, eps=0.0)
    assert c.item() == 2.5
    assert r.item() == 0.5


def test_running_statistics(backend):
    x = NORM.make("small", torch.float32, backend.device)
    mean, var = torch.zeros(7, device=backend.device), torch.ones(7, device=backend.device)
    peer = torch.nn.BatchNorm1d(7, device=backend.device)
    x |= {"running_mean": mean, "running_var": var, "relu": False}
    clean = interval_batch_norm(**x)[2]
    want = peer(x["clean"])
    torch.testing.assert_close(mean, peer.running_mean)
    torch.testing.assert_close(var, peer.running_var)
    torch.testing.assert_close(clean, (want * x["weight"].view(-1, 1) + x["bias"].view(-1, 1)).detach())


def test_contains_is_monotone_and_exact_at_points(backend):
    x = NORM.make("small", torch.float64, backend.device, variant="frozen")
    c, r, _ = interval_batch_norm(**x)
    generator = torch.Generator().manual_seed(1)
    for _ in range(40):
        t = (2 * torch.rand(x["radius"].shape, generator=generator, dtype=torch.float64) - 1).to(backend.device)
        point = {**x, "center": x["center"] + t * x["radius"], "radius": torch.zeros_like(x["radius"])}
        y, zero, _ = interval_batch_norm(**{**point, "clean": point["center"]})
        assert ((y - c).abs() <= r + 1e-12).all()
        assert (zero == 0).all()
    larger = {**x, "center": x["center"] + 0.5 * x["radius"], "radius": 1.5 * x["radius"]}
    lc, lr, _ = interval_batch_norm(**larger)
    assert (lc - lr <= c - r + 1e-12).all()
    assert (lc + lr >= c + r - 1e-12).all()


def test_relu_keeps_active_boxes_bit_for_bit_and_nan(backend):
    c = torch.tensor([3.0, -3.0, 0.1, torch.nan, 1.0, 0.0], device=backend.device)
    r = torch.tensor([0.1, 0.1, 0.3, 0.1, torch.nan, 0.0], device=backend.device)
    out_c, out_r, clean = interval_relu(c, r, clean=c)
    assert out_c[0] == c[0]
    assert out_r[0] == r[0]
    assert out_c[1] == out_r[1] == 0
    assert out_c[2] == out_r[2] == (c + r)[2] / 2
    assert out_c[3:5].isnan().all()
    assert out_r[3:5].isnan().all()
    assert clean[3].isnan()
    assert out_c[5] == out_r[5] == 0


def test_sums_compile():
    compiled = torch.compile(interval_relu, fullgraph=True, backend="aot_eager")
    x = RELU.make("small", torch.float32)
    for got, want in zip(leaves(compiled(**x, sums=True)), leaves(interval_relu(**x, sums=True)), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": -torch.ones(5, 7, 13)}, "radius must be >= 0"),
        ({"radius": torch.ones(5, 7)}, "radius must be"),
        ({"statistics": "batch"}, "statistics must be one of"),
        ({"clean": None}, "need the clean operand"),
        ({"sound": True}, "sound needs frozen statistics"),
        ({"weight": torch.ones(6)}, r"weight must have shape \(7,\)"),
        ({"training": False}, "without batch statistics are needed"),
        (
            {"training": False, "statistics": "midpoint", "running_mean": torch.ones(7), "running_var": torch.ones(7)},
            "statistics 'midpoint' are a batch's, but training=False",
        ),
    ],
)
def test_messages(change, message):
    with pytest.raises(ValueError, match=message):
        interval_batch_norm(**{**NORM.make("small"), **change})
