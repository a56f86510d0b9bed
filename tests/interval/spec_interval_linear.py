"""Case table of `interval`: boxes through linear maps, convolutions, batch normalisation and ReLU."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor

import warpup
from tests.support.case import Case, Inputs, New, Thunk, name_of
from warpup import arrays as core
from warpup.interval import interval_batch_norm as interval_norm
from warpup.interval import interval_linear as interval


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


OPERANDS = ("center", "radius", "weight", "bias", "weight_radius", "clean")


def linear_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    exact = x.get("mode") == "exact"
    if exact:  # in the accumulator's type
        x = {k: v.to(interval.accumulator(v)) if isinstance(v, Tensor) else v for k, v in x.items()}
    operands = tuple(x.get(k) for k in OPERANDS)
    c, r, clean = ops.interval_linear(*operands, exact, False, False)
    needs = [t is not None for t in operands]
    raw = [
        ("interval_linear", (*operands, exact, False, False)),
        ("interval_linear", (*operands, False, True, True)),
        ("interval_linear_backward", (c, r, clean, *operands, exact, needs)),
        ("interval_sign_", (x["weight"].clone(), x["weight"], None)),
    ]
    if exact:
        pair = (*operands[:2], operands[2], operands[4])
        raw += [("interval_product", pair), ("interval_product_backward", (*pair, c, r, False))]
    return raw


def conv_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    operands = tuple(x.get(k) for k in OPERANDS)
    dims = operands[0].dim() - 2
    places = [interval._each(dims, x.get(k, d)) for k, d in (("stride", 1), ("padding", 0), ("dilation", 1))]
    places.append(x.get("groups", 1))
    outputs = ops.interval_conv(*operands, *places)
    needs = [t is not None for t in operands]
    return [
        ("interval_conv", (*operands, *places)),
        ("interval_conv_backward", (*outputs, *operands, *places, needs)),
    ]


def products_bytes(x: Inputs) -> tuple[int, int]:
    size = sum(x[k].numel() * x[k].element_size() for k in OPERANDS if k in x)
    return size, 2 * size


# ---- interval_relu, interval_batch_norm ------------------------------------------------------------------------------


def relu_inputs(size, dtype, device, seed, variant) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    return made(device, dtype, box(generator, *size) | {"clean": normal(generator, *size)})


def norm_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(N, C, L). Variants: clean (its statistics, ReLU); midpoint (the center's, no ReLU); frozen (given, ReLU)."""
    generator = torch.Generator().manual_seed(seed)
    channels = size[1]
    tensors = box(generator, *size) | {"clean": 0.5 + 2 * normal(generator, *size)}
    sign = torch.where(torch.arange(channels) % 3 == 2, -1.0, 1.0)
    tensors["weight"] = sign * (normal(generator, channels).abs() + 0.3)
    tensors["weight"][0] *= 1e-3  # so small that the backward never divides by it, compiled or not
    tensors["bias"] = 0.3 * normal(generator, channels)
    statistics = {"running_mean": None, "running_var": None}
    if variant == "frozen":
        statistics = {
            "running_mean": normal(generator, channels),
            "running_var": normal(generator, channels).abs() + 0.5,
        }
        statistics = made(device, dtype, statistics)
    options = {"training": True, "statistics": variant, "relu": variant != "midpoint"}
    return made(device, dtype, tensors) | statistics | options


def flat(x: Inputs) -> tuple:
    """The operands as raw ops take them: [outer, channels, inner], or without channels in one row."""
    shape = tuple(x["center"].shape)
    affine = "weight" in x
    shape = (*shape[:2], math.prod(shape[2:])) if affine else (1, 1, math.prod(shape))
    return tuple(x[k].reshape(shape) for k in ("center", "radius", "clean"))


def affine_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    operands, source = flat(x), -1
    if "weight" in x:
        acc = interval.accumulator(x["center"])
        source = interval_norm.SOURCES[x["statistics"]]
        given = [x[k] for k in ("running_mean", "running_var", "weight", "bias")]
        given = [None if t is None else t.to(acc) for t in given]
    else:
        given = [None] * 4
    relu = x.get("relu", True)
    c, r, clean, mean, var, sums = ops.interval_affine(*operands, *given, source, 1e-5, relu, True, False)
    saved = (mean, var, *given[2:]) if source >= 0 else given
    added = sums.new_ones(6)
    raw = [
        ("interval_affine", (*operands, *given, source, 1e-5, relu, False, False)),
        ("interval_affine", (*operands, *given, source, 1e-5, relu, True, False)),
        ("interval_affine_backward", (c, r, clean, *operands, False, *saved, source, 1e-5, relu, added)),
        ("interval_affine_backward", (c, None, None, *operands, False, *saved, source, 1e-5, relu, None)),
    ]
    if source < 0:
        raw.append(("interval_affine", (*operands, *given, source, 1e-5, relu, False, True)))
    return raw


