"""moe_experts: the experts of a layer as one operator. What it keeps for the backward is h, the output of the first
product.

Neither the sorted copies of x nor, but for one placement of the weights, the experts' outputs are kept; a backward
gathers the rows of x again, and makes the activation again from h. It has no kernel of its own: it composes those of
grouped_mm, glu and moe_combine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup import _autograd, _op
from warpup._arguments import explained
from warpup._op import accumulator, autocast
from warpup.moe.glu import ACTIVATIONS, reference_glu
from warpup.moe.grouped_mm import (
    check_like,
    check_offsets,
    cpu_kernels,
    expert_of,
    gradient_like,
    grouped_mm_nt,
    grouped_mm_tn,
    reference_grouped_mm,
    unit_stride,
    unit_stride_or_transposed,
    weight_gradient,
)
from warpup.moe.moe_gather import reference_moe_combine, reference_moe_gather
from warpup.moe.moe_plan import MoEPlan, moe_plan, reference_moe_plan

WEIGHT_PLACEMENTS = ("combine", "activation", "down")


def reference_moe_experts(
    x, weights, indices, w_gate_up, w_down, *, b_gate_up=None, b_down=None, activation="silu",
    weight_placement="combine",
):  # fmt: skip
    """`moe_experts` in plain torch."""
    plan = reference_moe_plan(indices, w_gate_up.shape[0])
    row = weights.to(x.dtype).reshape(-1)[plan.permutation.clamp_min(0)].unsqueeze(1)
    row = torch.where(plan.permutation.unsqueeze(1) < 0, 0, row)
    a = reference_glu(linear(reference_moe_gather(x, plan), w_gate_up, b_gate_up, plan.offsets), activation=activation)
    if weight_placement != "activation":
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


LAYER = (
    "Tensor x, Tensor weights, Tensor w_gate_up, Tensor w_down, Tensor offsets, Tensor permutation, Tensor inverse, "
    "Tensor? b_gate_up, Tensor? b_down, str activation, str weight_placement"
)


@_op.composite("moe_experts", on="CUDA")  # csrc/moe/moe_experts_torch.cpp is the same on a CPU
def _forward(
    x, weights, w_gate_up, w_down, offsets, permutation, inverse, b_gate_up, b_down, activation, weight_placement,
    library,
):  # fmt: skip
    tokens = permutation // max(inverse.shape[1], 1)
    h = grouped_mm_nt(x, w_gate_up, offsets, tokens)
    add_bias_(h, b_gate_up, offsets)
    if weight_placement == "activation":
        a = _op.ops.glu(h, weights.flatten(), permutation, activation)
    else:
        a = _op.ops.glu(h, None, None, activation)
    o = grouped_mm_nt(a, w_down, offsets)
    if weight_placement == "activation":
        add_bias_(o, b_down, offsets, None if b_down is None else row_weights(weights, permutation))
        weights = None  # it is in o
    else:
        add_bias_(o, b_down, offsets)
    out = _op.ops.moe_combine(o, weights, permutation, inverse)
    return out, h, o if weight_placement == "combine" else o.new_empty(0)


@_op.composite(
    f"moe_experts_backward({LAYER}, Tensor h, Tensor o, Tensor grad_out, bool[] needs) -> (Tensor grad_x, "
    "Tensor grad_weights, Tensor grad_w_gate_up, Tensor grad_w_down, Tensor grad_b_gate_up, Tensor grad_b_down)"
)
def _backward(
    x, weights, w_gate_up, w_down, offsets, permutation, inverse, b_gate_up, b_down, activation, weight_placement,
    h, o, grad_out, needs,
):  # fmt: skip
    need_x, need_weights, need_gate_up, need_down, need_b_gate_up, need_b_down = needs
    tokens = permutation // max(inverse.shape[1], 1)
    grad_x, grad_weights, grad_gate_up, grad_down, grad_b_gate_up, grad_b_down = (x.new_empty(0) for _ in needs)

    # Back through the weighted sum: `source` holds the gradient of the experts' outputs, in the rows of the plan, or
    # token by token where the weight comes in later: then sorted row s is source[rows[s]].
    if weight_placement == "combine":
        source, dw = _op.ops.moe_combine_backward(o, weights, permutation, inverse, unit_stride(grad_out))
        grad_weights = dw if need_weights else grad_weights
        rows, on_a, ones = None, (None, None), x.new_ones(len(tokens), 1)
    else:
        source, rows, on_a = grad_out, tokens, (weights.flatten(), permutation)
        ones = row_weights(weights, permutation).to(x.dtype).unsqueeze(1)
    weights_at_a = need_weights and weight_placement != "combine"

    # Back through the activation, which is made again on the way.
    if need_x or need_gate_up or need_b_gate_up or weights_at_a:
        d_a = grouped_mm_nt(source, w_down.mT, offsets, rows)
        d_h, sums, a = _op.ops.glu_backward(h, *on_a, activation, d_a, need_down)
        del d_a
    elif need_down:
        a = _op.ops.glu(h, *on_a, activation)
    if weights_at_a:
        if b_down is not None:
            on_bias = grouped_mm_nt(source, b_down.unsqueeze(1), offsets, rows).flatten()
            sums += torch.where(inverse < 0, 0, on_bias[inverse.clamp_min(0)]).flatten()
        grad_weights = sums.view(weights.shape)

    # The parameters and x.
    if need_b_down:
        grad_b_down = grouped_mm_tn(source, ones, offsets, rows).squeeze(-1)
    if need_down:
        grad_down = weight_gradient(w_down, source, a, offsets, rows)
        del a
    if need_gate_up:
        grad_gate_up = weight_gradient(w_gate_up, d_h, x, offsets, x_rows=tokens)
    if need_b_gate_up:
        grad_b_gate_up = grouped_mm_tn(d_h, torch.ones_like(d_h[:, :1]), offsets).squeeze(-1)
    if need_x:
        grad_x = _op.ops.moe_gather_backward(permutation, inverse, grouped_mm_nt(d_h, w_gate_up.mT, offsets))
    return grad_x, grad_weights, grad_gate_up, grad_down, grad_b_gate_up, grad_b_down


@_op.fake("moe_experts")
def _(x, weights, w_gate_up, w_down, offsets, permutation, inverse, b_gate_up, b_down, activation, weight_placement, _):
    rows, width = permutation.shape[0], x.shape[1]
    o = x.new_empty((rows, width) if weight_placement == "combine" else 0)
    return torch.empty_like(x), x.new_empty(rows, w_gate_up.shape[1]), o


def _gradients(x, weights, w_gate_up, w_down, offsets, permutation, inverse, b_gate_up, b_down, *rest):
    *_, needs = rest

    def like(t, needed):
        if not needed:
            return x.new_empty(0)
        return gradient_like(t, needed) if t.dim() == 3 else t.new_empty(t.shape)

    inputs = (x, weights, w_gate_up, w_down, b_gate_up, b_down)
    return tuple(like(t, needed) for t, needed in zip(inputs, needs, strict=True))


_moe_experts = _autograd.differentiable("moe_experts", backward_fake=_gradients)


@explained
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
    weight_placement: str = "combine",
    plan: MoEPlan | None = None,
) -> Tensor:
    """The experts of a dropless mixture: `out[t] = sum_j weights[t, j] FFN_e(x[t])` with e = indices[t, j].

    `FFN_e(x) = w_down[e] (act(gate) up) + b_down[e]`, `(gate, up) = w_gate_up[e] x + b_gate_up[e]`.

    Args:
        x: (T, H) float32, bfloat16, float16 or float64; under autocast x, w_* and b_* are cast to its type.
        weights: (T, k), of a floating dtype.
        indices: (T, k) int64 in [0, E), or -1: that copy is dropped. An expert may come twice in a row.
        w_gate_up: (E, 2 I, H) of x's dtype, the gate's rows first (of swiglu_oai interleaved).
        w_down: (E, H, I). Transposed views of either are taken as they are, their gradients have their layout.
        b_gate_up, b_down: (E, 2 I) and (E, H).
        activation: silu, gelu, gelu_tanh, relu; or swiglu_oai, gpt-oss's, of `glu`.
        weight_placement: where a copy's weight is multiplied in, which decides what is rounded and what is kept.
            "combine": on the experts' outputs, which are kept; "down": there, too, but in the backward the weight's
            gradient is found before the down projection, and they are not kept; "activation": on act(gate) up.
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
    check_layer(x, weights, indices, w_gate_up, w_down, b_gate_up, b_down, activation, weight_placement)
    if plan is None:
        plan = moe_plan(indices, w_gate_up.shape[0])
    else:
        if plan.inverse.shape != indices.shape or plan.permutation.shape != (indices.numel(),):
            raise ValueError(
                f"moe_experts: plan must be of indices, {tuple(indices.shape)}, and made without a block, got one of "
                f"{tuple(plan.inverse.shape)} with {plan.permutation.shape[0]} rows"
            )
        check_offsets("moe_experts", plan.offsets, w_gate_up.shape[0], x.device)
    b_gate_up, b_down = (b if b is None else b.contiguous() for b in (b_gate_up, b_down))
    out, _, _ = _moe_experts(
        unit_stride(x), weights.to(accumulator(x)).contiguous(), unit_stride_or_transposed(w_gate_up),
        unit_stride_or_transposed(w_down), plan.offsets, plan.permutation, plan.inverse, b_gate_up, b_down, activation,
        weight_placement, cpu_kernels.get(x.dtype) is None,
    )  # fmt: skip
    return out


