"""The case table's entries of moe_gather and moe_combine."""

from __future__ import annotations

from typing import Any

import torch

import warpup
from tests.moe.spec_moe_plan import SIZES, VARIANTS, plan_of
from tests.support.case import Case, Inputs, New, Thunk, name_of
from warpup import arrays
from warpup._op import accumulator
from warpup.moe.moe_gather import reference_moe_combine, reference_moe_gather

# ---- moe_gather -----------------------------------------------------------------------------------------------------


def gather_inputs(size, dtype, device, seed, variant) -> Inputs:
    rng = torch.Generator().manual_seed(seed)
    plan = plan_of(size, rng, variant, device)
    x = torch.randn(size[0], size[3], generator=rng, dtype=torch.float64)
    return {"x": x.to(device, dtype), "plan": plan}


def gather_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    plan = x["plan"]
    arguments = (x["x"], plan.permutation, plan.inverse)
    return [
        ("moe_gather", arguments),
        ("moe_gather_backward", (plan.permutation, plan.inverse, ops.moe_gather(*arguments))),
    ]


def gather_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    tokens, plan = x["x"], x["plan"]
    dtype, width = name_of(tokens.dtype), tokens.shape[1]
    out, grad = new((len(plan.permutation), width), dtype), new(tuple(tokens.shape), dtype)

    def forward():
        arrays.moe_gather(tokens, plan.permutation, plan.inverse, out=out)
        return (out,)

    def backward():
        arrays.moe_combine(*gradients, inverse=plan.inverse, out=grad)
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
    return {"y": y.to(device, dtype), "weights": weights.to(device, accumulator(y.to(dtype))), "plan": plan}


def combine_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    y, weights, plan = x.values()
    arguments = (y, weights, plan.permutation, plan.inverse)
    return [("moe_combine", arguments), ("moe_combine_backward", (*arguments, ops.moe_combine(*arguments)))]


def combine_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    y, weights, plan = x.values()
    dtype, acc = name_of(y.dtype), name_of(weights.dtype)
    out, grad = new((plan.inverse.shape[0], y.shape[1]), dtype), new(tuple(y.shape), dtype)
    grad_weights = new(tuple(weights.shape), acc)

    def forward():
        arrays.moe_combine(y, weights, inverse=plan.inverse, out=out)
        return (out,)

    def backward():
        arguments = (*gradients, plan.permutation, plan.inverse, weights, y)
        arrays.moe_gather(*arguments, out=grad, grad_weights=grad_weights)
        return grad, grad_weights

    return forward, backward


def combine_bytes(x: Inputs) -> tuple[int, int]:
    rows, tokens = x["y"].nbytes, len(x["weights"]) * x["y"].shape[1] * x["y"].element_size()
    return rows + tokens, 2 * rows + tokens


CASES = [
    Case(
        op="moe_gather",
        family="moe",
        call=warpup.moe_gather,
        reference=reference_moe_gather,
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
        reference=reference_moe_combine,
        sizes=SIZES,
        variants=VARIANTS,
        inputs=combine_inputs,
        differentiable=("y", "weights"),
        raw=combine_raw,
        core=combine_core,
        bytes=combine_bytes,
    ),
]
