"""moe_experts beyond the contract: routings, layouts, what is kept, frozen inputs, messages."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import warpup
from tests.support.cases import OPS, upcast
from tests.support.inputs import within
from warpup.moe.glu import ACTIVATIONS
from warpup.moe.moe_experts import WEIGHT_PLACEMENTS, reference_moe_experts
from warpup.moe.moe_plan import moe_plan

LAYER = OPS["moe_experts"]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


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
        "weight_placement": draw(st.sampled_from(WEIGHT_PLACEMENTS)),
    }


@given(x=layers())
@settings(max_examples=80)
def test_any_routing(backend, x):
    x = {k: v.to(backend.device) if isinstance(v, torch.Tensor) else v for k, v in x.items()}
    names = [k for k in ("x", "weights", "w_gate_up", "w_down", "b_gate_up", "b_down") if k in x]

    def run(inputs, function):
        inputs = {k: v.detach().requires_grad_() if k in names else v for k, v in inputs.items()}
        out = function(**inputs)
        return (out.detach(), *torch.autograd.grad(out, [inputs[k] for k in names], out.detach()))

    want, naive = run(upcast(x), reference_moe_experts), run(x, reference_moe_experts)
    for got, w, n in zip(run(x, warpup.moe_experts), want, naive, strict=True):
        within(got, w, n)


def test_a_token_without_a_copy_gets_zero_and_no_gradient(backend):
    x = LAYER.make("small", device=backend.device)
    x["indices"][3] = -1
    for weight_placement in WEIGHT_PLACEMENTS:
        results = LAYER.run({**x, "weight_placement": weight_placement})
        assert not results[0][3].any()
        assert not results[1][3].any()  # x
        assert not results[2][3].any()  # weights


def test_a_backward_may_come_twice(backend):
    x = {
        k: v.requires_grad_() if k in LAYER.differentiable else v for k, v in LAYER.make(device=backend.device).items()
    }
    leaves = [x[k] for k in LAYER.differentiable]
    for weight_placement in WEIGHT_PLACEMENTS:
        out = warpup.moe_experts(**{**x, "weight_placement": weight_placement})
        first = torch.autograd.grad(out.sum(), leaves, retain_graph=True)
        for a, b in zip(first, torch.autograd.grad(out.sum(), leaves), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("weight_placement", WEIGHT_PLACEMENTS)
def test_what_is_kept(weight_placement):
    """The arguments, the plan and h; the sorted copies of x never, the experts' outputs for "combine" only."""
    tokens, width, inner, experts, k = 32, 24, 10, 4, 3
    x = LAYER.inputs((tokens, width, inner, experts, k), torch.float32, "cpu", 0, "plain")
    x = {n: v.requires_grad_() if n in LAYER.differentiable else v for n, v in x.items()}
    kept = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.setdefault(t.data_ptr(), t), lambda t: t):
        out = warpup.moe_experts(**{**x, "weight_placement": weight_placement})
    out.sum().backward()
    given = {v.data_ptr() for v in x.values() if isinstance(v, torch.Tensor)}
    made = sorted(t.numel() for at, t in kept.items() if at not in given and t.is_floating_point() and t.numel())
    copies = tokens * k
    assert made == sorted([copies * 2 * inner] + ([copies * width] if weight_placement == "combine" else []))


