"""Linear maps of boxes beyond the contract: hand values, containment, what is kept, messages."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from tests.support.cases import OPS, leaves, upcast
from warpup import interval_conv1d, interval_conv2d, interval_linear

PLAIN, WEIGHTS = OPS["interval_linear"], OPS["interval_weights"]
CONVS = {1: interval_conv1d, 2: interval_conv2d}


def ones(*shape):
    return torch.ones(shape)


@pytest.mark.parametrize(
    ("op", "z", "weight", "low", "high"),
    [
        (interval_linear, torch.tensor([[1.0, 2, 3]]), ones(1, 3), 5, 11),
        (interval_conv1d, torch.tensor([[[3.0, 4]]]), ones(1, 1, 2), 7, 11),
        (interval_conv2d, torch.tensor([[[[1.0, 2], [3, 4]]]]), ones(1, 1, 2, 2), 8, 16),
    ],
)
def test_published_hand_values(op, z, weight, low, high):
    """DeepMind's bounds_test.py: boxes z +- 1, weights 1, bias 2."""
    c, r = op(z, torch.ones_like(z), weight, torch.tensor([2.0]))
    assert (c - r).item() == low
    assert (c + r).item() == high


@st.composite
def problems(draw):
    rows, width, columns = (draw(st.sampled_from(sizes)) for sizes in ([0, 1, 3, 17], [1, 2, 16, 33], [1, 5, 31]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    variant = draw(st.sampled_from(["plain", "midpoint", "exact"]))
    inputs = PLAIN.inputs((rows, width, columns), dtype, "cpu", draw(st.integers(0, 2**31)), variant)
    if draw(st.booleans()):  # slices of something larger
        inputs["center"] = torch.cat([inputs["center"]] * 2, 1)[:, width // 2 : width // 2 + width]
        inputs["weight"] = inputs["weight"].t().contiguous().t()
    return inputs


def at_ties(x):
    """Which elements of center, radius, weight and weight_radius meet a product of ends that is also the greatest or
    the least of another pair of ends, or as good as: their gradient is any of several (tests/test_ties.py)."""
    x = {k: v.double() for k, v in x.items() if isinstance(v, torch.Tensor)}
    ends = torch.stack([
        (x["center"] + s * x["radius"]).unsqueeze(1) * (x["weight"] + t * x["weight_radius"])
        for s in (-1, 1) for t in (-1, 1)
    ]).sort(0).values  # fmt: skip
    near = 1e-5 * ends.abs().amax(0)
    tie = (ends[3] - ends[2] <= near) | (ends[1] - ends[0] <= near)
    rows, columns = tie.any(1), tie.any(0)
    return {"center": rows, "radius": rows, "weight": columns, "weight_radius": columns}


@given(x=problems())
@settings(max_examples=60)
def test_shapes_and_layouts(backend, x):
    case = WEIGHTS if "weight_radius" in x else PLAIN
    x = {k: v.to(backend.device) if isinstance(v, torch.Tensor) else v for k, v in x.items()}
    want = case.run(upcast(x), case.reference)
    skipped = at_ties(x) if x.get("mode") == "exact" else {}
    names = ("", "", "", *case.differentiable)  # three outputs, then gradients
    for name, got, naive, w in zip(names, case.run(x), case.run(x, case.reference), want, strict=True):
        assert got.shape == w.shape
        if name in skipped:
            got, naive, w = (t.masked_fill(skipped[name], 0) for t in (got, naive, w))
        if w.numel():
            error, plain = ((t.double() - w).abs().max() for t in (got, naive))
            assert error <= 2 * plain + 64 * torch.finfo(got.dtype).eps * w.abs().max().clamp_min(1)


def test_exact_is_the_hull_of_all_corners(backend):
    """Signed inputs and weights: no corner outside, and both ends are reached by one."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(30):
        c, w = (torch.randn(2, generator=generator, dtype=torch.float64) for _ in range(2))
        r, q = (torch.rand(2, generator=generator, dtype=torch.float64) * 2 for _ in range(2))
        options = {"weight_radius": q.unsqueeze(0).to(backend.device), "mode": "exact"}
        box = [t.unsqueeze(0).to(backend.device) for t in (c, r, w)]
        got_c, got_r = (t.cpu().item() for t in interval_linear(*box, **options))
        signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=4)), dtype=torch.float64)
        values = ((c + signs[:, :2] * r) * (w + signs[:, 2:] * q)).sum(1)
        assert got_c - got_r == pytest.approx(values.min().item(), abs=1e-13)
        assert got_c + got_r == pytest.approx(values.max().item(), abs=1e-13)


def test_midpoint_contains_exact_and_is_at_most_half_wider(backend):
    x = WEIGHTS.make("small", torch.float64, backend.device, variant="exact")
    (ce, re, _), (cm, rm, _) = (interval_linear(**{**x, "mode": m}) for m in ("exact", "midpoint"))
    assert (cm - rm <= ce - re + 1e-12).all()
    assert (cm + rm >= ce + re - 1e-12).all()
    assert (rm <= 1.5 * re + 1e-12).all()
    assert (rm > re + 1e-6).any()


@pytest.mark.parametrize("op", ["interval_linear", "interval_weights", "interval_conv2d", "interval_conv2d_weights"])
def test_contains_what_it_bounds(op, backend):
    case = OPS[op]
    for variant in case.variants:
        x = case.make("small", torch.float64, backend.device, variant=variant)
        x.pop("clean")
        c, r = case.call(**x)
        points = {k: v for k, v in x.items() if k not in ("radius", "weight_radius", "mode")}
        generator = torch.Generator().manual_seed(1)
        for trial in range(40):
            moved = dict(points)
            for name, radius in (("center", x["radius"]), ("weight", x.get("weight_radius"))):
                if radius is not None:
                    t = 2 * torch.rand(radius.shape, generator=generator, dtype=torch.float64) - 1
                    t = t.sign() if trial % 2 else t
                    moved[name] = points[name] + t.to(radius.device) * radius
            y, _ = case.call(**moved, radius=torch.zeros_like(x["radius"]))
            assert ((y - c).abs() <= r + 1e-10).all()


@pytest.mark.parametrize("op", ["interval_linear", "interval_weights", "interval_conv2d"])
def test_a_larger_box_gives_a_larger_one(op, backend):
    case = OPS[op]
    x = case.make("small", torch.float64, backend.device, variant=case.variants[-1])
    x.pop("clean")
    larger = {**x, "center": x["center"] + 0.3 * x["radius"], "radius": 1.4 * x["radius"]}
    (c, r), (lc, lr) = case.call(**x), case.call(**larger)
    assert (lc - lr <= c - r + 1e-12).all()
    assert (lc + lr >= c + r - 1e-12).all()


@pytest.mark.parametrize("op", ["interval_linear", "interval_conv2d"])
def test_a_point_goes_the_clean_way(op, backend):
    case = OPS[op]
    x = case.make("small", torch.float32, backend.device)
    c, r, clean = case.call(**{**x, "radius": torch.zeros_like(x["radius"]), "clean": x["center"].clone()})
    assert torch.equal(c, clean)
    assert (r == 0).all()


def test_the_same_operand_for_clean_costs_nothing_and_gets_both_gradients(backend):
    x = PLAIN.make("small", torch.float64, backend.device)
    results = []
    for same in (True, False):
        c0 = x["center"].clone().requires_grad_()
        w = x["weight"].clone().requires_grad_()
        c, r, clean = interval_linear(c0, x["radius"], w, clean=c0 if same else c0 * 1)
        assert (clean is c) == same
        results.append(torch.autograd.grad((c * c).sum() + r.sum() + clean.exp().sum(), (c0, w)))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("op", ["interval_linear", "interval_weights", "interval_conv2d"])
def test_only_the_operands_are_kept(op, backend):
    case = OPS[op]
    for variant in case.variants:
        x = case.make("small", torch.float32, backend.device, variant=variant)
        x = {k: v.requires_grad_() if k in case.differentiable else v for k, v in x.items()}
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, kept=kept: kept.append(t.data_ptr()) or t, lambda t: t):
            case.call(**x)
        assert kept
        assert set(kept) <= {v.data_ptr() for v in x.values() if isinstance(v, torch.Tensor)}


def test_the_first_layer_makes_no_gradient_of_its_input():
    x = PLAIN.make("small", torch.float32)
    x = {k: v.requires_grad_(k == "weight") for k, v in x.items()}
    outputs = interval_linear(**x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        sum(o.sum() for o in outputs).backward()
    assert sum(e.count for e in profile.key_averages() if e.key == "aten::mm") == 3


@pytest.mark.parametrize("op", ["interval_linear", "interval_weights"])
@pytest.mark.parametrize("piece", [1, 5, 16])
def test_a_large_weight_is_made_absolute_in_pieces(op, piece, backend, monkeypatch):
    monkeypatch.setattr("warpup.interval.interval_linear.PIECE", piece)
    case = OPS[op]
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        case.check(case.make("small", dtype, backend.device))


def test_sign_of_a_zero_weight_is_zero(backend):
    w = torch.tensor([[0.0, -2.0, 3.0, -0.0]], device=backend.device).requires_grad_()
    r0 = torch.tensor([[1.0, 2.0, 3.0, 4.0]], device=backend.device)
    _, r = interval_linear(torch.zeros_like(r0), r0, w)
    (g,) = torch.autograd.grad(r.sum(), w)
    assert g.tolist() == [[0.0, -2.0, 3.0, 0.0]]


@pytest.mark.parametrize("mode", ["midpoint", "exact"])
@pytest.mark.parametrize("op", ["linear", "conv1d", "conv2d"])
def test_the_center_itself_as_clean_operand(op, mode, backend):
    """One tensor in two roles, of which a product may be shared: the same results and gradients as of a copy."""
    generator = torch.Generator().manual_seed(4)
    shape, kernel = {"linear": ((3, 5), ()), "conv1d": ((2, 5, 6), (3,)), "conv2d": ((2, 5, 6, 4), (3, 2))}[op]
    weight = torch.randn(4, 5, *kernel, generator=generator, dtype=torch.float64)
    center, radius, q = (torch.rand(s, generator=generator).double() for s in (shape, shape, weight.shape))
    inputs = [t.to(backend.device).requires_grad_() for t in (center - 0.5, radius, weight, q)]
    call = {"linear": interval_linear, **{f"conv{d}d": f for d, f in CONVS.items()}}[op]
    results = []
    for clean in (inputs[0], inputs[0].clone()):
        out = call(*inputs[:3], weight_radius=inputs[3], mode=mode, clean=clean)
        total = sum((scale * t.square()).sum() for scale, t in zip((1, 2, 3), out, strict=True))
        results.append([*out, *torch.autograd.grad(total, inputs)])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want)
    product = torch.nn.functional.linear if op == "linear" else getattr(torch.nn.functional, op)
    torch.testing.assert_close(results[0][2], product(inputs[0], inputs[2]))
    if mode == "exact":
        assert not torch.allclose(results[0][0], results[0][2])  # the box's center is not the clean output


def test_autocast_is_followed_but_where_sound():
    x = PLAIN.make("small", torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        plain, sound = interval_linear(**x), interval_linear(**x, sound=True)
        want = F.linear(x["center"], x["weight"], x["bias"])
    assert plain[0].dtype == torch.bfloat16
    assert torch.equal(plain[0], want)
    assert sound[0].dtype == torch.float32


def test_nan_stays_nan(backend):
    x = PLAIN.make("small", torch.float32, backend.device)
    for name in ("center", "radius", "weight"):
        bad = {**x, name: x[name].clone()}
        bad[name].view(-1)[0] = torch.nan
        assert any(t.isnan().any() for t in leaves(interval_linear(**bad))[:2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"radius": -ones(5, 37)}, "radius must be >= 0"),
        ({"radius": ones(5, 36)}, "radius must have shape"),
        ({"weight": ones(19, 36)}, "center must be"),
        ({"weight": ones(19)}, "weight must have 2 dimensions"),
        ({"bias": ones(18)}, "bias must have shape"),
        ({"clean": ones(5, 37).double()}, "clean must be torch.float32"),
        ({"mode": "exakt"}, "mode must be one of"),
        ({"weight_radius": -ones(19, 37)}, "weight_radius must be >= 0"),
        ({"weight_radius": ones(19, 37), "mode": "exact", "sound": True}, "sound goes with mode 'midpoint'"),
        ({"out_dtype": torch.float16}, "out_dtype"),
        ({"mode": "exact"}, "mode 'exact' is for boxes of weights and needs a weight_radius"),
    ],
)
def test_messages(change, message):
    with pytest.raises(ValueError, match="interval_linear: .*" + message):
        interval_linear(**{**PLAIN.make("small"), **change})
