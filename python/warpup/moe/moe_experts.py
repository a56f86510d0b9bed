"""The experts of a layer as one operator: what it keeps for the backward is h, the output of the first product.

Neither the sorted copies of x nor, but for one placement of the weights, the experts' outputs are kept; a backward
gathers the rows of x again, and makes the activation again from h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup import _op
from warpup._op import accumulator, autocast, once_differentiable
from warpup.moe.glu import ACTIVATIONS, reference_glu
from warpup.moe.grouped_mm import (
    check_like,
    check_offsets,
    expert_of,
    products,
    reference_grouped_mm,
    turned,
    unit_stride,
    weight_gradient,
    weight_products,
)
from warpup.moe.moe_gather import MoEPlan, moe_plan, reference_moe_combine, reference_moe_gather, reference_moe_plan

PLACEMENTS = ("combine", "activation", "down")

library = torch.library.Library("warpup", "FRAGMENT")
LAYER = (
    "Tensor x, Tensor weights, Tensor w_gate_up, Tensor w_down, Tensor? b_gate_up, Tensor? b_down, Tensor offsets, "
    "Tensor permutation, Tensor inverse, str activation, str placement"
)
library.define(f"moe_experts({LAYER}) -> (Tensor out, Tensor h, Tensor o)")
library.define(
    f"moe_experts_backward(Tensor grad, {LAYER}, Tensor h, Tensor o, bool[] needs) -> (Tensor grad_x, "
    "Tensor grad_weights, Tensor grad_gate_up, Tensor grad_down, Tensor grad_b_gate_up, Tensor grad_b_down)"
)
_op.raw("moe_experts", "moe_experts_backward")  # the kernels that they are made of are looked up there, too


def reference_moe_experts(
    x, weights, indices, w_gate_up, w_down, *, b_gate_up=None, b_down=None, activation="silu", placement="combine"
):
    """`moe_experts` in plain torch."""
    plan = reference_moe_plan(indices, w_gate_up.shape[0])
    row = weights.to(x.dtype).reshape(-1)[plan.permutation.clamp_min(0)].unsqueeze(1)
    row = torch.where(plan.permutation.unsqueeze(1) < 0, 0, row)
    a = reference_glu(linear(reference_moe_gather(x, plan), w_gate_up, b_gate_up, plan.offsets), activation=activation)
    if placement != "activation":
        return reference_moe_combine(linear(a, w_down, b_down, plan.offsets), weights, plan)
    o = reference_grouped_mm(a * row, w_down, plan.offsets)
    if b_down is not None:
        o = o + row * b_down[expert_of(plan.offsets, len(row))]
    return reference_moe_combine(o, torch.ones_like(weights), plan)


def linear(x, w, b, offsets):
    y = reference_grouped_mm(x, w, offsets)
    return y if b is None else y + b[expert_of(offsets, y.shape[0])]


def add_bias_(y: Tensor, bias: Tensor | None, offsets: Tensor, scale: Tensor | None = None) -> None:
    if bias is not None:
        rows = bias.index_select(0, expert_of(offsets, y.shape[0]))
        y += rows if scale is None else rows * scale.unsqueeze(1).to(rows.dtype)


def row_weights(weights: Tensor, permutation: Tensor) -> Tensor:
    """(S,) in the accumulator's type; 0 where there is no copy."""
    return torch.where(permutation < 0, 0, weights.reshape(-1).index_select(0, permutation.clamp_min(0)))


@torch.no_grad()
def _forward(x, weights, w_gate_up, w_down, b_gate_up, b_down, offsets, permutation, inverse, activation, placement):
    tokens = permutation // max(inverse.shape[1], 1)
    h = products(x, w_gate_up, offsets, tokens)
    add_bias_(h, b_gate_up, offsets)
    if placement == "activation":
        a = _op.ops.moe_glu(h, weights.flatten(), permutation, activation)
    else:
        a = _op.ops.moe_glu(h, None, None, activation)
    o = products(a, w_down, offsets)
    if placement == "activation":
        add_bias_(o, b_down, offsets, None if b_down is None else row_weights(weights, permutation))
        weights = None  # it is in o
    else:
        add_bias_(o, b_down, offsets)
    out = _op.ops.moe_combine(o, weights, inverse)
    return out, h, o if placement == "combine" else o.new_empty(0)


