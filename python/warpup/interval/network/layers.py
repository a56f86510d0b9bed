"""Rules of linear maps, normalisation, ReLU and arithmetic: what a layer does to a box."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from warpup.interval.interval_arithmetic import product as times
from warpup.interval.interval_arithmetic import quotient
from warpup.interval.interval_batch_norm import interval_batch_norm
from warpup.interval.interval_box import interval_add, interval_sub
from warpup.interval.interval_conv import interval_conv1d, interval_conv2d
from warpup.interval.interval_linear import interval_linear

from .rules import Box, Refusal, like_function, refuse_sound, rule

# ---- linear maps


@rule(F.linear, affine=True)
def linear(walk, x, weight, bias=None):
    if isinstance(weight, Box) or not isinstance(x, Box):
        raise Refusal("its weight must not come from the input, which bounds know as center and radius alone")
    return Box(*interval_linear(x.center, x.radius, weight, bias, clean=x.clean, sound=walk.sound))


like_function(nn.Linear, F.linear, "weight", "bias")


def product(walk, x: Box, function: Callable, weight: Tensor, bias: Tensor | None, *options) -> Box:
    """A map of the library's that is linear in x and in its weight."""
    refuse_sound(walk)
    clean = None if x.clean is None else function(x.clean, weight, bias, *options)
    center, radius = function(x.center, weight, bias, *options), function(x.radius, weight.abs(), None, *options)
    return Box(center, radius, clean)


def conv(walk, x: Box, weight, bias, stride, padding, dilation, groups) -> Box:
    op = {3: interval_conv1d, 4: interval_conv2d}.get(weight.dim())
    padding = padding_of(padding, weight, dilation)
    if op is None:
        return product(walk, x, F.conv3d, weight, bias, stride, padding, dilation, groups)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    alone = x.center.dim() == weight.dim() - 1  # one input without a batch
    x = x.each(torch.unsqueeze, 0) if alone else x
    out = Box(*op(x.center, x.radius, weight, bias, **options, clean=x.clean, sound=walk.sound))
    return out.each(torch.squeeze, 0) if alone else out


