"""Case table of `interval_linear`: boxes through linear maps, and through boxes of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import warpup
from tests.support.case import Case, Inputs
from warpup._op import accumulator
from warpup.interval.interval_linear import reference_interval_linear

OPERANDS = ("center", "radius", "weight", "bias", "weight_radius", "clean")
LINEAR = {
    "grad": (3, 4, 5),
    "small": (5, 37, 19),
    "threads": (64, 96, 80),
    "overhead": (2, 4, 4),
    "bench": (256, 784, 512),
}


def normal(generator, *shape) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def made(device: str, dtype: torch.dtype, tensors: Inputs, **options) -> Inputs:
    return {k: t.to(dtype).to(device) for k, t in tensors.items()} | options


def box(generator, *shape) -> Inputs:
    """Boxes of which about a third each is positive, negative, and around 0."""
    return {"center": normal(generator, *shape), "radius": normal(generator, *shape).abs() * 0.4 + 0.01}


def linear_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(B, K, N). Variants: plain; midpoint and exact have intervals for weights."""
    rows, width, columns = size
    generator = torch.Generator().manual_seed(seed)
    tensors = box(generator, rows, width)
    tensors |= {"weight": normal(generator, columns, width) / width**0.5, "bias": normal(generator, columns)}
    tensors["clean"] = normal(generator, rows, width)
    if variant == "plain":
        return made(device, dtype, tensors)
    tensors["weight_radius"] = normal(generator, columns, width).abs() / width**0.5
    return made(device, dtype, tensors, mode=variant)


def linear_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    exact = x.get("mode") == "exact"
    if exact:  # in the accumulator's type
        x = {k: v.to(accumulator(v)) if isinstance(v, Tensor) else v for k, v in x.items()}
    operands = tuple(x.get(k) for k in OPERANDS)
    c, r, clean = ops.interval_linear(*operands, exact, False, False)
    needs = [t is not None for t in operands]
    raw = [
        ("interval_linear", (*operands, exact, False, False)),
        ("interval_linear", (*operands, False, True, True)),
        ("interval_linear_backward", (c, r, clean, *operands, exact, needs)),
        ("interval_linear_sign_", (x["weight"].clone(), x["weight"], None)),
    ]
    if exact:
        pair = (*operands[:2], operands[2], operands[4])
        raw += [("interval_linear_exact", pair), ("interval_linear_exact_backward", (*pair, c, r, False))]
    return raw


def products_bytes(x: Inputs) -> tuple[int, int]:
    size = sum(x[k].numel() * x[k].element_size() for k in OPERANDS if k in x)
    return size, 2 * size


CASES = [
    Case(
        op="interval_linear",
        family="interval",
        call=warpup.interval_linear,
        reference=reference_interval_linear,
        sizes=LINEAR,
        variants=("plain",),
        inputs=linear_inputs,
        differentiable=("center", "radius", "weight", "bias", "clean"),
        raw=linear_raw,
        core=None,
        products=True,
        bytes=products_bytes,
    ),
    Case(
        op="interval_weights",
        family="interval",
        call=warpup.interval_linear,
        reference=reference_interval_linear,
        sizes={**LINEAR, "bench": (128, 784, 1000)},
        variants=("midpoint", "exact"),
        inputs=linear_inputs,
        differentiable=("center", "radius", "weight", "bias", "weight_radius", "clean"),
        raw=linear_raw,
        core=None,
        products=True,
        bytes=products_bytes,
    ),
]
