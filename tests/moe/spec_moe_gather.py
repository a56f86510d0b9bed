"""The moe family's entries of the case table (`cases.py`): plan, gather, combine."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import warpup
from tests.support.case import Case, Inputs, New, Thunk, name_of
from warpup import arrays as core
from warpup.moe import moe_gather as moe

BLOCK = 8
SIZES = {  # T, k, E (a constant of a compiled function), H
    "grad": (5, 3, 9, 6),
    "small": (67, 4, 9, 40),
    "threads": (700, 6, 64, 130),
    "overhead": (4, 2, 4, 8),
    "bench": (4096, 8, 128, 2048),
}


def no_backward() -> tuple:
    return ()


def routed(size, rng: torch.Generator, variant: str) -> Tensor:
    """(T, k) experts. Variants: plain, k different ones; dropped, some are -1, others come twice, some experts are
    empty."""
    tokens, k, experts, _ = size
    indices = torch.rand(tokens, experts, generator=rng).argsort(1)[:, :k].contiguous()
    if variant != "plain":
        indices = torch.randint(-1, max(experts * 2 // 3, 1), (tokens, k), generator=rng)
    return indices


def plan_of(size, rng: torch.Generator, variant: str, device: str) -> moe.MoEPlan:
    """Of the routing above; `padded` in blocks too."""
    block = BLOCK if variant == "padded" else None
    return moe.MoEPlan(
        *(t.to(device) for t in moe.reference_moe_plan(routed(size, rng, variant), size[2], block=block))
    )


# ---- moe_plan -------------------------------------------------------------------------------------------------------


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
    rows = moe.plan_rows(tokens * k, experts, block)
    shapes = {"counts": (experts,), "offsets": (experts + 1,), "permutation": (rows,), "inverse": (tokens, k)}
    outputs = {name: new(shape, "int64") for name, shape in shapes.items()}
    chunks = new((-(-tokens * k // 256), experts), "int64")  # up to 65,536 copies

    def forward():
        core.moe_plan(x["indices"], block=block, chunks=chunks, **outputs)
        return tuple(outputs.values())

    return forward, no_backward


def plan_bytes(x: Inputs) -> tuple[int, int]:
    return x["indices"].numel() * (x["indices"].element_size() + 16), 0


# ---- moe_gather -----------------------------------------------------------------------------------------------------


def gather_inputs(size, dtype, device, seed, variant) -> Inputs:
    rng = torch.Generator().manual_seed(seed)
    plan = plan_of(size, rng, variant, device)
    x = torch.randn(size[0], size[3], generator=rng, dtype=torch.float64)
    return {"x": x.to(device, dtype), "plan": plan}


def gather_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    plan = x["plan"]
    arguments = (x["x"], plan.permutation, plan.inverse)
    return [("moe_gather", arguments), ("moe_combine", (ops.moe_gather(*arguments), None, plan.inverse))]


def gather_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    tokens, plan = x["x"], x["plan"]
    dtype, width = name_of(tokens.dtype), tokens.shape[1]
    out, grad = new((len(plan.permutation), width), dtype), new(tuple(tokens.shape), dtype)

    def forward():
        core.moe_gather(tokens, plan.permutation, plan.inverse, out=out)
        return (out,)

    def backward():
        core.moe_combine(*gradients, inverse=plan.inverse, out=grad)
        return (grad,)

    return forward, backward


def gather_bytes(x: Inputs) -> tuple[int, int]:
    size = x["x"].shape[1] * x["x"].element_size()
    return (size * (x["x"].shape[0] + len(x["plan"].permutation)),) * 2


# ---- moe_combine ----------------------------------------------------------------------------------------------------


def combine_inputs(size, dtype, device, seed, variant) -> Inputs:
    rng = torch.Generator().manual_seed(seed)
    plan = plan_of(size, rng, variant, device)
    y = torch.randn(len(plan.permutation), size[3], generator=rng, dtype=torch.float64)
    weights = torch.rand(size[:2], generator=rng, dtype=torch.float64)
    if variant != "plain":
        weights[::3] = 0  # is no padding
    return {"y": y.to(device, dtype), "weights": weights.to(device, moe.accumulator(y.to(dtype))), "plan": plan}


def combine_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    y, weights, plan = x.values()
    grad = ops.moe_combine(y, weights, plan.inverse)
    return [
        ("moe_combine", (y, weights, plan.inverse)),
        ("moe_combine_backward", (grad, y, weights, plan.permutation, plan.inverse)),
    ]


def combine_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    y, weights, plan = x.values()
    dtype, acc = name_of(y.dtype), name_of(weights.dtype)
    out, grad = new((plan.inverse.shape[0], y.shape[1]), dtype), new(tuple(y.shape), dtype)
    grad_weights = new(tuple(weights.shape), acc)

    def forward():
        core.moe_combine(y, weights, plan.inverse, out=out)
        return (out,)

    def backward():
        arguments = (*gradients, plan.permutation, plan.inverse, weights, y)
        core.moe_gather(*arguments, out=grad, grad_weights=grad_weights)
        return grad, grad_weights

    return forward, backward


def combine_bytes(x: Inputs) -> tuple[int, int]:
    rows, tokens = x["y"].nbytes, len(x["weights"]) * x["y"].shape[1] * x["y"].element_size()
    return rows + tokens, 2 * rows + tokens


VARIANTS = ("plain", "dropped", "padded")
CASES = [
    Case(
        op="moe_plan",
        family="moe",
        call=warpup.moe_plan,
        reference=moe.reference_moe_plan,
        sizes=SIZES,
        variants=VARIANTS,
        inputs=plan_inputs,
        differentiable=(),
        raw=lambda ops, x: [("moe_plan", (x["indices"], x["num_experts"], x["block"] or 1))],
        core=plan_core,
        bytes=plan_bytes,
        dtypes=(torch.int64, torch.int32),
    ),
    Case(
        op="moe_gather",
        family="moe",
        call=warpup.moe_gather,
        reference=moe.reference_moe_gather,
        sizes=SIZES,
        variants=VARIANTS,
        inputs=gather_inputs,
        differentiable=("x",),
        raw=gather_raw,
        core=gather_core,
        bytes=gather_bytes,
    ),
    Case(
        op="moe_combine",
        family="moe",
        call=warpup.moe_combine,
        reference=moe.reference_moe_combine,
        sizes=SIZES,
        variants=VARIANTS,
        inputs=combine_inputs,
        differentiable=("y", "weights"),
        raw=combine_raw,
        core=combine_core,
        bytes=combine_bytes,
    ),
]
