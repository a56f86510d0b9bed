"""Case table of new_op: test_contract.py holds it to everything that every operator promises."""

from __future__ import annotations

from typing import Any

import torch
from warpup.new_family.new_op import reference_new_op

import warpup
from tests.support.case import Case, Inputs, New, Thunk, name_of
from warpup import arrays


def inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: `scaled` by a number that no dtype holds exactly, and `negative`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, generator=generator, dtype=torch.float64).to(device, dtype)
    return {"x": x, "scale": {"scaled": 0.3, "negative": -2.0}[variant]}


def raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    return [("new_op", (x["x"], x["scale"])), ("new_op_backward", (x["x"].clone(), x["x"], x["scale"]))]


def core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    out, grad = (new(tuple(x["x"].shape), name_of(x["x"].dtype)) for _ in range(2))

    def forward():
        arrays.new_op(x["x"], scale=x["scale"], out=out)
        return (out,)

    def backward():
        arrays.new_op(gradients[0], scale=x["scale"], out=grad)
        return (grad,)

    return forward, backward


def moved(x: Inputs) -> tuple[int, int]:
    each_way = 2 * x["x"].numel() * x["x"].element_size()
    return each_way, each_way


CASES = [
    Case(
        op="new_op",
        family="new_family",
        call=warpup.new_op,
        reference=reference_new_op,
        sizes={"grad": (3, 7), "small": (5, 131), "threads": (64, 3000), "overhead": (2, 16), "bench": (4096, 4096)},
        variants=("scaled", "negative"),
        inputs=inputs,
        differentiable=("x",),
        raw=raw,
        core=core,
        bytes=moved,
    )
]
