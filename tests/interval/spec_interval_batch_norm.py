"""Case table of `interval_batch_norm` and `interval_relu`."""

from __future__ import annotations

import math
from typing import Any

import torch

import warpup
from tests.interval.spec_interval_linear import box, made, normal
from tests.support.case import Case, Inputs, New, Thunk, name_of
from warpup import arrays as core
from warpup._op import accumulator
from warpup.interval import interval_batch_norm as interval_norm

NORM = {"grad": (4, 3, 2), "small": (5, 7, 13), "threads": (40, 24, 90), "overhead": (2, 4, 1), "bench": (64, 64, 1024)}


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
    normalized = "weight" in x
    shape = (*shape[:2], math.prod(shape[2:])) if normalized else (1, 1, math.prod(shape))
    return tuple(x[k].reshape(shape) for k in ("center", "radius", "clean"))


def norm_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    operands, source = flat(x), -1
    if "weight" in x:
        acc = accumulator(x["center"])
        source = interval_norm.SOURCES[x["statistics"]]
        given = [x[k] for k in ("running_mean", "running_var", "weight", "bias")]
        given = [None if t is None else t.to(acc) for t in given]
    else:
        given = [None] * 4
    relu = x.get("relu", True)
    c, r, clean, mean, var, sums = ops.interval_batch_norm(*operands, *given, source, 1e-5, relu, True, False)
    saved = (mean, var, *given[2:]) if source >= 0 else given
    added = sums.new_ones(6)
    raw = [
        ("interval_batch_norm", (*operands, *given, source, 1e-5, relu, False, False)),
        ("interval_batch_norm", (*operands, *given, source, 1e-5, relu, True, False)),
        ("interval_batch_norm_backward", (c, r, clean, *operands, False, *saved, source, 1e-5, relu, added)),
        ("interval_batch_norm_backward", (c, None, None, *operands, False, *saved, source, 1e-5, relu, None)),
    ]
    if source < 0:
        raw.append(("interval_batch_norm", (*operands, *given, source, 1e-5, relu, False, True)))
    return raw


def norm_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    shape, dtype = tuple(x["center"].shape), name_of(x["center"].dtype)
    acc = "float64" if dtype == "float64" else "float32"
    operands, normalized = flat(x), "weight" in x
    layout = tuple(operands[0].shape)
    relu, source, channels = x.get("relu", True), -1, layout[1]
    outputs = {f"out_{k}": new(layout, dtype) for k in ("center", "radius", "clean")}
    grads = {f"out_{k}": new(layout, dtype) for k in ("center", "radius", "clean")}
    given: Inputs = {"relu": relu}
    extra, back = {}, {}
    if normalized:
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
    weight = [torch.as_tensor(x[k]) for k in ("weight", "bias")] if normalized else [None, None]
    kept = relu and source != 0 and dtype == acc and interval_norm._flat(*weight)

    def forward():
        core.interval_batch_norm(*operands, **given, **extra, **outputs)
        return tuple(o.reshape(shape) for o in outputs.values())

    def backward():
        saved = (outputs["out_center"], outputs["out_radius"]) if kept else operands[:2]
        flat_gradients = (g.reshape(layout) for g in gradients)
        core.interval_batch_norm_backward(
            *flat_gradients, center=saved[0], radius=saved[1], clean=operands[2], from_outputs=kept, **given, **back,
            **grads,
        )  # fmt: skip
        found = [g.reshape(shape) for g in grads.values()]
        if not normalized:
            return tuple(found)
        of = [torch.as_tensor(back[k]).to(getattr(torch, dtype)) for k in ("out_weight", "out_bias")]
        return (*found, *of)

    return forward, backward


def norm_bytes(x: Inputs) -> tuple[int, int]:
    size = 3 * x["center"].numel() * x["center"].element_size()
    return 2 * size, 3 * size


CASES = [
    Case(
        op="interval_relu",
        family="interval",
        call=warpup.interval_relu,
        reference=interval_norm.reference_interval_relu,
        sizes=NORM,
        variants=("plain",),
        inputs=relu_inputs,
        differentiable=("center", "radius", "clean"),
        raw=norm_raw,
        core=norm_core,
        bytes=norm_bytes,
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
        raw=norm_raw,
        core=norm_core,
        bytes=norm_bytes,
    ),
]
