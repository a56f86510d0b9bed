"""The case table's entry of glu."""

from __future__ import annotations

from typing import Any

import torch

import warpup
from tests.support.case import Case, Inputs, New, Thunk, name_of
from tests.support.inputs import moved_to, normal, size_of
from warpup import arrays
from warpup.moe.glu import ACTIVATIONS, reference_glu


def glu_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(S, I). Variants: the activations; weighted (silu, a weight a copy, some rows without one)."""
    rows, width = size
    generator = torch.Generator().manual_seed(seed)
    weighted = variant == "weighted"
    scale = 4 if variant == "swiglu_oai" and rows > 3 else 1  # beyond the clamps, but not where they bend
    inputs: Inputs = {"h": normal(generator, rows, 2 * width).mul(scale).to(dtype)}
    inputs["weights"] = inputs["permutation"] = None
    if weighted:
        permutation = torch.randperm(rows + 2, generator=generator)[:rows]
        permutation[rows - rows // 4 :] = -1
        acc = torch.float64 if dtype == torch.float64 else torch.float32
        inputs |= {"weights": torch.rand(rows + 2, generator=generator).to(acc), "permutation": permutation}
    return moved_to(device, {**inputs, "activation": "silu" if weighted else variant})


def glu_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    given = (x["h"], x["weights"], x["permutation"], x["activation"])
    a = ops.glu(*given)
    return [("glu", given), ("glu_backward", (*given, a)), ("glu_backward", (*given, a, True))]


def glu_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    (rows, width), dtype = x["h"].shape, name_of(x["h"].dtype)
    a, grad_h = new((rows, width // 2), dtype), new((rows, width), dtype)
    given = (x["h"], x["weights"], x["permutation"])

    def forward():
        arrays.glu(*given, activation=x["activation"], a=a)
        return (a,)

    def backward():
        arrays.glu_backward(*given, grad_a=gradients[0], activation=x["activation"], grad_h=grad_h)
        return (grad_h,)

    return forward, backward


CASES = [
    Case(
        op="glu",
        family="moe",
        call=warpup.glu,
        reference=reference_glu,
        sizes={"grad": (3, 4), "small": (9, 37), "threads": (70, 1100), "overhead": (2, 8), "bench": (4096, 1408)},
        variants=(*ACTIVATIONS, "weighted"),
        inputs=glu_inputs,
        differentiable=("h",),
        raw=glu_raw,
        core=glu_core,
        bytes=lambda x: (3 * size_of(x["h"]) // 2, 5 * size_of(x["h"]) // 2),
    ),
]