@torch.no_grad()
def _backward(
    grad, x, weights, w_gate_up, w_down, b_gate_up, b_down, offsets, permutation, inverse, activation, placement,
    h, o, needs,
):  # fmt: skip
    need_x, need_weights, need_gate_up, need_down, need_b_gate_up, need_b_down = needs
    tokens = permutation // max(inverse.shape[1], 1)
    grad_x, grad_weights, grad_gate_up, grad_down, grad_b_gate_up, grad_b_down = (x.new_empty(0) for _ in needs)
    if placement == "combine":  # the weight is on d_o, the rows of the experts' gradient
        grad = unit_stride(grad)
        d_o, dw = _op.ops.moe_combine_backward(grad, o, weights, permutation, inverse)
        grad_weights = dw if need_weights else grad_weights
        source, rows, on_a, ones = d_o, None, (None, None), x.new_ones(len(tokens), 1)
    else:  # the weight is on the activation; source is the gradient as it came
        source, rows, on_a = grad, tokens, (weights.flatten(), permutation)
        ones = row_weights(weights, permutation).to(x.dtype).unsqueeze(1)
    sums = torch.zeros_like(weights).flatten() if need_weights and placement != "combine" else None
    if need_x or need_gate_up or need_b_gate_up or sums is not None:
        d_a = products(source, w_down.mT, offsets, rows)
        d_h, a = _op.ops.moe_glu_backward(h, *on_a, d_a, activation, need_down, sums)
        del d_a
    elif need_down:
        a = _op.ops.moe_glu(h, *on_a, activation)
    if sums is not None:
        if b_down is not None:
            on_bias = products(source, b_down.unsqueeze(1), offsets, rows).flatten()
            sums += torch.where(inverse < 0, 0, on_bias[inverse.clamp_min(0)]).flatten()
        grad_weights = sums.view(weights.shape)
    if need_b_down:
        grad_b_down = weight_products(source, ones, offsets, rows).squeeze(-1)
    if need_down:
        grad_down = weight_gradient(w_down, source, a, offsets, rows)
        del a
    if need_gate_up:
        grad_gate_up = weight_gradient(w_gate_up, d_h, x, offsets, x_rows=tokens)
    if need_b_gate_up:
        grad_b_gate_up = weight_products(d_h, torch.ones_like(d_h[:, :1]), offsets).squeeze(-1)
    if need_x:
        grad_x = _op.ops.moe_combine(products(d_h, w_gate_up.mT, offsets), None, inverse)
    return grad_x, grad_weights, grad_gate_up, grad_down, grad_b_gate_up, grad_b_down


library.impl("moe_experts", _forward, "CompositeExplicitAutograd")
library.impl("moe_experts_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("warpup::moe_experts")
def _(x, weights, w_gate_up, w_down, b_gate_up, b_down, offsets, permutation, inverse, activation, placement):
    rows, width = permutation.shape[0], x.shape[1]
    o = x.new_empty((rows, width) if placement == "combine" else 0)
    return torch.empty_like(x), x.new_empty(rows, w_gate_up.shape[1]), o


@torch.library.register_fake("warpup::moe_experts_backward")
def _(
    grad, x, weights, w_gate_up, w_down, b_gate_up, b_down, offsets, permutation, inverse, activation, placement,
    h, o, needs,
):  # fmt: skip
    def like(t, needed):
        if not needed:
            return x.new_empty(0)
        return t.new_empty(t.mT.shape).mT if t.dim() == 3 and turned(t) else t.new_empty(t.shape)

    inputs = (x, weights, w_gate_up, w_down, b_gate_up, b_down)
    return tuple(like(t, needed) for t, needed in zip(inputs, needs, strict=True))


class MoEExperts(torch.autograd.Function):
    @staticmethod
    def forward(x, weights, w_gate_up, w_down, b_gate_up, b_down, *rest):
        return torch.ops.warpup.moe_experts(x, weights, w_gate_up, w_down, b_gate_up, b_down, *rest)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.activation, ctx.placement = inputs
        _, h, o = output
        ctx.mark_non_differentiable(h, o)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, h, o)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad, *_):
        if grad is None:
            return (None,) * 11
        *tensors, h, o = ctx.saved_tensors
        needs = list(ctx.needs_input_grad[:6])
        found = torch.ops.warpup.moe_experts_backward(grad, *tensors, ctx.activation, ctx.placement, h, o, needs)
        return (*(g if needed else None for g, needed in zip(found, needs, strict=True)), *(None,) * 5)


