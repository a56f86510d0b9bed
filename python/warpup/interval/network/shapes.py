"""Rules of layers that move, select or average elements: the same for center, radius and clean point."""

from __future__ import annotations

import builtins
import math
import operator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from warpup.interval.interval_activation import interval_clamp
from warpup.interval.interval_pool2d import rising

from .aliases import overwritten
from .layers import both, point
from .rules import Box, Refusal, like_function, refuse_sound, rule

MOVES = {
    torch.flatten: ("flatten",), torch.reshape: ("reshape", "view"), torch.squeeze: ("squeeze",),
    torch.unsqueeze: ("unsqueeze",), torch.permute: ("permute",), torch.transpose: ("transpose",),
    torch.unflatten: ("unflatten",), torch.movedim: ("movedim",), torch.flip: ("flip",), torch.clone: ("clone",),
    torch.Tensor.contiguous: ("contiguous",), torch.Tensor.expand: ("expand",),
}  # fmt: skip


def _mover(name: str):
    return lambda walk, x, *rest, **options: x.each(getattr(torch.Tensor, name), *rest, **options)


for _function, _names in MOVES.items():
    rule(_function, *_names, affine=True)(_mover(_names[0]))


@rule(operator.getitem, affine=True)
def item(walk, x, index):
    return x.each(operator.getitem, index) if isinstance(x, Box) else x[index]


def _pieces(function, *names) -> None:
    """What gives a tuple of tensors gives one of boxes."""

    @rule(function, *names, affine=True)
    def _(walk, x, *rest, **options):
        center, radius = (function(t, *rest, **options) for t in x[:2])
        clean = [None] * len(center) if x.clean is None else function(x.clean, *rest, **options)
        return tuple(Box(*part) for part in zip(center, radius, clean, strict=True))


_pieces(torch.split, "split")
_pieces(torch.chunk, "chunk")
_pieces(torch.unbind, "unbind")


@rule(overwritten, affine=True)
def _(walk, old, new, source):
    old, new = both(walk, old, new)
    clean = None if old.clean is None or new.clean is None else overwritten(old.clean, new.clean, source)
    return Box(overwritten(old.center, new.center, source), overwritten(old.radius, new.radius, source), clean)


@rule("copy_", affine=True)
def _(walk, x, source, non_blocking=False):
    like, source = (x.center, source) if isinstance(x, Box) else (x, source)
    source = source if isinstance(source, Box) else point(source, x, walk.sound)
    return cast(walk, source.each(torch.Tensor.expand, like.shape), like.dtype)


like_function(nn.Flatten, torch.flatten, "start_dim", "end_dim")


@rule(nn.Unflatten, affine=True)
def _(walk, layer, x):
    return x.each(torch.unflatten, layer.dim, layer.unflattened_size)


@rule(nn.Identity, affine=True)
def _(walk, layer, x):
    return x


@rule(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, affine=True)
def dropout(walk, x, p=0.5, training=True, inplace=False):
    if training and p > 0:
        raise Refusal("dropout is random in training mode and has no bounds: call eval() on it, or set p=0")
    return x


for _layer in (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout):
    like_function(_layer, F.dropout, "p", "training")


def _joined(function, *names) -> None:
    @rule(*names, affine=True)
    def _(walk, tensors, dim=0):
        if not all(isinstance(box, Box) for box in tensors):
            raise Refusal("every operand must come from the input")
        center, radius, clean = zip(*tensors, strict=True)
        return Box(function(center, dim), function(radius, dim), None if clean[0] is None else function(clean, dim))


_joined(torch.cat, torch.cat, torch.concat)
_joined(torch.stack, torch.stack)


@rule(F.pad, affine=True)
def pad(walk, x, pad, mode="constant", value=None):
    value = (value,) if mode == "constant" and value else ()
    return Box(F.pad(x.center, pad, mode, *value), F.pad(x.radius, pad, mode), *_on_clean(x, F.pad, pad, mode, *value))


def _on_clean(x: Box, function, *rest) -> tuple:
    return () if x.clean is None else (function(x.clean, *rest),)


