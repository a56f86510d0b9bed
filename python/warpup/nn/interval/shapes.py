"""Rules of layers that move, select or average elements: the same for center, radius and clean point."""

from __future__ import annotations

import builtins
import math
import operator

import torch
from torch import nn
from torch.nn import functional as F

from .layers import Box, Refusal, rule

MOVES = {
    torch.flatten: ("flatten",), torch.reshape: ("reshape", "view"), torch.squeeze: ("squeeze",),
    torch.unsqueeze: ("unsqueeze",), torch.permute: ("permute",), torch.transpose: ("transpose",),
    torch.unflatten: ("unflatten",), torch.movedim: ("movedim",), torch.flip: ("flip",), torch.clone: ("clone",),
    torch.Tensor.contiguous: ("contiguous",), torch.Tensor.expand: ("expand",),
}  # fmt: skip


def _mover(name: str):
    return lambda walk, x, *rest, **options: x.each(getattr(torch.Tensor, name), *rest, **options)


for _function, _names in MOVES.items():
    rule(_function, *_names)(_mover(_names[0]))


@rule(operator.getitem)
def _(walk, x, index):
    return x.each(operator.getitem, index)


@rule(nn.Flatten)
def _(walk, layer, x):
    return x.each(torch.flatten, layer.start_dim, layer.end_dim)


@rule(nn.Unflatten)
def _(walk, layer, x):
    return x.each(torch.unflatten, layer.dim, layer.unflattened_size)


@rule(nn.Identity)
def _(walk, layer, x):
    return x


@rule(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
def _(walk, layer, x):
    return dropout(walk, x, layer.p, layer.training)


@rule(F.dropout, F.dropout2d)
def dropout(walk, x, p=0.5, training=True, inplace=False):
    if training and p > 0:
        raise Refusal("dropout is random in training mode and has no bounds: call eval() on it, or set p=0")
    return x


@rule(torch.cat, torch.concat)
def _(walk, boxes, dim=0):
    if not all(isinstance(box, Box) for box in boxes):
        raise Refusal("every operand must come from the input")
    return Box(*(None if parts[0] is None else torch.cat(parts, dim) for parts in zip(*boxes, strict=True)))


@rule(nn.ZeroPad1d, nn.ZeroPad2d)
def _(walk, layer, x):
    return x.each(F.pad, layer.padding)


@rule(F.pad)
def _(walk, x, pad, mode="constant", value=None):
    if mode != "constant" or value:
        raise Refusal(f"only padding with zeros has a rule, got mode {mode!r} and value {value}")
    return x.each(F.pad, pad)


# ---- averages


def average(walk, x: Box, terms: int, function, *rest, **options) -> Box:
    """A mean of at most `terms` elements, each of which adds at most one rounding of their magnitude."""
    out = x.each(function, *rest, **options)
    if not walk.sound:
        return out
    return walk.wider(out, terms + 4, function(x.center.abs() + x.radius, *rest, **options))


@rule(torch.mean, "mean")
def _(walk, x, *rest, **options):
    return average(walk, x, x.center.numel(), torch.mean, *rest, **options)


def avg_pool(walk, x, pool, kernel_size, *rest, divisor_override=None, **options):
    if divisor_override:
        raise Refusal("divisor_override has no rule")
    dims = 1 if pool is F.avg_pool1d else 2
    terms = kernel_size**dims if isinstance(kernel_size, int) else math.prod(kernel_size)
    return average(walk, x, terms, pool, kernel_size, *rest, **options)


@rule(F.avg_pool1d)
def _(walk, x, *rest, **options):
    return avg_pool(walk, x, F.avg_pool1d, *rest, **options)


@rule(F.avg_pool2d)
def _(walk, x, *rest, **options):
    return avg_pool(walk, x, F.avg_pool2d, *rest, **options)


@rule(nn.AvgPool1d, nn.AvgPool2d)
def _(walk, layer, x):
    pool = F.avg_pool1d if isinstance(layer, nn.AvgPool1d) else F.avg_pool2d
    options = (layer.kernel_size, layer.stride, layer.padding, layer.ceil_mode, layer.count_include_pad)
    return avg_pool(walk, x, pool, *options, divisor_override=getattr(layer, "divisor_override", None))


@rule(F.adaptive_avg_pool1d)
def adaptive_avg_pool1d(walk, x, output_size):
    return average(walk, x, x.center.shape[-1], F.adaptive_avg_pool1d, output_size)


@rule(F.adaptive_avg_pool2d)
def adaptive_avg_pool2d(walk, x, output_size):
    return average(walk, x, math.prod(x.center.shape[-2:]), F.adaptive_avg_pool2d, output_size)


@rule(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
def _(walk, layer, x):
    pool = adaptive_avg_pool1d if isinstance(layer, nn.AdaptiveAvgPool1d) else adaptive_avg_pool2d
    return pool(walk, x, layer.output_size)


# ---- what never falls: the box of the ends


def rising(walk, x: Box, function, *rest, **options) -> Box:
    """A function that does not fall in any element, without roundings of its own."""
    low, high = (function(end, *rest, **options) for end in (x.center - x.radius, x.center + x.radius))
    clean = None if x.clean is None else function(x.clean, *rest, **options)
    return walk.rounded(Box((low + high) / 2, (high - low) / 2, clean))


def max_pool(function):
    def apply(walk, x, *rest, **options):
        if options.get("return_indices"):
            raise Refusal("return_indices has no rule")
        return rising(walk, x, function, *rest, **options)

    return apply


rule(F.max_pool1d, torch.max_pool1d)(max_pool(F.max_pool1d))
rule(F.max_pool2d, torch.max_pool2d)(max_pool(F.max_pool2d))


@rule(nn.MaxPool1d, nn.MaxPool2d)
def _(walk, layer, x):
    pool = F.max_pool1d if isinstance(layer, nn.MaxPool1d) else F.max_pool2d
    options = {name: getattr(layer, name) for name in ("kernel_size", "stride", "padding", "dilation", "ceil_mode")}
    return max_pool(pool)(walk, x, **options, return_indices=layer.return_indices)


@rule(torch.clamp, torch.clip, "clamp", "clip")
def _(walk, x, *rest, **options):
    return rising(walk, x, torch.clamp, *rest, **options)


@rule(nn.Hardtanh, nn.ReLU6)
def _(walk, layer, x):
    return rising(walk, x, torch.clamp, layer.min_val, layer.max_val)


@rule(F.hardtanh)
def _(walk, x, min_val=-1.0, max_val=1.0, inplace=False):
    return rising(walk, x, torch.clamp, min_val, max_val)


@rule(F.relu6)
def _(walk, x, inplace=False):
    return rising(walk, x, torch.clamp, 0.0, 6.0)


# ---- what a forward asks of a tensor's shape


@rule(builtins.getattr)
def _(walk, x, name):
    if name not in ("shape", "ndim", "dtype", "device"):
        raise Refusal(f"attribute {name!r} of a box has no rule")
    return getattr(x.center, name)


@rule("size")
def _(walk, x, *rest):
    return x.center.size(*rest)


@rule("dim")
def _(walk, x):
    return x.center.dim()