def moe_experts(
    x: Tensor,
    weights: Tensor,
    indices: Tensor,
    w_gate_up: Tensor,
    w_down: Tensor,
    *,
    b_gate_up: Tensor | None = None,
    b_down: Tensor | None = None,
    activation: str = "silu",
    placement: str = "combine",
    plan: MoEPlan | None = None,
) -> Tensor:
    """The experts of a dropless mixture: `out[t] = sum_j weights[t, j] FFN_e(x[t])` with e = indices[t, j].

    `FFN_e(x) = w_down[e] (act(gate) up) + b_down[e]`, `(gate, up) = w_gate_up[e] x + b_gate_up[e]`.

    Args:
        x: (T, H) float32, bfloat16, float16 or float64; under autocast x, w_* and b_* are cast to its type.
        weights: (T, k), of a floating dtype.
        indices: (T, k) int64 in [0, E), or -1: that copy is dropped. An expert may come twice in a row.
        w_gate_up: (E, 2 I, H) of x's dtype, the gate's rows first (of swiglu_oai in turns).
        w_down: (E, H, I). Transposed views of either are taken as they are, their gradients have their layout.
        b_gate_up, b_down: (E, 2 I) and (E, H).
        activation: silu, gelu, gelu_tanh, relu; or swiglu_oai, gpt-oss's, of `glu`.
        placement: where the weight goes, which decides what is rounded and what is kept. "combine": on the experts'
            outputs, which are kept; "down": there, too, but in the backward the weight's gradient is found before the
            down projection, and they are not kept; "activation": on act(gate) up.
        plan: `moe_plan(indices, E)`, where it is there already.

    Returns:
        (T, H) of x's dtype; a token all of whose copies are dropped gets 0. Gradients reach x, weights, w_* and b_*;
        no work is done for one that is not needed.

    Memory: kept for the backward beside the arguments are T k (2 I) elements, with "combine" T k (2 I + H), and the
        plan, 16 bytes a copy. While it runs, the forward holds T k (I + H) elements more, the backward T k (3 I + H),
        with "combine" T k (3 I + 2 H), beside its results.

    Raises:
        ValueError: a shape, dtype, device or name does not fit, or (CPU only) an index is out of range.

    Source: dropless experts of MegaBlocks; the weights' gradient without the experts' outputs, as in SonicMoE.
    """
    x, w_gate_up, w_down, b_gate_up, b_down = autocast(x, w_gate_up, w_down, b_gate_up, b_down)
    check_layer(x, weights, indices, w_gate_up, w_down, b_gate_up, b_down, activation, placement)
    if plan is None:
        plan = moe_plan(indices, w_gate_up.shape[0])
    else:
        if plan.inverse.shape != indices.shape or plan.permutation.shape != (indices.numel(),):
            raise ValueError(
                f"moe_experts: plan must be of indices, {tuple(indices.shape)}, and made without a block, got one of "
                f"{tuple(plan.inverse.shape)} with {plan.permutation.shape[0]} rows"
            )
        check_offsets("moe_experts", plan.offsets, w_gate_up.shape[0], indices.numel(), x.device)
    tensors = (x, weights.to(accumulator(x)), w_gate_up, w_down, b_gate_up, b_down)
    rest = (plan.offsets, plan.permutation, plan.inverse, activation, placement)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        return MoEExperts.apply(*tensors, *rest)[0]
    return torch.ops.warpup.moe_experts(*tensors, *rest)[0]


def check_layer(x, weights, indices, w_gate_up, w_down, b_gate_up, b_down, activation, placement) -> None:
    """Raises ValueError, before any product is made, if the operands do not fit each other."""
    op = "moe_experts"
    if x.dim() != 2 or indices.dim() != 2 or indices.shape[0] != x.shape[0] or indices.dtype != torch.int64:
        raise ValueError(
            f"{op}: x must be (T, H) and indices (T, k) int64, got {tuple(x.shape)} and {tuple(indices.shape)} "
            f"{indices.dtype}"
        )
    if weights.shape != indices.shape or not weights.is_floating_point():
        raise ValueError(
            f"{op}: weights must be floating, of indices' shape {tuple(indices.shape)}, got {weights.dtype} of shape "
            f"{tuple(weights.shape)}"
        )
    width = x.shape[1]
    if (
        w_down.dim() != 3
        or w_gate_up.shape != (w_down.shape[0], 2 * w_down.shape[-1], width)
        or w_down.shape[1] != width
    ):
        raise ValueError(
            f"{op}: w_gate_up must be (E, 2 I, H) and w_down (E, H, I) with H = {width}, got "
            f"{tuple(w_gate_up.shape)} and {tuple(w_down.shape)}"
        )
    for name, bias, w in (("b_gate_up", b_gate_up, w_gate_up), ("b_down", b_down, w_down)):
        if bias is not None and bias.shape != w.shape[:2]:
            raise ValueError(f"{op}: {name} must have shape {tuple(w.shape[:2])}, got {tuple(bias.shape)}")
    check_like(op, "x", x, w_gate_up=w_gate_up, w_down=w_down, b_gate_up=b_gate_up, b_down=b_down)
    for name, t in (("weights", weights), ("indices", indices)):
        if t.device != x.device:
            raise ValueError(f"{op}: {name} must be on {x.device} like x, got {t.device}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if placement not in PLACEMENTS:
        raise ValueError(f"{op}: placement must be one of {', '.join(PLACEMENTS)}, got {placement!r}")
