"""moe_gather and moe_combine: a row for each copy of a token, in the order of a plan, and back to one row a token.

T tokens, E experts, k of them a token, S = T k copies of tokens. Contract, numerics and bytes moved:
csrc/moe/moe_gather.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup import _autograd, _op
from warpup._arguments import explained
from warpup._op import accumulator
from warpup.moe.grouped_mm import unit_stride
from warpup.moe.moe_plan import MoEPlan

# ---- moe_gather -----------------------------------------------------------------------------------------------------


def reference_moe_gather(x: Tensor, plan: MoEPlan) -> Tensor:
    """`moe_gather` by an index; its backward accumulates."""
    tokens, k = plan.inverse.shape
    zero = x.new_zeros(1, x.shape[1])
    return torch.cat([x, zero])[torch.where(plan.permutation >= 0, plan.permutation // max(k, 1), tokens)]


@_op.fake("moe_gather")
def _(x, permutation, inverse):
    return x.new_empty(permutation.shape[0], x.shape[1])


def _gradient(permutation, inverse, grad_out):
    return grad_out.new_empty(inverse.shape[0], grad_out.shape[1])


_moe_gather = _autograd.differentiable("moe_gather", backward_fake=_gradient)


@explained
def moe_gather(x: Tensor, plan: MoEPlan) -> Tensor:
    """The rows of tokens, in the order of the plan: row s is `x[permutation[s] // k]`, or 0 where it holds no copy.

    The backward sums the k rows of each token in float32, in their order: no atomics, the same bits every time.

    Args:
        x: (T, H) float32, bfloat16, float16 or float64; rows may be strided.
        plan: of `moe_plan` for these T tokens.

    Returns:
        (rows, H) in x's dtype.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    return _moe_gather(unit_stride(x), plan.permutation, plan.inverse)


# ---- moe_combine ----------------------------------------------------------------------------------------------------


def reference_moe_combine(y: Tensor, weights: Tensor, plan: MoEPlan) -> Tensor:
    """`moe_combine` by an index and a sum."""
    held, wide = plan.inverse >= 0, accumulator(y)
    rows = torch.cat([y, y.new_zeros(1, y.shape[1])])[torch.where(held, plan.inverse, len(y))]
    return (torch.where(held, weights, 0).to(wide).unsqueeze(-1) * rows.to(wide)).sum(1).to(y.dtype)


@_op.fake("moe_combine")
def _(y, weights, permutation, inverse):
    return y.new_empty(inverse.shape[0], y.shape[1])


def _gradients(y, weights, permutation, inverse, grad_out):
    return y.new_empty(y.shape), y.new_empty(inverse.shape, dtype=accumulator(y))


_moe_combine = _autograd.differentiable("moe_combine", backward_fake=_gradients)


@explained
def moe_combine(y: Tensor, weights: Tensor, plan: MoEPlan) -> Tensor:
    """The weighted sum of each token's rows: `out[t] = sum over j of weights[t, j] y[inverse[t, j]]`, in float32.

    One pass backward as well: `dy = weights * dout`, 0 in rows without a copy, and `dweights = <y row, dout>`, 0 for
    dropped copies. A weight of 0 is a weight like any other: its copy gets a dweights.

    Args:
        y: (rows, H) float32, bfloat16, float16 or float64, in the order of the plan; rows may be strided.
        weights: (T, k), any floating dtype; computed with in float32 (float64 for float64 y).
        plan: of `moe_plan`.

    Returns:
        (T, H) in y's dtype, rounded once; a token whose copies were all dropped gives 0.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    if not weights.is_floating_point():
        raise ValueError(f"moe_combine: weights must be a floating tensor, got {weights.dtype}")
    if y.dim() != 2 or y.shape[0] != plan.permutation.shape[0]:
        raise ValueError(
            f"moe_combine: y must be ({plan.permutation.shape[0]}, H), the plan's rows, got {tuple(y.shape)}"
        )
    return _moe_combine(unit_stride(y), weights.to(accumulator(y)).contiguous(), plan.permutation, plan.inverse)
