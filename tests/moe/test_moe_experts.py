"""grouped_mm, glu and moe_experts beyond the contract: routings, layouts, what is kept, frozen inputs, messages."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import warpup
from tests.support.cases import OPS, upcast
from warpup.moe import grouped_mm as moe_grouped
from warpup.moe.glu import ACTIVATIONS, glu, reference_glu
from warpup.moe.moe_experts import PLACEMENTS, reference_moe_experts
from warpup.moe.moe_gather import moe_plan

LAYER, GROUPED = OPS["moe_experts"], OPS["grouped_mm"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def within(got, want, naive, scale=1.0):
    """The rule of `agree` with a scale of 1, the inputs', where the result is smaller: some gradients are exactly 0."""
    if want.numel():
        error, plain = ((t.double() - want).abs().max() for t in (got, naive))
        eps = torch.finfo(got.dtype).eps
        assert error <= 2 * plain + (4 if got.element_size() == 2 else 64) * eps * want.abs().max().clamp_min(scale)


# ---- grouped_mm -----------------------------------------------------------------------------------------------------


@st.composite
def products(draw):
    experts, n, k = (draw(st.sampled_from(s)) for s in ([1, 2, 5], [1, 5, 6, 13, 64, 70], [0, 1, 2, 7, 63, 64, 130]))
    counts = draw(st.lists(st.sampled_from([0, 1, 2, 5, 6, 7, 31, 49, 100]), min_size=experts, max_size=experts))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype, beyond = draw(st.sampled_from(DTYPES)), draw(st.sampled_from([0, 3]))
    offsets = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()])
    turned = draw(st.booleans())
    w = torch.randn(experts, *((k, n) if turned else (n, k)), generator=generator).to(dtype)
    x = torch.randn(int(offsets[-1]) + beyond, k + 3, generator=generator).to(dtype)
    x = x[:, 1 : k + 1] if draw(st.booleans()) else x[:, :k].contiguous()  # rows apart, not aligned
    return {"x": x, "w": w.mT if turned else w, "offsets": offsets}


@given(x=products())
@settings(max_examples=80)
def test_grouped_mm_on_any_shape(twin, x):
    x = {k: v.to(twin.device) for k, v in x.items()}
    want, naive = GROUPED.run(upcast(x), GROUPED.reference), GROUPED.run(x, GROUPED.reference)
    for got, w, n in zip(GROUPED.run(x), want, naive, strict=True):
        within(got, w, n)


def test_the_gradient_of_a_transposed_view_has_its_layout(twin):
    for dtype in (torch.float32, torch.bfloat16):
        x = GROUPED.make("small", dtype, twin.device, variant="turned")
        w = x["w"].mT.contiguous().requires_grad_()
        warpup.grouped_mm(x["x"], w.mT, x["offsets"]).sum().backward()
        assert w.grad.is_contiguous()


def test_grouped_mm_messages():
    x, w, offsets = torch.randn(4, 3), torch.randn(2, 5, 3), torch.tensor([0, 1, 4])
    for arguments, part in (
        ((x, w[0], offsets), r"x must be \(S, K\) and w \(E, N, K\)"),
        ((x[:, :2], w, offsets), r"got \(4, 2\) and \(2, 5, 3\)"),
        ((x, w.double(), offsets), "w must be torch.float32"),
        ((x.int(), w.int(), offsets), "x must be float32"),
        ((x, w, offsets[:2]), r"offsets must be int64 of shape \(3,\)"),
        ((x, w, offsets.int()), "offsets must be int64"),
        ((x, w, torch.tensor([0, 1, 5])), "rise from 0 to at most 4"),
        ((x, w, torch.tensor([0, 3, 1])), "rise from 0"),
        ((x, w, torch.tensor([1, 3, 4])), "rise from 0"),
    ):
        with pytest.raises(ValueError, match=f"grouped_mm: .*{part}"):
            warpup.grouped_mm(*arguments)


