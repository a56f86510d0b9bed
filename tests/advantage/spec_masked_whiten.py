"""Case table of `masked_whiten`."""

from __future__ import annotations

import math
from typing import Any

import torch

import warpup
from tests.advantage.inputs import generator, no_backward, tokens_and_mask
from tests.support.case import Case, Inputs, New, Thunk, name_of
from tests.support.inputs import moved_to
from warpup import arrays as core
from warpup.advantage.masked_whiten import reference_masked_whiten


def new_moments(count: int, new: New) -> dict[str, Any]:
    return {"partials": new((-(-count // 4096), 5), "float64"), "moments": new((4,), "float64")}


def masked_whiten_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; unshifted (the mean kept, the biased variance)."""
    mask, (x,) = tokens_and_mask(size, dtype, generator(seed), 1)
    inputs: Inputs = {"x": 3 + x, "mask": mask}
    return moved_to(device, inputs | ({"shift_mean": False, "correction": 0} if variant == "unshifted" else {}))


def masked_whiten_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    tensors, correction = (x["x"], x["mask"]), x.get("correction", 1)
    whiten = (*tensors, x.get("shift_mean", True), correction, 1e-8)
    return [("masked_whiten", whiten), ("masked_moments", (*tensors, False, correction))]


def masked_whiten_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    options = {k: x[k] for k in ("shift_mean", "correction") if k in x}
    out = new(tuple(x["x"].shape), name_of(x["x"].dtype))
    scratch = new_moments(math.prod(x["x"].shape), new)

    def forward():
        core.masked_whiten(x["x"], x["mask"], out=out, **scratch, **options)
        return (out,)

    return forward, no_backward


def masked_whiten_bytes(x: Inputs) -> tuple[int, int]:
    return x["x"].numel() * (3 * x["x"].element_size() + 2), 0  # the moments read x and the mask, the rest once more


CASES = [
    Case(
        op="masked_whiten",
        family="advantage",
        call=warpup.masked_whiten,
        reference=reference_masked_whiten,
        sizes={"grad": (3, 7), "small": (5, 1001), "threads": (64, 3000), "overhead": (2, 16), "bench": (512, 2048)},
        variants=("plain", "unshifted"),
        inputs=masked_whiten_inputs,
        differentiable=(),
        raw=masked_whiten_raw,
        core=masked_whiten_core,
        bytes=masked_whiten_bytes,
        dtypes=(torch.float32, torch.float64),
    ),
]