def check_layer(x, weights, indices, w_gate_up, w_down, b_gate_up, b_down, activation, weight_placement) -> None:
    """Raises ValueError, before any product is made, if the operands do not fit each other."""
    op = "moe_experts"
    of_x, of_indices, up, down = x.shape, indices.shape, w_gate_up.shape, w_down.shape
    if len(of_x) != 2 or len(of_indices) != 2 or of_indices[0] != of_x[0] or indices.dtype != torch.int64:
        raise ValueError(
            f"{op}: x must be (T, H) and indices (T, k) int64, got {tuple(of_x)} and {tuple(of_indices)} "
            f"{indices.dtype}"
        )
    if weights.shape != of_indices or not weights.is_floating_point():
        raise ValueError(
            f"{op}: weights must be floating, of indices' shape {tuple(of_indices)}, got {weights.dtype} of shape "
            f"{tuple(weights.shape)}"
        )
    width = of_x[1]
    if len(down) != 3 or up != (down[0], 2 * down[2], width) or down[1] != width:
        raise ValueError(
            f"{op}: w_gate_up must be (E, 2 I, H) and w_down (E, H, I) with H = {width}, got {tuple(up)} and "
            f"{tuple(down)}"
        )
    for name, bias, shape in (("b_gate_up", b_gate_up, up), ("b_down", b_down, down)):
        if bias is not None and bias.shape != shape[:2]:
            raise ValueError(f"{op}: {name} must have shape {tuple(shape[:2])}, got {tuple(bias.shape)}")
    check_like(op, "x", x, w_gate_up=w_gate_up, w_down=w_down, b_gate_up=b_gate_up, b_down=b_down)
    for name, t in (("weights", weights), ("indices", indices)):
        if t.device != x.device:
            raise ValueError(f"{op}: {name} must be on {x.device} like x, got {t.device}")
    if activation not in ACTIVATIONS:
        raise ValueError(f"{op}: activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    if weight_placement not in WEIGHT_PLACEMENTS:
        known = ", ".join(WEIGHT_PLACEMENTS)
        raise ValueError(f"{op}: weight_placement must be one of {known}, got {weight_placement!r}")