# ---- glu ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_glu_far_from_zero(twin, activation):
    """Gates of any size: nothing overflows, the tails vanish; and so do the slopes."""
    gate = torch.tensor([-3e38, -1e4, -89.0, -30.0, -6.0, -0.0, 0.0, 6.0, 30.0, 89.0, 1e4], device=twin.device)
    h = torch.stack([gate, torch.ones_like(gate)], 1).requires_grad_()
    wide = h.detach().double().requires_grad_()
    a, want = glu(h, activation=activation), reference_glu(wide, activation=activation)
    torch.testing.assert_close(a.double(), want, rtol=3e-6, atol=1e-6)
    (got,) = torch.autograd.grad(a.sum(), h)
    (slopes,) = torch.autograd.grad(want.sum(), wide)
    torch.testing.assert_close(got.double(), slopes, rtol=3e-6, atol=1e-6)


def test_glu_gives_nan_for_nan(twin):
    for activation in ACTIVATIONS:
        h = torch.tensor([[torch.nan, 1.0], [1.0, torch.nan]], device=twin.device)
        assert glu(h, activation=activation).isnan().all(), activation


def test_the_gradient_of_glus_weights(twin):
    x = OPS["moe_glu"].make("small", torch.float64, twin.device, variant="weighted")
    grads = []
    for function in (glu, reference_glu):
        weights = x["weights"].clone().requires_grad_()
        (function(**{**x, "weights": weights}) ** 2).sum().backward()
        grads.append(weights.grad)
    torch.testing.assert_close(*grads)


def test_glu_messages():
    h, w, p = torch.randn(3, 4), torch.rand(5), torch.tensor([0, -1, 4])
    for options, part in (
        ({"h": h[:, :3]}, "even number of columns"),
        ({"h": h, "activation": "tanh"}, "activation must be silu, .* got tanh"),
        ({"h": h, "weights": w}, "weights and permutation must be given together"),
        ({"h": h, "weights": w, "permutation": p + 1}, "permutation must hold -1 to 4, got 5"),
        ({"h": h, "weights": w, "permutation": p[:2]}, r"permutation must have shape \(3\)"),
        ({"h": h.int()}, "h must be float32"),
    ):
        with pytest.raises(ValueError, match=part):
            glu(**options)


# ---- moe_experts ----------------------------------------------------------------------------------------------------


@st.composite
def layers(draw):
    tokens, experts = draw(st.sampled_from([0, 1, 2, 9, 40])), draw(st.sampled_from([1, 2, 7]))
    k = draw(st.integers(1, experts))
    width, inner = draw(st.sampled_from([1, 6, 64, 67])), draw(st.sampled_from([1, 5, 32]))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    dtype = draw(st.sampled_from(DTYPES))

    def normal(*shape):
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(dtype)

    routing = draw(st.sampled_from(["distinct", "one", "duplicates", "dropped", "none"]))
    indices = torch.rand(tokens, experts, generator=generator).topk(k).indices
    if routing == "one":
        indices = torch.full_like(indices, experts - 1)
    if routing == "duplicates":
        indices = torch.randint(experts, indices.shape, generator=generator)
    if routing == "dropped":
        indices = torch.where(torch.rand(indices.shape, generator=generator) < 0.4, -1, indices)
    if routing == "none":
        indices = torch.full_like(indices, -1)
    x = {"x": normal(tokens, width), "weights": torch.rand(tokens, k, generator=generator).to(dtype)}
    x |= {"indices": indices, "w_gate_up": normal(experts, 2 * inner, width), "w_down": normal(experts, width, inner)}
    if draw(st.booleans()):
        x |= {"b_gate_up": normal(experts, 2 * inner), "b_down": normal(experts, width)}
    return {
        **x,
        "activation": draw(st.sampled_from(ACTIVATIONS)),
        "placement": draw(st.sampled_from(PLACEMENTS)),
    }


@given(x=layers())
@settings(max_examples=80)
def test_any_routing(twin, x):
    x = {k: v.to(twin.device) if isinstance(v, torch.Tensor) else v for k, v in x.items()}
    names = [k for k in ("x", "weights", "w_gate_up", "w_down", "b_gate_up", "b_down") if k in x]

    def run(inputs, function):
        inputs = {k: v.detach().requires_grad_() if k in names else v for k, v in inputs.items()}
        out = function(**inputs)
        return (out.detach(), *torch.autograd.grad(out, [inputs[k] for k in names], out.detach()))

    want, naive = run(upcast(x), reference_moe_experts), run(x, reference_moe_experts)
    for got, w, n in zip(run(x, warpup.moe_experts), want, naive, strict=True):
        within(got, w, n)


