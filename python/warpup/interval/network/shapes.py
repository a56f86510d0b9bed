"""Rules of layers that move, select or average elements: the same for center, radius and clean point."""

from __future__ import annotations

import builtins
import itertools
import math
import operator

import torch
from torch import nn
from torch.nn import functional as F

from warpup.interval.interval_activation import interval_clamp
from warpup.interval.interval_pool2d import rising

from .layers import Box, Refusal, like_function, rule

MOVES = {
    torch.flatten: ("flatten",), torch.reshape: ("reshape", "view"), torch.squeeze: ("squeeze",),
    torch.unsqueeze: ("unsqueeze",), torch.permute: ("permute",), torch.transpose: ("transpose",),
    torch.unflatten: ("unflatten",), torch.movedim: ("movedim",), torch.flip: ("flip",), torch.clone: ("clone",),
    torch.Tensor.contiguous: ("contiguous",), torch.Tensor.expand: ("expand",),
}  # fmt: skip


AVERAGES = (F.avg_pool1d, F.avg_pool2d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, torch.mean, "mean")
LINEAR = {*MOVES, *itertools.chain(*MOVES.values()), *AVERAGES, operator.getitem, F.pad}  # and no constant added


def _mover(name: str):
    return lambda walk, x, *rest, **options: x.each(getattr(torch.Tensor, name), *rest, **options)


for _function, _names in MOVES.items():
    rule(_function, *_names)(_mover(_names[0]))


@rule(operator.getitem)
def _(walk, x, index):
    return x.each(operator.getitem, index)


like_function(nn.Flatten, torch.flatten, "start_dim", "end_dim")


@rule(nn.Unflatten)
def _(walk, layer, x):
    return x.each(torch.unflatten, layer.dim, layer.unflattened_size)


@rule(nn.Identity)
def _(walk, layer, x):
    return x


@rule(F.dropout, F.dropout2d)
def dropout(walk, x, p=0.5, training=True, inplace=False):
    if training and p > 0:
        raise Refusal("dropout is random in training mode and has no bounds: call eval() on it, or set p=0")
    return x


for _layer in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout):
    like_function(_layer, F.dropout, "p", "training")


@rule(torch.cat, torch.concat)
def _(walk, tensors, dim=0):
    if not all(isinstance(box, Box) for box in tensors):
        raise Refusal("every operand must come from the input")
    return Box(*(None if parts[0] is None else torch.cat(parts, dim) for parts in zip(*tensors, strict=True)))


@rule(F.pad)
def _(walk, x, pad, mode="constant", value=None):
    if mode != "constant" or value:
        raise Refusal(f"only padding with zeros has a rule, got mode {mode!r} and value {value}")
    return x.each(F.pad, pad)


@rule(nn.ZeroPad1d, nn.ZeroPad2d)
def _(walk, layer, x):
    return x.each(F.pad, layer.padding)


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


@rule(F.avg_pool1d)
def _(walk, x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    terms = kernel_size if isinstance(kernel_size, int) else kernel_size[0]
    return average(walk, x, terms, F.avg_pool1d, kernel_size, stride, padding, ceil_mode, count_include_pad)


@rule(F.avg_pool2d)
def _(
    walk, x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
):  # fmt: skip
    if divisor_override:
        raise Refusal("divisor_override has no rule: scale the result of the plain mean")
    terms = kernel_size**2 if isinstance(kernel_size, int) else math.prod(kernel_size)
    return average(walk, x, terms, F.avg_pool2d, kernel_size, stride, padding, ceil_mode, count_include_pad)


@rule(F.adaptive_avg_pool1d)
def _(walk, x, output_size):
    return average(walk, x, x.center.shape[-1], F.adaptive_avg_pool1d, output_size)


@rule(F.adaptive_avg_pool2d)
def _(walk, x, output_size):
    return average(walk, x, math.prod(x.center.shape[-2:]), F.adaptive_avg_pool2d, output_size)


_OPTIONS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
like_function(nn.AvgPool1d, F.avg_pool1d, *_OPTIONS)
like_function(nn.AvgPool2d, F.avg_pool2d, *_OPTIONS, "divisor_override")
like_function(nn.AdaptiveAvgPool1d, F.adaptive_avg_pool1d, "output_size")
like_function(nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d, "output_size")


# ---- what never falls: the box of the ends


def of_ends(walk, x: Box, function, *rest) -> Box:
    clean = None if x.clean is None else function(x.clean, *rest)
    return walk.rounded(Box(*rising(function, x.center, x.radius, *rest), clean))


def _max_pool(function, *names):
    @rule(*names)
    def _(walk, x, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False):
        if return_indices:
            raise Refusal("return_indices has no rule: leave it out")
        return of_ends(walk, x, function, kernel_size, stride, padding, dilation, ceil_mode)


_max_pool(F.max_pool1d, F.max_pool1d, torch.max_pool1d)
_max_pool(F.max_pool2d, F.max_pool2d, torch.max_pool2d)
_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
like_function(nn.MaxPool1d, F.max_pool1d, *_OPTIONS)
like_function(nn.MaxPool2d, F.max_pool2d, *_OPTIONS)


@rule(torch.clamp, torch.clip, "clamp", "clip")
def clamp(walk, x, min=None, max=None):
    if isinstance(min, torch.Tensor) or isinstance(max, torch.Tensor):
        return of_ends(walk, x, torch.clamp, min, max)
    min, max = -math.inf if min is None else min, math.inf if max is None else max
    return walk.rounded(Box(*interval_clamp(x.center, x.radius, min, max, clean=x.clean)))


@rule(torch.clamp_min, "clamp_min")
def _(walk, x, min):
    return clamp(walk, x, min=min)


@rule(torch.clamp_max, "clamp_max")
def _(walk, x, max):
    return clamp(walk, x, max=max)


@rule(F.hardtanh)
def _(walk, x, min_val=-1.0, max_val=1.0, inplace=False):
    return clamp(walk, x, min_val, max_val)


@rule(F.relu6)
def relu6(walk, x, inplace=False):
    return clamp(walk, x, 0.0, 6.0)


like_function(nn.Hardtanh, F.hardtanh, "min_val", "max_val")
like_function(nn.ReLU6, F.relu6)


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
