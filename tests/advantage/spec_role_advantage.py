"""Case table of `role_advantage`."""

from __future__ import annotations

import torch

import warpup
from tests.advantage.inputs import generator, no_backward
from tests.support.case import Case, Inputs, New, Thunk, name_of
from tests.support.inputs import moved_to
from warpup import arrays as core
from warpup.advantage.role_advantage import reference_role_advantage


def role_advantage_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; missing (NaN rewards, a role without rows)."""
    rows, count = size
    rng = generator(seed)
    rewards = torch.randn(rows, generator=rng, dtype=torch.float64)
    roles = torch.randint(count, (rows,), generator=rng)
    state = torch.randn(count, generator=rng, dtype=torch.float64)
    if variant == "missing":
        rewards[torch.rand(rows, generator=rng) < 0.3] = torch.nan
        roles = roles.clamp(min=1)
    inputs = {"rewards": rewards.to(dtype), "roles": roles, "baseline_state": state.to(dtype), "decay": 0.9}
    return moved_to(device, inputs)


def role_advantage_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    *arrays, decay = x.values()
    dtype = name_of(x["rewards"].dtype)
    outputs = {"advantages": new(tuple(x["rewards"].shape), dtype)}
    outputs["new_state"] = new(tuple(x["baseline_state"].shape), dtype)

    def forward():
        core.role_advantage(*arrays, decay=decay, **outputs)
        return tuple(outputs.values())

    return forward, no_backward


def role_advantage_bytes(x: Inputs) -> tuple[int, int]:
    rewards, state = x["rewards"], x["baseline_state"]
    return rewards.numel() * (2 * rewards.element_size() + 8) + 2 * state.numel() * state.element_size(), 0


CASES = [
    Case(
        op="role_advantage",
        family="advantage",
        call=warpup.role_advantage,
        reference=reference_role_advantage,
        sizes={"grad": (7, 2), "small": (131, 5), "threads": (3000, 6), "overhead": (16, 2), "bench": (8192, 8)},
        variants=("plain", "missing"),
        inputs=role_advantage_inputs,
        differentiable=(),
        raw=lambda ops, x: [("role_advantage", tuple(x.values()))],
        core=role_advantage_core,
        bytes=role_advantage_bytes,
        dtypes=(torch.float32, torch.float64),
    ),
]
