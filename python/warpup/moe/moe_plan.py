"""moe_plan: the copies of tokens sorted by the expert they go to.

T tokens, E experts, k of them a token, S = T k copies of tokens. Contract, numerics and bytes moved:
csrc/moe/moe_plan.h.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from warpup import _op
from warpup._arguments import explained


class MoEPlan(NamedTuple):
    """Copies sorted by expert, stable: expert e's are rows [offsets[e], offsets[e] + counts[e]) of the sorted order."""

    counts: Tensor  # (E,) int64
    offsets: Tensor  # (E + 1,) int64; all multiples of `block` where one was asked for
    permutation: Tensor  # (rows,) int64: sorted row -> copy t * k + j; -1 in rows that hold none
    inverse: Tensor  # (T, k) int64: copy -> sorted row; -1 for a dropped one

    def block_experts(self, block: int) -> Tensor:
        """(rows // block,) int64, for tiled kernels: the expert of each block of a plan made with this `block`; E
        behind the last one. Raises ValueError where the block is not the plan's (on CUDA, where looking would
        synchronize, only if the rows are no multiple of it)."""
        rows = self.permutation.shape[0]
        if block < 1 or rows % block or (self.offsets.is_cpu and bool((self.offsets % block).any())):
            raise ValueError(f"MoEPlan.block_experts: block must be the plan's own, got {block} for {rows} rows")
        first = torch.arange(0, rows, block, device=self.offsets.device)
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


@_op.fake("moe_plan")
def _(indices, num_experts, block):
    rows = plan_rows(indices.numel(), num_experts, block)
    shapes = ((num_experts,), (num_experts + 1,), (rows,), indices.shape)
    return tuple(indices.new_empty(shape, dtype=torch.int64) for shape in shapes)


@explained
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
            where checking would synchronize, such a copy is dropped.
    """
    if indices.dim() != 2 or indices.dtype not in (torch.int64, torch.int32):
        raise ValueError(
            f"moe_plan: indices must be a (T, k) int64 or int32 tensor, got {tuple(indices.shape)} {indices.dtype}"
        )
    return MoEPlan(*_op.ops.moe_plan(indices.contiguous(), num_experts, 1 if block is None else block))