def padding_of(padding, weight: Tensor, dilation):
    """'same' and 'valid' as numbers."""
    if not isinstance(padding, str):
        return padding
    dims = weight.dim() - 2
    if padding == "valid":
        return (0,) * dims
    dilation = (dilation,) * dims if isinstance(dilation, int) else dilation
    total = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
    if any(t % 2 for t in total):
        raise Refusal(f"padding='same' of an even kernel {tuple(weight.shape[2:])}; pad with nn.ZeroPad2d before it")
    return tuple(t // 2 for t in total)


@rule(F.conv1d, F.conv2d, F.conv3d, affine=True)
def convolution(walk, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return conv(walk, x, weight, bias, stride, padding, dilation, groups)


@rule(nn.Conv1d, nn.Conv2d, nn.Conv3d, affine=True)
def conv_layer(walk, layer, x):
    places = (layer.stride, layer.padding, layer.dilation, layer.groups)
    if layer.padding_mode != "zeros":
        x = x.each(F.pad, layer._reversed_padding_repeated_twice, layer.padding_mode)
        places = (layer.stride, "valid", *places[2:])
    return conv(walk, x, layer.weight, layer.bias, *places)


def _conv_transpose(function: Callable, kind: type[nn.Module]) -> None:
    @rule(function, affine=True)
    def _(walk, x, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        return product(walk, x, function, weight, bias, stride, padding, output_padding, groups, dilation)

    like_function(kind, function, "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


_conv_transpose(F.conv_transpose1d, nn.ConvTranspose1d)
_conv_transpose(F.conv_transpose2d, nn.ConvTranspose2d)
_conv_transpose(F.conv_transpose3d, nn.ConvTranspose3d)


# ---- normalisation and activations


def uses_batch(layer, statistics: str) -> bool:
    """Whether a batch normalisation layer takes the batch's mean and variance."""
    return statistics != "frozen" and (layer.training or layer.running_mean is None)


@rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
def batch_norm(walk, layer, x, relu=False):
    training = uses_batch(layer, walk.statistics)
    statistics = walk.statistics if training else "frozen"
    if training and walk.statistics == "clean" and x.clean is None:
        raise Refusal("in training mode its statistics are the clean pass's: pass clean=, or statistics='midpoint'")
    if layer.running_mean is None and not training:
        raise Refusal("it has no running statistics to freeze")
    momentum = layer.momentum
    if training and layer.training and layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1 / float(layer.num_batches_tracked)
    if walk.sound and training:
        raise Refusal("sound bounds need frozen statistics: module.eval() or statistics='frozen'")
    out = interval_batch_norm(
        x.center, x.radius, layer.running_mean, layer.running_var, layer.weight, layer.bias, clean=x.clean,
        training=training, momentum=momentum, eps=layer.eps, statistics=statistics, relu=relu,
        sums=relu and walk.sums is not None, sound=walk.sound,
    )  # fmt: skip
    return walk.after_relu(out) if relu else Box(*out)


def scale_and_shift(layer, mean: Tensor, var: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Batch normalisation as x * scale + shift."""
    scale = (var + layer.eps).rsqrt() if layer.weight is None else (var + layer.eps).rsqrt() * layer.weight
    shift = -mean * scale if layer.bias is None else layer.bias - mean * scale
    shape = (1, -1, *(1,) * (dim - 2))
    return scale.view(shape), shift.view(shape)


@rule(F.relu, torch.relu, F.relu_, torch.relu_, "relu", "relu_")
def relu(walk, x, inplace=False):
    return walk.relu(x)


like_function(nn.ReLU, F.relu)


# ---- arithmetic


def point(value, like: Box, sound: bool = False) -> Box:
    """A number or tensor as a box without extent, but, if sound, for what it loses in the dtype that torch takes."""
    dtype, device = torch.result_type(like.center, value), like.center.device
    point = torch.as_tensor(value, device=device, dtype=dtype)
    radius = torch.zeros_like(point)
    if sound:
        lost = torch.as_tensor(value, device=device, dtype=torch.float64) - point.double()
        radius = lost.abs().to(dtype) * (1 + 2 * torch.finfo(dtype).eps)
    return Box(point, radius, None if like.clean is None else point)


def both(walk, x, y) -> tuple[Box, Box]:
    """Two operands as boxes; one is a box already."""
    box = x if isinstance(x, Box) else y
    x, y = (v if isinstance(v, Box) else point(v, box, walk.sound) for v in (x, y))
    return x, y


def _sum(walk, op, function, x, y, alpha) -> Box:
    """x + alpha y or x - alpha y, by op on boxes and function on clean points."""
    x, y = both(walk, x, y)
    y = y if alpha == 1 else scale(walk, y, alpha)
    center, radius = op(x[:2], y[:2])
    return walk.rounded(Box(center, radius, None if x.clean is None else function(x.clean, y.clean)))


@rule(operator.add, operator.iadd, torch.add, "add", "add_", affine=True)
def add(walk, x, other, alpha=1):
    return _sum(walk, interval_add, torch.add, x, other, alpha)


@rule(operator.sub, operator.isub, torch.sub, "sub", "sub_", affine=True)
def sub(walk, x, other, alpha=1):
    return _sum(walk, interval_sub, torch.sub, x, other, alpha)


@rule(operator.neg, torch.neg, "neg", "neg_", affine=True)
def negative(walk, x):
    return Box(-x.center, x.radius, None if x.clean is None else -x.clean)


@rule(operator.mul, operator.imul, torch.mul, "mul", "mul_", affine=True)
def scale(walk, x, other):
    if isinstance(x, Box) and isinstance(other, Box):
        clean = None if x.clean is None or other.clean is None else x.clean * other.clean
        return through_ends(walk, times, x, other, clean=clean)
    x, k = (x, other) if isinstance(x, Box) else (other, x)
    clean = None if x.clean is None else x.clean * k
    return walk.rounded(Box(x.center * k, x.radius * abs(k), clean))


@rule(operator.truediv, operator.itruediv, torch.div, "div", "div_", affine=True)
def divide(walk, x, other):
    if isinstance(other, Box):
        x, other = both(walk, x, other)
        clean = None if x.clean is None or other.clean is None else x.clean / other.clean
        return through_ends(walk, quotient, x, other, clean=clean)
    return walk.rounded(Box(x.center / other, x.radius / abs(other), None if x.clean is None else x.clean / other))


def from_ends(low: Tensor, high: Tensor, clean: Tensor | None) -> Box:
    return Box((low + high) / 2, (high - low) / 2, clean)


def through_ends(walk, function: Callable, *boxes: Box, clean: Tensor | None) -> Box:
    """The box of a function of ends, each of which it rounds to within two units in the last place."""
    low, high = function(*map(walk.ends, boxes))
    out = from_ends(low, high, clean)
    return walk.wider(out, 8) if walk.sound else out


def _extreme(function: Callable, *targets) -> None:
    """The larger or smaller of two: rises in both."""

    @rule(*targets)
    def _(walk, x, other=None, **options):
        if other is None or options or isinstance(other, int):  # max(x, dim) is another function
            raise Refusal("only the larger or smaller of two tensors has a rule; over a dimension take amax or amin")
        x, y = both(walk, x, other)
        low, high = map(function, x.ends(), y.ends())
        return walk.rounded(from_ends(low, high, None if x.clean is None else function(x.clean, y.clean)))


_extreme(torch.maximum, torch.maximum, torch.max, "maximum", "max")
_extreme(torch.minimum, torch.minimum, torch.min, "minimum", "min")
