"""Mixture of experts: routing, the plan that sorts token copies by expert, gather and combine.

T tokens, E experts, k of them a token, S = T k copies of tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class MoEPlan(NamedTuple):
    """Copies sorted by expert, stable: expert e's are rows [offsets[e], offsets[e + 1]) of the sorted order."""

    counts: Tensor  # (E,) int64
    offsets: Tensor  # (E + 1,) int64
    permutation: Tensor  # (S,) int64: sorted row -> copy t * k + j; rows from offsets[E] on, which hold none, are -1
    inverse: Tensor  # (T, k) int64: copy -> sorted row; -1 for a dropped one


def reference_moe_plan(indices: Tensor, num_experts: int) -> MoEPlan:
    flat = indices.reshape(-1)
    kept = flat >= 0
    counts = torch.bincount(flat[kept], minlength=num_experts)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    order = torch.where(kept, flat, num_experts).argsort(stable=True)
    inverse = torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))
    order = torch.where(torch.arange(len(order), device=order.device) < offsets[-1], order, -1)
    return MoEPlan(counts, offsets, order, torch.where(kept, inverse, -1).view(indices.shape))


def reference_moe_gather(x: Tensor, plan: MoEPlan) -> Tensor:
    """(S, H): row s is the token of the copy at sorted row s; rows without a copy are 0."""
    k = plan.inverse.shape[1]
    held = (plan.permutation >= 0).unsqueeze(1)
    return torch.where(held, x[plan.permutation.clamp_min(0) // k], 0)


def reference_moe_combine(y: Tensor, weights: Tensor, plan: MoEPlan) -> Tensor:
    """(T, H): out[t] = sum over j of weights[t, j] y[inverse[t, j]], in float32; dropped copies add 0."""
    held = plan.inverse >= 0
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    rows = y[plan.inverse.clamp_min(0)].to(wide)
    return (torch.where(held, weights, 0).to(wide).unsqueeze(-1) * rows).sum(1).to(y.dtype)


moe_plan = reference_moe_plan
moe_gather = reference_moe_gather
moe_combine = reference_moe_combine