def affine_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    shape, dtype = tuple(x["center"].shape), name_of(x["center"].dtype)
    acc = "float64" if dtype == "float64" else "float32"
    operands, affine = flat(x), "weight" in x
    layout = tuple(operands[0].shape)
    relu, source, channels = x.get("relu", True), -1, layout[1]
    outputs = {f"out_{k}": new(layout, dtype) for k in ("center", "radius", "clean")}
    grads = {f"out_{k}": new(layout, dtype) for k in ("center", "radius", "clean")}
    given: Inputs = {"relu": relu}
    extra, back = {}, {}
    if affine:
        source = interval_norm.SOURCES[x["statistics"]]
        names = {"mean": "running_mean", "var": "running_var", "weight": "weight", "bias": "bias"}
        for name, key in names.items():
            t = x[key]
            if t is None:
                given[name] = new((channels,), acc)
            else:
                given[name] = t.astype(acc) if hasattr(t, "astype") else t.to(getattr(torch, acc))
        chunks = layout[0] * -(-layout[2] // 4096) if layout[2] != 1 else -(-layout[0] // 32)
        given |= {"source": source, "scale": new((channels,), acc), "shift": new((channels,), acc)}
        partials = new((chunks, channels, 2), acc)
        extra = {"partials": partials} if source >= 0 else {}
        back = {"partials": partials, "totals": new((2, channels), acc)}
        back |= {"out_weight": new((channels,), acc), "out_bias": new((channels,), acc)}
    weight = [torch.as_tensor(x[k]) for k in ("weight", "bias")] if affine else [None, None]
    kept = relu and source != 0 and dtype == acc and interval_norm._flat(*weight)

    def forward():
        core.interval_affine(*operands, **given, **extra, **outputs)
        return tuple(o.reshape(shape) for o in outputs.values())

    def backward():
        saved = (outputs["out_center"], outputs["out_radius"]) if kept else operands[:2]
        flat_gradients = (g.reshape(layout) for g in gradients)
        core.interval_affine_backward(
            *flat_gradients, center=saved[0], radius=saved[1], clean=operands[2], from_outputs=kept, **given, **back,
            **grads,
        )  # fmt: skip
        found = [g.reshape(shape) for g in grads.values()]
        if not affine:
            return tuple(found)
        of = [torch.as_tensor(back[k]).to(getattr(torch, dtype)) for k in ("out_weight", "out_bias")]
        return (*found, *of)

    return forward, backward


def affine_bytes(x: Inputs) -> tuple[int, int]:
    size = 3 * x["center"].numel() * x["center"].element_size()
    return 2 * size, 3 * size


LINEAR = {
    "grad": (3, 4, 5),
    "small": (5, 37, 19),
    "threads": (64, 96, 80),
    "overhead": (2, 4, 4),
    "bench": (256, 784, 512),
}
CONV = {
    "grad": (2, 4, 5, 4, 4),
    "small": (7, 8, 9, 19, 6),
    "threads": (8, 8, 16, 16, 8),
    "overhead": (1, 2, 4, 4, 2),
    "bench": (64, 64, 32, 32, 64),
}
NORM = {"grad": (4, 3, 2), "small": (5, 7, 13), "threads": (40, 24, 90), "overhead": (2, 4, 1), "bench": (64, 64, 1024)}


CASES = [
    Case(
        op="interval_linear",
        family="interval",
        call=warpup.interval_linear,
        reference=interval.reference_interval_linear,
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
        reference=interval.reference_interval_linear,
        sizes={**LINEAR, "bench": (128, 784, 1000)},
        variants=("midpoint", "exact"),
        inputs=linear_inputs,
        differentiable=("center", "radius", "weight", "bias", "weight_radius", "clean"),
        raw=linear_raw,
        core=None,
        products=True,
        bytes=products_bytes,
    ),
    Case(
        op="interval_conv2d",
        family="interval",
        call=warpup.interval_conv2d,
        reference=partial(interval.reference_interval_conv, 2),
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
        reference=partial(interval.reference_interval_conv, 2),
        sizes=CONV,
        variants=("midpoint", "exact"),
        inputs=weights_conv_inputs,
        differentiable=("center", "radius", "weight", "bias", "weight_radius", "clean"),
        raw=conv_raw,
        core=None,
        products=True,
        bytes=products_bytes,
    ),
    Case(
        op="interval_relu",
        family="interval",
        call=warpup.interval_relu,
        reference=interval_norm.reference_interval_relu,
        sizes=NORM,
        variants=("plain",),
        inputs=relu_inputs,
        differentiable=("center", "radius", "clean"),
        raw=affine_raw,
        core=affine_core,
        bytes=affine_bytes,
    ),
    Case(
        op="interval_batch_norm",
        family="interval",
        call=warpup.interval_batch_norm,
        reference=interval_norm.reference_interval_batch_norm,
        sizes=NORM,
        variants=("clean", "midpoint", "frozen"),
        inputs=norm_inputs,
        differentiable=("center", "radius", "clean", "weight", "bias"),
        raw=affine_raw,
        core=affine_core,
        bytes=affine_bytes,
    ),
]
