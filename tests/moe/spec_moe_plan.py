"""The case table's entry of moe_plan, and the routings that moe_gather's share with it."""

from __future__ import annotations

import torch
from torch import Tensor

import warpup
from tests.support.case import Case, Inputs, New, Thunk
from warpup import arrays
from warpup.moe.moe_plan import MoEPlan, plan_rows, reference_moe_plan

VARIANTS = ("plain", "dropped", "padded")
BLOCK = 8
SIZES = {  # T, k, E (a constant of a compiled function), H
    "grad": (5, 3, 9, 6),
    "small": (67, 4, 9, 40),
    "threads": (700, 6, 64, 130),
    "overhead": (4, 2, 4, 8),
    "bench": (4096, 8, 128, 2048),
}


def routed(size, rng: torch.Generator, variant: str) -> Tensor:
    """(T, k) experts. Variants: plain, k different ones; dropped, some are -1, others come twice, some experts are
    empty."""
    tokens, k, experts, _ = size
    indices = torch.rand(tokens, experts, generator=rng).argsort(1)[:, :k].contiguous()
    if variant != "plain":
        indices = torch.randint(-1, max(experts * 2 // 3, 1), (tokens, k), generator=rng)
    return indices


def plan_of(size, rng: torch.Generator, variant: str, device: str) -> MoEPlan:
    """Of the routing above; `padded` in blocks too."""
    block = BLOCK if variant == "padded" else None
    return MoEPlan(*(t.to(device) for t in reference_moe_plan(routed(size, rng, variant), size[2], block=block)))


def no_backward() -> tuple:
    return ()


def plan_inputs(size, dtype, device, seed, variant) -> Inputs:
    """The dtype is that of the indices, int64 where it is a floating one."""
    indices = routed(size, torch.Generator().manual_seed(seed), variant)
    return {
        "indices": indices.to(device, torch.int64 if dtype.is_floating_point else dtype),
        "num_experts": size[2],
        "block": BLOCK if variant == "padded" else None,
    }


def plan_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    (tokens, k), experts, block = tuple(x["indices"].shape), x["num_experts"], x["block"] or 1
    rows = plan_rows(tokens * k, experts, block)
    shapes = {"counts": (experts,), "offsets": (experts + 1,), "permutation": (rows,), "inverse": (tokens, k)}
    outputs = {name: new(shape, "int64") for name, shape in shapes.items()}
    chunks = new((-(-tokens * k // 256), experts), "int64")  # up to 65,536 copies

    def forward():
        arrays.moe_plan(x["indices"], block=block, chunks=chunks, **outputs)
        return tuple(outputs.values())

    return forward, no_backward


def plan_bytes(x: Inputs) -> tuple[int, int]:
    return x["indices"].numel() * (x["indices"].element_size() + 16), 0


CASES = [
    Case(
        op="moe_plan",
        family="moe",
        call=warpup.moe_plan,
        reference=reference_moe_plan,
        sizes=SIZES,
        variants=VARIANTS,
        inputs=plan_inputs,
        differentiable=(),
        raw=lambda ops, x: [("moe_plan", (x["indices"], x["num_experts"], x["block"] or 1))],
        core=plan_core,
        bytes=plan_bytes,
        dtypes=(torch.int64, torch.int32),
    ),
]
