"""Case table of `interval_softmax`."""

from __future__ import annotations

from typing import Any

import torch

from tests.interval.spec_interval_activation import SIZES, box, moved
from tests.support.case import Case, Inputs, New, Thunk, name_of
from warpup import arrays as core
from warpup.interval import interval_softmax

SOFTMAX_SIZES = {**SIZES, "bench": (64, 128, 128)}


def softmax_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; masked (logits of -inf, a row of nothing else)."""
    inputs = box(size, dtype, torch.Generator().manual_seed(seed))
    if variant == "masked":
        inputs["center"][..., 1] = -torch.inf
        inputs["center"].view(-1, size[-1])[0] = -torch.inf
    return {k: inputs[k].to(device) for k in ("center", "radius")}


def softmax_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    given = (x["center"], x["radius"])
    grads = (x["radius"], x["radius"])  # not the center: -inf times 0
    return [("interval_softmax", given), ("interval_softmax_backward", (*given, *grads))]


def softmax_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    shape, dtype = tuple(x["center"].shape), name_of(x["center"].dtype)
    outputs = {f"out_{k}": new(shape, dtype) for k in x}
    grads = {f"grad_{k}": new(shape, dtype) for k in x}

    def forward():
        core.interval_softmax(**x, **outputs)
        return tuple(outputs.values())

    def backward():
        core.interval_softmax_backward(**x, **{f"grad_out_{k}": g for k, g in zip(x, gradients, strict=True)}, **grads)
        return tuple(grads.values())

    return forward, backward


CASES = [
    Case(
        op="interval_softmax",
        family="interval",
        call=interval_softmax.interval_softmax,
        reference=interval_softmax.reference_interval_softmax,
        sizes=SOFTMAX_SIZES,
        variants=("plain", "masked"),
        inputs=softmax_inputs,
        differentiable=("center", "radius"),
        raw=softmax_raw,
        core=softmax_core,
        bytes=moved(2),
    ),
]
