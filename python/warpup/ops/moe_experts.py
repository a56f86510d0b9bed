"""The experts themselves: products grouped by expert, and the whole layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from warpup.ops.moe import MoEPlan, moe_combine, moe_gather, moe_plan


def reference_grouped_mm(x: Tensor, w: Tensor, offsets: Tensor) -> Tensor:
    """x (S, K), w (E, N, K) as in nn.Linear, offsets (E + 1,): row s of expert e gives x[s] @ w[e].T; (S, N)."""
    bounds = offsets.tolist()
    parts = [x[a:b] @ m.t() for a, b, m in zip(bounds, bounds[1:], w, strict=False)]
    return torch.cat([*parts, x.new_zeros(x.shape[0] - bounds[-1], w.shape[1])])


def reference_moe_experts(x, weights, indices, w_gate_up, w_down, *, activation="silu", placement="combine"):
    """x (T, H), weights and indices (T, k), w_gate_up (E, 2 I, H) gate rows first, w_down (E, H, I); (T, H)."""
    plan: MoEPlan = moe_plan(indices, w_gate_up.shape[0])
    gate, up = reference_grouped_mm(moe_gather(x, plan), w_gate_up, plan.offsets).chunk(2, -1)
    act = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu}[activation]
    return moe_combine(reference_grouped_mm(act(gate) * up, w_down, plan.offsets), weights, plan)


grouped_mm = reference_grouped_mm
moe_experts = reference_moe_experts
