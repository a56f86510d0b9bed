"""Case table of `interval_activation`, the op of interval_sigmoid, interval_gelu and the other element-wise ones."""

from __future__ import annotations

from typing import Any

import torch

from tests.support.case import Case, Inputs, New, Thunk, name_of
from warpup import arrays as core
from warpup.interval import interval_activation

SIZES = {"grad": (2, 3), "small": (5, 131), "threads": (40, 700), "overhead": (2, 16), "bench": (256, 64, 16, 16)}
NUMBERS = {"leaky_relu": (0.1, 0.0), "elu": (0.7, 0.0), "clamp": (-0.5, 0.8)}
VARIANTS = (
    "gelu",
    "sigmoid",
    "tanh",
    "gelu_tanh",
    "silu",
    "hardswish",
    "leaky_relu",
    "elu",
    "softplus",
    "exp",
    "clamp",
)


def box(size, dtype, generator) -> Inputs:
    def normal():
        return torch.randn(size, generator=generator, dtype=torch.float64)

    return {"center": (2 * normal()).to(dtype), "radius": (0.7 * normal().abs()).to(dtype), "clean": normal().to(dtype)}


def activation_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: the kinds, with a clean operand."""
    generator = torch.Generator().manual_seed(seed)
    a, b = NUMBERS.get(variant, (0.0, 0.0))
    return {k: v.to(device) for k, v in box(size, dtype, generator).items()} | {"kind": variant, "a": a, "b": b}


def call_activation(center, radius, *, kind, a, b, clean):
    return interval_activation._activation(kind, center, radius, clean, a, b)


def activation_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    given, options = [x[k] for k in ("center", "radius", "clean")], [x[k] for k in ("kind", "a", "b")]
    box = (*given[:2], None)
    return [
        ("interval_activation", (*given, *options)),
        ("interval_activation", (*box, *options)),
        ("interval_activation_backward", (*given, *options, *given)),
        ("interval_activation_backward", (*box, *options, *box)),
    ]


def activation_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    names = ("center", "radius", "clean")
    shape, dtype = tuple(x["center"].shape), name_of(x["center"].dtype)
    outputs = {f"out_{k}": new(shape, dtype) for k in names}
    grads = {f"grad_{k}": new(shape, dtype) for k in names}

    def forward():
        core.interval_activation(**x, **outputs)
        return tuple(outputs.values())

    def backward():
        core.interval_activation_backward(
            **x, **{f"grad_out_{k}": g for k, g in zip(names, gradients, strict=True)}, **grads
        )
        return tuple(grads.values())

    return forward, backward


def moved(arrays: int):
    """Bytes of a forward that reads `arrays` and writes as many, and of its backward."""
    return lambda x: tuple(n * arrays * x["center"].numel() * x["center"].element_size() for n in (2, 3))


CASES = [
    Case(
        op="interval_activation",
        family="interval",
        call=call_activation,
        reference=interval_activation.reference_interval_activation,
        sizes=SIZES,
        variants=VARIANTS,
        inputs=activation_inputs,
        differentiable=("center", "radius", "clean"),
        raw=activation_raw,
        core=activation_core,
        bytes=moved(3),
    ),
]
