"""Case table of `margin_bounds` and `margin_cross_entropy`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import warpup
from tests.support.case import Case, Inputs, New, Thunk, name_of
from warpup import arrays as core
from warpup.interval import margin_bounds

SIZES = {  # (B, H, K)
    "grad": (3, 4, 5),
    "small": (6, 37, 7),
    "threads": (64, 300, 70),
    "overhead": (2, 16, 4),
    "bench": (256, 512, 200),
}

EACH = {"reduction": "none", "bounds": True}


def inputs_of(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; no_bias; equal (rows of the weight that are the same, where sign(0) = 0 counts)."""
    batch, width, classes = size
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    inputs = {
        "center": normal(batch, width),
        "radius": 0.3 * normal(batch, width).abs(),
        "weight": normal(classes, width) / width**0.5,
        "bias": normal(classes) if variant != "no_bias" else None,
        "labels": torch.randint(classes, (batch,), generator=generator),
    }
    if variant == "equal":
        inputs["weight"][1::2] = inputs["weight"][0]
    moved = {k: v if v is None or k == "labels" else v.to(dtype) for k, v in inputs.items()}
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in moved.items()}


def raw(loss: bool):
    def arguments(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
        given = (x["center"], x["radius"], x["weight"])
        bounds, losses, share = ops.margin_bounds(*given, x["bias"], x["labels"], loss)
        saved, grad_loss = (share, losses) if loss else (None, None)
        return [
            ("margin_bounds", (*given, x["bias"], x["labels"], loss)),
            ("margin_bounds_backward", (*given, x["labels"], saved, bounds, grad_loss)),
        ]

    return arguments


def margin_core(loss: bool):
    def calls(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
        (batch, width), classes, dtype = tuple(x["center"].shape), x["weight"].shape[0], name_of(x["center"].dtype)
        acc = "float64" if dtype == "float64" else "float32"
        given = {k: x[k] for k in ("center", "radius", "weight", "labels")}
        outputs = {"loss": new((batch,), acc)} if loss else {}
        outputs["bounds"] = new((batch, classes - 1), acc)
        share = {"share": new((batch, classes - 1), acc)} if loss else {}
        shapes = {"center": (batch, width), "radius": (batch, width), "weight": (classes, width), "bias": (classes,)}
        grads = {f"grad_{k}": new(shape, dtype) for k, shape in shapes.items()}

        def forward():
            core.margin_bounds(**given, bias=x["bias"], **outputs, **share)
            return tuple(outputs.values())

        def backward():
            into = {f"grad_{k}": g for k, g in zip(outputs, gradients, strict=True)}
            core.margin_bounds_backward(**given, **share, **into, **grads)
            return tuple(grads.values())

        return forward, backward

    return calls


def moved(x: Inputs) -> tuple[int, int]:
    given = sum(x[k].numel() * x[k].element_size() for k in ("center", "radius", "weight"))
    bounds = x["center"].shape[0] * (x["weight"].shape[0] - 1) * (8 if x["center"].dtype == torch.float64 else 4)
    return given + bounds, 2 * given + bounds


CASES = [
    Case(
        op="margin_bounds",
        family="interval",
        call=warpup.margin_bounds,
        reference=margin_bounds.reference_margin_bounds,
        sizes=SIZES,
        variants=("plain", "equal"),  # without a bias: test_margin_bounds.py
        inputs=inputs_of,
        differentiable=("center", "radius", "weight", "bias"),
        raw=raw(loss=False),
        core=margin_core(loss=False),
        bytes=moved,
        stopped=("equal",),  # finite differences of |.| at 0 are not its subgradient; the reference's are
    ),
    Case(
        op="margin_cross_entropy",
        family="interval",
        call=lambda **inputs: warpup.margin_cross_entropy(**inputs, **EACH),
        reference=lambda **inputs: margin_bounds.reference_margin_cross_entropy(**inputs, **EACH),
        sizes=SIZES,
        variants=("plain", "equal"),
        inputs=inputs_of,
        differentiable=("center", "radius", "weight", "bias"),
        raw=raw(loss=True),
        core=margin_core(loss=True),
        bytes=moved,
        stopped=("equal",),
    ),
]
