"""moe_gather and moe_combine beyond the contract: shapes, strides, edges, gradients, messages."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.moe.test_moe_plan import routings
from tests.support.cases import OPS
from warpup import MoEPlan, moe_combine, moe_gather, moe_plan
from warpup.moe.moe_plan import reference_moe_plan

GATHER, COMBINE = OPS["moe_gather"], OPS["moe_combine"]
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@st.composite
def layers(draw):
    """Inputs of both ops on one plan, from memory that is contiguous, misaligned or padded."""
    indices, experts, block = draw(routings())
    width, dtype = draw(st.sampled_from([0, 1, 3, 8, 33, 256, 520])), draw(st.sampled_from(FLOATS))
    layout = draw(st.sampled_from(["contiguous", "misaligned", "padded", "transposed"]))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    plan = reference_moe_plan(indices[:40], experts, block=block)

    def fill(rows):
        if layout == "misaligned":
            return torch.randn(rows * width + 1, generator=rng).to(dtype)[1:].view(rows, width)
        if layout == "padded":
            return torch.randn(rows, width + 8, generator=rng).to(dtype)[:, 8:]
        if layout == "transposed":
            return torch.randn(width, rows, generator=rng).to(dtype).T
        return torch.randn(rows, width, generator=rng).to(dtype)

    weights = torch.randn(plan.inverse.shape, generator=rng, dtype=draw(st.sampled_from([torch.float32, dtype])))
    return fill(len(indices[:40])), fill(len(plan.permutation)), weights, plan


@given(layer=layers())
@settings(max_examples=30)
def test_shapes_and_strides(backend, layer):
    x, y, weights, plan = layer
    plan = MoEPlan(*(t.to(backend.device) for t in plan))
    GATHER.check({"x": x.to(backend.device), "plan": plan})
    COMBINE.check({"y": y.to(backend.device), "weights": weights.to(backend.device), "plan": plan})


@pytest.mark.parametrize("routing", ["one_expert", "each_expert", "one_of_one", "twice", "none"])
def test_edges(backend, routing):
    """All tokens on one expert; k = E; E = 1; an expert twice in a token; every copy dropped."""
    tokens, k, experts = 9, 4, 4
    indices = {
        "one_expert": torch.full((tokens, 1), 2),
        "each_expert": torch.arange(k).expand(tokens, k).contiguous(),
        "one_of_one": torch.zeros(tokens, 1, dtype=torch.int64),
        "twice": torch.tensor([[3, 3, 1, 3]]).repeat(tokens, 1),
        "none": torch.full((tokens, k), -1),
    }[routing].to(backend.device)
    plan = moe_plan(indices, 1 if routing == "one_of_one" else experts)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, 20, generator=rng).to(backend.device)
    weights = torch.rand(indices.shape, generator=rng).to(backend.device)
    rows = moe_gather(x, plan)
    held = plan.inverse >= 0
    torch.testing.assert_close(rows[plan.inverse[held]], x.repeat_interleave(held.sum(1), 0), rtol=0, atol=0)
    assert not rows[plan.permutation < 0].any()
    together = (weights * held).sum(1, keepdim=True)
    torch.testing.assert_close(moe_combine(rows, weights, plan), together * x)
    GATHER.check({"x": x, "plan": plan})
    COMBINE.check({"y": rows, "weights": weights, "plan": plan})


def test_what_is_dropped_does_not_spread(backend):
    """NaN in rows that hold no copy, and weights of copies that were dropped, change nothing."""
    plan = moe_plan(torch.tensor([[0, -1], [1, 0]], device=backend.device), 2, block=4)
    y = torch.full((len(plan.permutation), 3), torch.nan, device=backend.device)
    y[plan.permutation >= 0] = 1.0
    weights = torch.tensor([[0.5, torch.nan], [0.25, 0.5]], device=backend.device, requires_grad=True)
    y.requires_grad_()
    out = moe_combine(y, weights, plan)
    assert out.tolist() == [[0.5] * 3, [0.75] * 3]
    out.sum().backward()
    assert weights.grad.tolist() == [[3, 0], [3, 3]]
    assert y.grad[plan.inverse[plan.inverse >= 0], 0].tolist() == [0.5, 0.25, 0.5]
    assert not y.grad[plan.permutation < 0].any()


def test_a_plan_of_other_rows_stays_inside(backend):
    """Sorted rows that are not there count as dropped, so that a wrong plan reads no foreign memory."""
    plan = moe_plan(torch.tensor([[0], [1]], device=backend.device), 2)
    y = torch.ones(2, 4, device=backend.device)
    far = plan._replace(inverse=torch.tensor([[2], [2**40]], device=backend.device))
    assert not moe_combine(y, torch.ones(2, 1, device=backend.device), far).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_backward_twice(backend, dtype):
    plan = moe_plan(torch.tensor([[0, 2], [1, 2], [2, 0]], device=backend.device), 3)
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(3, 24, generator=rng).to(backend.device, dtype).requires_grad_()
    weights = torch.rand(3, 2, generator=rng).to(backend.device).requires_grad_()
    out = moe_combine(moe_gather(x, plan).square(), weights, plan)
    gradient = torch.randn(3, 24, generator=rng).to(backend.device, dtype)
    first, second = (torch.autograd.grad(out, (x, weights), gradient, retain_graph=True) for _ in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("gradient", ["expanded", "strided"])
def test_gradient_strides(backend, gradient):
    plan = moe_plan(torch.tensor([[0, 2], [1, 2], [2, 0]], device=backend.device), 3)
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(3, 8, generator=rng).to(backend.device), torch.randn(6, 8, generator=rng).to(backend.device)
    weights = torch.rand(3, 2, generator=rng).to(backend.device)
    for op, inputs in ((moe_gather, (x,)), (moe_combine, (y, weights))):
        inputs = [v.requires_grad_() for v in inputs]
        out = op(*inputs, plan)
        g = torch.tensor(0.3, device=backend.device).expand(out.shape)
        if gradient == "strided":
            g = torch.randn(8, len(out), generator=rng).to(backend.device).T
        got = torch.autograd.grad(out, inputs, g, retain_graph=True)
        torch.testing.assert_close(got, torch.autograd.grad(out, inputs, g.contiguous()), rtol=0, atol=0)


def test_no_tokens_and_an_expanded_gradient(backend):
    """T = 0, also in a padded plan, whose rows hold nothing; gradients of stride 0, of no element or of padding."""
    for block in (None, 4):
        plan = moe_plan(torch.empty(0, 2, dtype=torch.int64, device=backend.device), 3, block=block)
        x, weights = torch.empty(0, 8, device=backend.device), torch.empty(0, 2, device=backend.device)
        y = torch.ones(len(plan.permutation), 8, device=backend.device)
        assert len(y) == (8 if block else 0)
        for op, inputs in ((moe_gather, (x,)), (moe_combine, (y, weights))):
            inputs = [v.requires_grad_() for v in inputs]
            out = op(*inputs, plan)
            assert not out.any()
            g = torch.tensor(0.3, device=backend.device).expand(out.shape)
            for grad, v in zip(torch.autograd.grad(out, inputs, g), inputs, strict=True):
                assert grad.shape == v.shape
                assert not grad.any()


def test_only_one_needs_a_gradient(backend):
    inputs = COMBINE.make(device=backend.device, variant="dropped")
    y, weights, plan = inputs.values()
    both = COMBINE.run(inputs)
    g = torch.randn(both[0].shape, generator=torch.Generator().manual_seed(1)).to(backend.device)
    (dy,) = torch.autograd.grad(moe_combine(v := y.detach().requires_grad_(), weights.detach(), plan), v, g)
    (dw,) = torch.autograd.grad(moe_combine(y.detach(), w := weights.detach().requires_grad_(), plan), w, g)
    torch.testing.assert_close(dy, both[1], rtol=0, atol=0)
    torch.testing.assert_close(dw, both[2], rtol=0, atol=0)


def test_autocast(backend):
    """Rows that autocast made bfloat16 are combined in float32 and rounded once; weights keep their dtype."""
    plan = moe_plan(torch.tensor([[0, 1], [1, 0]], device=backend.device), 2)
    x = torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).to(backend.device)
    weights = torch.tensor([[0.3, 0.7], [0.6, 0.4]], device=backend.device, requires_grad=True)
    with torch.autocast(backend.device, torch.bfloat16):
        y = moe_gather(x, plan) @ torch.eye(8, device=backend.device)
        out = moe_combine(y, weights, plan)
    assert out.dtype == y.dtype == torch.bfloat16
    torch.testing.assert_close(out, x.bfloat16())
    out.sum().backward()
    assert weights.grad.dtype == torch.float32


def test_streaming_stores():
    """Over 16 MiB the CPU kernel writes past the cache, from any alignment of the rows."""
    indices = torch.randint(7, (1100, 4), generator=torch.Generator().manual_seed(0))
    plan = moe_plan(indices, 7)
    x = torch.randn(1100, 1031, generator=torch.Generator().manual_seed(1))
    assert torch.equal(moe_gather(x, plan), x[plan.permutation // 4])
    COMBINE.check({"y": moe_gather(x, plan), "weights": torch.rand(1100, 4), "plan": plan})


# ---- messages -------------------------------------------------------------------------------------------------------

PLAN = reference_moe_plan(torch.tensor([[0, 1], [1, 1]]), 2)
X, Y, W = torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(2, 2)
WRONG = [
    (lambda: moe_gather(X[:1], PLAN), r"moe_gather: x must have shape \(2, 3\), got \(1, 3\)"),
    (lambda: moe_gather(X.long(), PLAN), "x must be float32, float64, bfloat16 or float16, got int64"),
    (lambda: moe_gather(X[0], PLAN), r"x must have 2 dimensions, got shape \(3\)"),
    (lambda: moe_gather(X, PLAN._replace(inverse=PLAN.inverse.int())), "inverse must be int64, got int32"),
    (lambda: moe_combine(Y, W[:1], PLAN), r"weights must have shape \(2, 2\), got \(1, 2\)"),
    (lambda: moe_combine(Y, W.long(), PLAN), "weights must be a floating tensor, got torch.int64"),
    (lambda: moe_combine(Y[0, 0], W, PLAN), r"y must be \(4, H\), the plan's rows, got \(\)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call()
