"""Mixture of experts: the plan that sorts token copies by expert, gather and combine.

T tokens, E experts, k of them a token, S = T k copies of tokens. Contracts, numerics and bytes moved: csrc/moe/*.h.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from warpup import _op
from warpup._op import accumulator, once_differentiable

_op.raw("moe_plan", "moe_gather", "moe_combine", "moe_combine_backward")


def fail(op: str, message: str):
    raise ValueError(f"{op}: {message}")


def _rows(x: Tensor) -> Tensor:
    """Rows may be strided, their elements may not."""
    return x if x.dim() == 0 or x.stride(-1) == 1 else x.contiguous()


# ---- moe_plan -------------------------------------------------------------------------------------------------------


class MoEPlan(NamedTuple):
    """Copies sorted by expert, stable: expert e's are rows [offsets[e], offsets[e] + counts[e]) of the sorted order."""

    counts: Tensor  # (E,) int64
    offsets: Tensor  # (E + 1,) int64; all multiples of `block` where one was asked for
    permutation: Tensor  # (rows,) int64: sorted row -> copy t * k + j; -1 in rows that hold none
    inverse: Tensor  # (T, k) int64: copy -> sorted row; -1 for a dropped one

    def block_experts(self, block: int) -> Tensor:
        """(rows // block,) int64, for tiled kernels: the expert of each block of a plan made with this `block`; E
        behind the last one."""
        first = torch.arange(0, self.permutation.shape[0], block, device=self.offsets.device)
        return torch.searchsorted(self.offsets, first, right=True) - 1


def plan_rows(copies: int, num_experts: int, block: int) -> int:
    return (copies + num_experts * (block - 1)) // block * block


def reference_moe_plan(indices: Tensor, num_experts: int, *, block: int | None = None) -> MoEPlan:
    """`moe_plan` with a library sort."""
    flat, block = indices.reshape(-1).long(), block or 1
    kept = flat >= 0
    counts = torch.bincount(flat[kept], minlength=num_experts)
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    offsets = torch.cat([counts.new_zeros(1), ((counts + block - 1) // block * block).cumsum(0)])
    order = torch.where(kept, flat, num_experts).argsort(stable=True)[: int(starts[-1])]
    expert = flat[order]
    rows = offsets[expert] + torch.arange(len(order), device=order.device) - starts[expert]
    permutation = torch.full((plan_rows(len(flat), num_experts, block),), -1, device=order.device)
    inverse = torch.full_like(flat, -1).index_put((order,), rows)
    return MoEPlan(counts, offsets, permutation.index_put((rows,), order), inverse.view(indices.shape))


@torch.library.register_fake("warpup::moe_plan")
def _(indices, num_experts, block):
    rows = plan_rows(indices.numel(), num_experts, block)
    shapes = ((num_experts,), (num_experts + 1,), (rows,), indices.shape)
    return tuple(indices.new_empty(shape, dtype=torch.int64) for shape in shapes)


def moe_plan(indices: Tensor, num_experts: int, *, block: int | None = None) -> MoEPlan:
    """Sort the copies of tokens by the expert they go to: a stable counting sort on the device, no wait for it.

    Args:
        indices: (T, k) int64 or int32 in [0, E), or -1: the copy is dropped. An expert may come twice in a row: each is
            a copy of its own.
        num_experts: E.
        block: pad the rows of each expert to a multiple of it, for kernels that work in tiles; the padding is -1 in
            `permutation`, 0 after `moe_gather`.

    Returns:
        A `MoEPlan`. It has as many rows as the worst case needs, S without `block` and S + E (block - 1) rounded down
        to a multiple of block with it, so that shapes do not depend on the routing.

    Raises:
        ValueError: a shape or dtype does not fit, E or block below 1, (CPU only) an index outside [-1, E). On CUDA,
            where checking would synchronise, such a copy is dropped.
    """
    if indices.dim() != 2 or indices.dtype not in (torch.int64, torch.int32):
        fail("moe_plan", f"indices must be a (T, k) int64 or int32 tensor, got {tuple(indices.shape)} {indices.dtype}")
    return MoEPlan(*_op.ops.moe_plan(indices.contiguous(), num_experts, 1 if block is None else block))


# ---- moe_gather -----------------------------------------------------------------------------------------------------


def reference_moe_gather(x: Tensor, plan: MoEPlan) -> Tensor:
    """`moe_gather` by an index; its backward accumulates."""
    tokens, k = plan.inverse.shape
    zero = x.new_zeros(1, x.shape[1])
    return torch.cat([x, zero])[torch.where(plan.permutation >= 0, plan.permutation // max(k, 1), tokens)]


@torch.library.register_fake("warpup::moe_gather")
def _(x, permutation, inverse):
    return x.new_empty(permutation.shape[0], x.shape[1])


class MoEGather(torch.autograd.Function):
    @staticmethod
    def forward(x, permutation, inverse):
        return _op.ops.moe_gather(x, permutation, inverse)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[2])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return _op.ops.moe_combine(_rows(grad), None, *ctx.saved_tensors), None, None


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
    arguments = (_rows(x), plan.permutation, plan.inverse)
    if x.requires_grad and torch.is_grad_enabled():
        return MoEGather.apply(*arguments)
    return _op.ops.moe_gather(*arguments)


# ---- moe_combine ----------------------------------------------------------------------------------------------------


def reference_moe_combine(y: Tensor, weights: Tensor, plan: MoEPlan) -> Tensor:
    """`moe_combine` by an index and a sum."""
    held, wide = plan.inverse >= 0, accumulator(y)
    rows = torch.cat([y, y.new_zeros(1, y.shape[1])])[torch.where(held, plan.inverse, len(y))]
    return (torch.where(held, weights, 0).to(wide).unsqueeze(-1) * rows.to(wide)).sum(1).to(y.dtype)


@torch.library.register_fake("warpup::moe_combine")
def _(y, weights, inverse):
    return y.new_empty(inverse.shape[0], y.shape[1])


@torch.library.register_fake("warpup::moe_combine_backward")
def _(grad, y, weights, permutation, inverse):
    return y.new_empty(y.shape), y.new_empty(inverse.shape, dtype=accumulator(y))


class MoECombine(torch.autograd.Function):
    @staticmethod
    def forward(y, weights, permutation, inverse):
        return _op.ops.moe_combine(y, weights, inverse)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        return *_op.ops.moe_combine_backward(_rows(grad), *ctx.saved_tensors), None, None


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
        fail("moe_combine", f"weights must be a floating tensor, got {weights.dtype}")
    if y.dim() != 2 or y.shape[0] != plan.permutation.shape[0]:
        fail("moe_combine", f"y must be ({plan.permutation.shape[0]}, H), the plan's rows, got {tuple(y.shape)}")
    y, weights = _rows(y), weights.to(accumulator(y)).contiguous()
    if (y.requires_grad or weights.requires_grad) and torch.is_grad_enabled():
        return MoECombine.apply(y, weights, plan.permutation, plan.inverse)
    return _op.ops.moe_combine(y, weights, plan.inverse)
