"""`group_plan`: rows with arbitrary ids, sorted into groups once for several calls of `group_advantage`.

Contract, method and bytes moved: csrc/advantage/group_plan.h.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from warpup import _op
from warpup._arguments import explained
from warpup.advantage._inputs import fail


class GroupPlan(NamedTuple):
    """Rows sorted into groups: group g is `order[offsets[g]:offsets[g + 1]]`."""

    order: Tensor  # (N,) int64
    offsets: Tensor  # (N + 1,) int64; from the number of groups on, all entries are N


def reference_group_plan(ids: Tensor) -> GroupPlan:
    """`group_plan` with a library sort: what runs on a GPU."""
    n = ids.shape[0]
    ids, order = torch.sort(ids, stable=True)
    rows = torch.arange(n, device=ids.device)
    first = torch.cat([ids.new_ones(min(n, 1), dtype=torch.bool), ids[1:] != ids[:-1]])
    group = torch.where(first, first.cumsum(0) - 1, n)  # rows that begin no group write N where N belongs
    offsets = torch.full((n + 1,), n, device=ids.device).scatter(0, group, torch.where(first, rows, n))
    return GroupPlan(order, offsets)


@_op.fake("group_plan")
def _(ids):
    return ids.new_empty(ids.shape, dtype=torch.int64), ids.new_empty(ids.shape[0] + 1, dtype=torch.int64)


@explained
def group_plan(ids: Tensor) -> GroupPlan:
    """Sort rows into groups by id, once for several calls of `group_advantage`.

    Args:
        ids: (N,) int64 or int32, any values in any order: negative, sparse, huge. They are compared, never an index.

    Returns:
        `order` (N,): rows by ascending id, those of one id in their former order; and `offsets` (N + 1,) into it,
        padded with N, since the number of groups is not known without waiting for the GPU.

    Raises:
        ValueError: `ids` is not one-dimensional or not an integer tensor.
    """
    if ids.dim() != 1 or ids.dtype not in (torch.int64, torch.int32):
        fail("group_plan", f"ids must be a (N,) int64 or int32 tensor, got {tuple(ids.shape)} {ids.dtype}")
    if ids.is_cpu:
        return GroupPlan(*_op.ops.group_plan(ids.contiguous()))  # has a CPU kernel only
    return reference_group_plan(ids)