for _mode, _kinds in {
    "constant": (nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    "reflect": (nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    "replicate": (nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    "circular": (nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
}.items():

    @rule(*_kinds, affine=True)
    def _(walk, layer, x, mode=_mode):
        return pad(walk, x, layer.padding, mode, getattr(layer, "value", None))


# ---- other dtypes


def cast(walk, x: Box, dtype: torch.dtype) -> Box:
    """In another dtype; to a narrower one is a rounding of center and radius."""
    return walk.rounded(x.each(torch.Tensor.to, dtype)) if dtype != x.center.dtype else x


for _name in ("float", "double", "half", "bfloat16"):
    _dtype = getattr(torch.zeros(()), _name)().dtype
    rule(_name, affine=True)(lambda walk, x, dtype=_dtype: cast(walk, x, dtype))


@rule("to", "type", "type_as", affine=True)
def _(walk, x, *rest, **options):
    like: list[Any] = [v.center if isinstance(v, Box) else v for v in rest]
    moved = torch.empty(0, dtype=x.center.dtype, device=x.center.device)
    moved = moved.to(*like, **options)
    return cast(walk, x.each(torch.Tensor.to, moved.device), moved.dtype)


# ---- sums and averages


def average(walk, x: Box, terms: int, function, *rest, **options) -> Box:
    """A sum or mean of at most `terms` elements, each of which adds at most one rounding of their magnitude."""
    out = x.each(function, *rest, **options)
    if not walk.sound:
        return out
    return walk.wider(out, terms + 4, function(x.center.abs() + x.radius, *rest, **options))


for _function in (torch.mean, torch.sum):

    @rule(_function, _function.__name__, affine=True)
    def _(walk, x, dim=None, keepdim=False, function=_function):
        return average(walk, x, x.center.numel(), function, dim, keepdim)


@rule(F.avg_pool1d, affine=True)
def _(walk, x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True):
    terms = kernel_size if isinstance(kernel_size, int) else kernel_size[0]
    return average(walk, x, terms, F.avg_pool1d, kernel_size, stride, padding, ceil_mode, count_include_pad)


for _function, _dims in ((F.avg_pool2d, 2), (F.avg_pool3d, 3)):

    @rule(_function, affine=True)
    def _(
        walk, x, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None,
        function=_function, dims=_dims,
    ):  # fmt: skip
        if divisor_override:
            raise Refusal("divisor_override has no rule: scale the result of the plain mean")
        terms = kernel_size**dims if isinstance(kernel_size, int) else math.prod(kernel_size)
        return average(walk, x, terms, function, kernel_size, stride, padding, ceil_mode, count_include_pad)


for _function, _dims in ((F.adaptive_avg_pool1d, 1), (F.adaptive_avg_pool2d, 2), (F.adaptive_avg_pool3d, 3)):

    @rule(_function, affine=True)
    def _(walk, x, output_size, function=_function, dims=_dims):
        return average(walk, x, math.prod(x.center.shape[-dims:]), function, output_size)


_OPTIONS = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
like_function(nn.AvgPool1d, F.avg_pool1d, *_OPTIONS)
like_function(nn.AvgPool2d, F.avg_pool2d, *_OPTIONS, "divisor_override")
like_function(nn.AvgPool3d, F.avg_pool3d, *_OPTIONS, "divisor_override")
like_function(nn.AdaptiveAvgPool1d, F.adaptive_avg_pool1d, "output_size")
like_function(nn.AdaptiveAvgPool2d, F.adaptive_avg_pool2d, "output_size")
like_function(nn.AdaptiveAvgPool3d, F.adaptive_avg_pool3d, "output_size")


@rule(F.interpolate, affine=True)
def _(
    walk, x, size=None, scale_factor=None, mode="nearest", align_corners=None, recompute_scale_factor=None,
    antialias=False,
):  # fmt: skip
    if mode not in ("nearest", "nearest-exact", "linear", "bilinear", "trilinear") or antialias:
        raise Refusal(f"mode {mode!r} has no rule: take nearest, linear, bilinear or trilinear without antialias")
    if "linear" in mode:
        refuse_sound(walk)
    return x.each(F.interpolate, size, scale_factor, mode, align_corners, recompute_scale_factor)


like_function(nn.Upsample, F.interpolate, "size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")


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

    MAX_POOLS.add(_)


MAX_POOLS: set = set()  # their rules
_max_pool(F.max_pool1d, F.max_pool1d, torch.max_pool1d)
_max_pool(F.max_pool2d, F.max_pool2d, torch.max_pool2d)
_max_pool(F.max_pool3d, F.max_pool3d, torch.max_pool3d)
_OPTIONS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
like_function(nn.MaxPool1d, F.max_pool1d, *_OPTIONS)
like_function(nn.MaxPool2d, F.max_pool2d, *_OPTIONS)
like_function(nn.MaxPool3d, F.max_pool3d, *_OPTIONS)


for _function in (torch.amax, torch.amin):

    @rule(_function, _function.__name__)
    def _(walk, x, dim=(), keepdim=False, function=_function):
        return of_ends(walk, x, function, dim, keepdim)


@rule(torch.clamp, torch.clip, "clamp", "clip", "clamp_", "clip_")
def clamp(walk, x, min=None, max=None):
    if isinstance(min, torch.Tensor) or isinstance(max, torch.Tensor):
        return of_ends(walk, x, torch.clamp, min, max)
    min, max = -math.inf if min is None else min, math.inf if max is None else max
    return walk.rounded(Box(*interval_clamp(x.center, x.radius, min, max, clean=x.clean)))


@rule(torch.clamp_min, "clamp_min", "clamp_min_")
def _(walk, x, min):
    return clamp(walk, x, min=min)


@rule(torch.clamp_max, "clamp_max", "clamp_max_")
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