@pytest.mark.parametrize("weight_placement", WEIGHT_PLACEMENTS)
@pytest.mark.parametrize("trained", ["x", "weights", "w_gate_up", "w_down", "b_gate_up", "b_down"])
def test_no_work_for_what_is_frozen(weight_placement, trained, monkeypatch):
    """Only what is trained gets a gradient, the same as with all of them, and only its products are made."""
    x = LAYER.make(variant="oai") | {"weight_placement": weight_placement}
    names = ("x", "weights", "w_gate_up", "w_down", "b_gate_up", "b_down")

    def run(wanted):
        inputs = {k: v.clone().requires_grad_() if k in wanted else v for k, v in x.items()}
        warpup.moe_experts(**inputs).square().sum().backward()
        return {k: inputs[k].grad for k in wanted}

    want, made = run(names)[trained], []  # by the backward: the forward's are in C++
    for name in ("grouped_mm_nt", "grouped_mm_tn", "weight_gradient"):
        function = getattr(warpup.moe.moe_experts, name)

        def counted(*args, _name=name, _function=function, **options):
            made.append(_name)
            return _function(*args, **options)

        monkeypatch.setattr(warpup.moe.moe_experts, name, counted)
    assert torch.equal(run((trained,))[trained], want)
    expected = {
        "x": ["grouped_mm_nt"] * 2,
        "w_gate_up": ["grouped_mm_nt", "weight_gradient"],
        "w_down": ["weight_gradient"],
    }
    expected |= {"b_gate_up": ["grouped_mm_nt", "grouped_mm_tn"], "b_down": ["grouped_mm_tn"]}
    expected["weights"] = (
        [] if weight_placement == "combine" else ["grouped_mm_nt"] * 2
    )  # the second of them for b_down
    assert made == expected[trained]


def test_autocast():
    x = LAYER.make(device="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        got = LAYER.run(x)
    low = {k: v.bfloat16() if k in ("x", "w_gate_up", "w_down") else v for k, v in x.items()}
    for g, want in zip(got, LAYER.run(low), strict=True):
        torch.testing.assert_close(g.float(), want.float(), rtol=0, atol=0)
    assert got[0].dtype == torch.bfloat16
    assert all(t.dtype == torch.float32 for t in got[1:])


def test_weight_placements_agree_and_a_plan_may_be_given(backend):
    x = LAYER.make("small", torch.float64, backend.device)
    want = LAYER.run(x)
    for weight_placement in WEIGHT_PLACEMENTS:
        for plan in (None, moe_plan(x["indices"], len(x["w_down"]))):
            for got, w in zip(LAYER.run({**x, "weight_placement": weight_placement, "plan": plan}), want, strict=True):
                torch.testing.assert_close(got, w, rtol=1e-12, atol=1e-12)


def test_strided_x_and_an_expanded_gradient(backend):
    for dtype in (torch.float32, torch.bfloat16):
        x = LAYER.make("small", dtype, backend.device)
        transposed = {**x, "x": x["x"].t().contiguous().t()}
        for weight_placement in WEIGHT_PLACEMENTS:
            results = []
            for inputs in (x, transposed):
                inputs = {k: v.detach().requires_grad_() if k in LAYER.differentiable else v for k, v in inputs.items()}
                out = warpup.moe_experts(**{**inputs, "weight_placement": weight_placement})
                results.append(torch.autograd.grad(out.float().sum(), [inputs[k] for k in LAYER.differentiable]))
            for got, want in zip(*results, strict=True):
                torch.testing.assert_close(got, want)


def test_no_tokens_and_an_expanded_gradient(backend):
    """The weights' gradients are there and 0, also where nothing was computed."""
    x = LAYER.make("small", device=backend.device, variant="oai")
    x |= {k: x[k][:0] for k in ("x", "weights", "indices")}
    names = ("x", "weights", "w_gate_up", "w_down", "b_gate_up", "b_down")
    for weight_placement in WEIGHT_PLACEMENTS:
        inputs = {k: v.detach().requires_grad_() if k in names else v for k, v in x.items()} | {
            "weight_placement": weight_placement
        }
        out = warpup.moe_experts(**inputs)
        g = torch.tensor(0.3, device=backend.device).expand(out.shape)
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
        ({"weight_placement": "up"}, "weight_placement must be one of combine, "),
        ({"plan": moe_plan(x["indices"][:4], 4)}, "plan must be of indices"),
        ({"plan": moe_plan(x["indices"], 4, block=8)}, "made without a block"),
    ):
        with pytest.raises(ValueError, match=part):
            warpup.moe_experts(**{**x, **change})
