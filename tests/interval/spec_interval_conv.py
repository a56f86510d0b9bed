"""Case table of `interval_conv2d`: boxes through convolutions, and through boxes of them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

import warpup
from tests.interval.spec_interval_linear import OPERANDS, box, made, normal, products_bytes
from tests.support.case import Case, Inputs
from warpup.interval.interval_conv import _each, reference_interval_conv

CONV = {
    "grad": (2, 4, 5, 4, 4),
    "small": (7, 8, 9, 19, 6),
    "threads": (8, 8, 16, 16, 8),
    "overhead": (1, 2, 4, 4, 2),
    "bench": (64, 64, 32, 32, 64),
}


def conv_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(B, C, H, W, N). Variants: plain; strided (two groups, strides, dilation, different paddings)."""
    batch, channels, height, width, filters = size
    generator = torch.Generator().manual_seed(seed)
    groups = 2 if variant == "strided" else 1
    shape = (filters, channels // groups, 3, 3)
    tensors = box(generator, batch, channels, height, width)
    tensors |= {"weight": normal(generator, *shape) / (9 * channels) ** 0.5, "bias": normal(generator, filters)}
    tensors["clean"] = normal(generator, batch, channels, height, width)
    options: Inputs = {"padding": 1}
    if variant == "strided":
        options = {"stride": 2, "padding": (1, 2), "dilation": (1, 2), "groups": 2}
    return made(device, dtype, tensors, **options)


def weights_conv_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Convolutions with intervals for weights. Variants: midpoint; exact."""
    inputs = conv_inputs(size, dtype, device, seed, "strided")
    shape = tuple(inputs["weight"].shape)
    generator = torch.Generator().manual_seed(seed + 1)
    return inputs | made(device, dtype, {"weight_radius": normal(generator, *shape).abs() / 9}, mode=variant)


def conv_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    operands = tuple(x.get(k) for k in OPERANDS)
    dims = operands[0].dim() - 2
    places = [_each(dims, x.get(k, d)) for k, d in (("stride", 1), ("padding", 0), ("dilation", 1))]
    places.append(x.get("groups", 1))
    outputs = ops.interval_conv(*operands, *places)
    needs = [t is not None for t in operands]
    return [
        ("interval_conv", (*operands, *places)),
        ("interval_conv_backward", (*outputs, *operands, *places, needs)),
    ]


CASES = [
    Case(
        op="interval_conv2d",
        family="interval",
        call=warpup.interval_conv2d,
        reference=partial(reference_interval_conv, 2),
        sizes=CONV,
        variants=("plain", "strided"),
        inputs=conv_inputs,
        differentiable=("center", "radius", "weight", "bias", "clean"),
        raw=conv_raw,
        core=None,
        products=True,
        bytes=products_bytes,
    ),
    Case(
        op="interval_conv2d_weights",
        family="interval",
        call=warpup.interval_conv2d,
        reference=partial(reference_interval_conv, 2),
        sizes=CONV,
        variants=("midpoint", "exact"),
        inputs=weights_conv_inputs,
        differentiable=("center", "radius", "weight", "bias", "weight_radius", "clean"),
        raw=conv_raw,
        core=None,
        products=True,
        bytes=products_bytes,
    ),
]