def test_a_token_without_a_copy_gets_zero_and_no_gradient(twin):
    x = LAYER.make("small", device=twin.device)
    x["indices"][3] = -1
    for placement in PLACEMENTS:
        results = LAYER.run({**x, "placement": placement})
        assert not results[0][3].any()
        assert not results[1][3].any()  # x
        assert not results[2][3].any()  # weights


def test_a_backward_may_come_twice(twin):
    x = {k: v.requires_grad_() if k in LAYER.differentiable else v for k, v in LAYER.make(device=twin.device).items()}
    leaves = [x[k] for k in LAYER.differentiable]
    for placement in PLACEMENTS:
        out = warpup.moe_experts(**{**x, "placement": placement})
        first = torch.autograd.grad(out.sum(), leaves, retain_graph=True)
        for a, b in zip(first, torch.autograd.grad(out.sum(), leaves), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_what_is_kept(placement):
    """The arguments, the plan and h; the sorted copies of x never, the experts' outputs for "combine" only."""
    tokens, width, inner, experts, k = 32, 24, 10, 4, 3
    x = LAYER.inputs((tokens, width, inner, experts, k), torch.float32, "cpu", 0, "plain")
    x = {n: v.requires_grad_() if n in LAYER.differentiable else v for n, v in x.items()}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        out = warpup.moe_experts(**{**x, "placement": placement})
    out.sum().backward()
    given = {v.data_ptr() for v in x.values() if isinstance(v, torch.Tensor)}
    made = sorted(t.numel() for at, t in kept.items() if at not in given and t.is_floating_point() and t.numel())
    copies = tokens * k
    assert made == sorted([copies * 2 * inner] + ([copies * width] if placement == "combine" else []))


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("trained", ["x", "weights", "w_gate_up", "w_down", "b_gate_up", "b_down"])
def test_no_work_for_what_is_frozen(placement, trained, monkeypatch):
    """Only what is trained gets a gradient, the same as with all of them, and only its products are made."""
    x = LAYER.make(variant="oai") | {"placement": placement}
    names = ("x", "weights", "w_gate_up", "w_down", "b_gate_up", "b_down")

    def run(wanted):
        inputs = {k: v.clone().requires_grad_() if k in wanted else v for k, v in x.items()}
        warpup.moe_experts(**inputs).square().sum().backward()
        return {k: inputs[k].grad for k in wanted}

    want, made = run(names)[trained], []
    for name in ("products", "weight_products", "weight_gradient"):
        function = getattr(warpup.moe.moe_experts, name)

        def counted(*args, _name=name, _function=function, **options):
            made.append(_name)
            return _function(*args, **options)

        monkeypatch.setattr(warpup.moe.moe_experts, name, counted)
    assert torch.equal(run((trained,))[trained], want)
    backward = made[2:]  # after the two of the forward
    expected = {"x": ["products"] * 2, "w_gate_up": ["products", "weight_gradient"], "w_down": ["weight_gradient"]}
    expected |= {"b_gate_up": ["products", "weight_products"], "b_down": ["weight_products"]}
    expected["weights"] = [] if placement == "combine" else ["products"] * 2  # the second of them for b_down
    assert backward == expected[trained]


def test_autocast():
    x = LAYER.make(device="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        got = LAYER.run(x)
    low = {k: v.bfloat16() if k in ("x", "w_gate_up", "w_down") else v for k, v in x.items()}
    for g, want in zip(got, LAYER.run(low), strict=True):
        torch.testing.assert_close(g.float(), want.float(), rtol=0, atol=0)
    assert got[0].dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for t in got[1:])


def test_placements_agree_and_a_plan_may_be_given(twin):
    x = LAYER.make("small", torch.float64, twin.device)
    want = LAYER.run(x)
    for placement in PLACEMENTS:
        for plan in (None, moe_plan(x["indices"], len(x["w_down"]))):
            for got, w in zip(LAYER.run({**x, "placement": placement, "plan": plan}), want, strict=True):
                torch.testing.assert_close(got, w, rtol=1e-12, atol=1e-12)


def test_strided_x_and_an_expanded_gradient(twin):
    for dtype in (torch.float32, torch.bfloat16):
        x = LAYER.make("small", dtype, twin.device)
        turned = {**x, "x": x["x"].t().contiguous().t()}
        for placement in PLACEMENTS:
            results = []
            for inputs in (x, turned):
                inputs = {k: v.detach().requires_grad_() if k in LAYER.differentiable else v for k, v in inputs.items()}
                out = warpup.moe_experts(**{**inputs, "placement": placement})
                results.append(torch.autograd.grad(out.float().sum(), [inputs[k] for k in LAYER.differentiable]))
            for got, want in zip(*results, strict=True):
                torch.testing.assert_close(got, want)


def test_no_tokens_and_an_expanded_gradient(twin):
    """The weights' gradients are there and 0, also where nothing was computed."""
    x = LAYER.make("small", device=twin.device, variant="oai")
    x |= {k: x[k][:0] for k in ("x", "weights", "indices")}
    names = ("x", "weights", "w_gate_up", "w_down", "b_gate_up", "b_down")
    for placement in PLACEMENTS:
        inputs = {k: v.detach().requires_grad_() if k in names else v for k, v in x.items()} | {"placement": placement}
        out = warpup.moe_experts(**inputs)
        g = torch.tensor(0.3, device=twin.device).expand(out.shape)
        for grad, name in zip(torch.autograd.grad(out, [inputs[k] for k in names], g), names, strict=True):
            assert grad.shape == inputs[name].shape
            assert not grad.any(), name


def test_messages():
    x = LAYER.make(variant="oai")
    for change, part in (
        ({"x": x["x"][0]}, r"x must be \(T, H\)"),
        ({"x": x["x"][:3]}, r"x must be \(T, H\) and indices \(T, k\)"),
        ({"indices": x["indices"].int()}, "indices .* int64"),
        ({"indices": x["indices"].clamp_min(4)}, "4 is outside"),
        ({"weights": x["weights"][:, :1]}, r"weights must be floating, of indices' shape \(11, 2\)"),
        ({"weights": x["weights"].long()}, "weights must be floating"),
        ({"w_gate_up": x["w_gate_up"][:, 1:]}, r"w_gate_up must be \(E, 2 I, H\)"),
        ({"w_down": x["w_down"].mT}, r"w_down \(E, H, I\) with H = 22"),
        ({"w_down": x["w_down"].double()}, "w_down must be torch.float32 on cpu like x, got torch.float64"),
        ({"b_down": x["b_down"][:1]}, r"b_down must have shape \(4, 22\)"),
        ({"activation": "tanh"}, "activation must be one of silu, "),
        ({"placement": "up"}, "placement must be one of combine, "),
        ({"plan": moe_plan(x["indices"][:4], 4)}, "plan must be of indices"),
        ({"plan": moe_plan(x["indices"], 4, block=8)}, "made without a block"),
    ):
        with pytest.raises(ValueError, match=part):
            warpup.moe_experts(**{**x, **change})


def test_the_kernel_and_the_library_agree(threads, monkeypatch):
    """bfloat16 gradients by our kernel beside the library's products, at a size that streams its stores past the cache,
    and the same bits on any number of threads."""
    generator = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 0, 50, 51, 133, 140])
    dy, x = (torch.randn(140, n, generator=generator).bfloat16() for n in (1024, 2048))
    w = torch.randn(5, 1024, 2048, generator=generator).bfloat16()
    results = []
    for count in (1, 2, 3):
        threads(count)
        results.append((moe_grouped.weight_products(dy, x, offsets), moe_grouped.products(dy, w.mT, offsets)))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
    bounds = offsets.tolist()
    for e, (a, b) in enumerate(pairwise(bounds)):
        for got, want in (
            (results[0][0][e], dy[a:b].float().t() @ x[a:b].float()),
            (results[0][1][a:b], dy[a:b].float() @ w[e].float()),
        ):
            torch.testing.assert_close(got.float(), want, rtol=2**-8, atol=1e-3)
