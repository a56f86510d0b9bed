"""What each layer does to a box: one rule a layer or function.

`@rule(nn.MyLayer)` over `def _(walk, layer, x: Box) -> Box` adds one; then `bound` takes the layer as a whole and does
not look into it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from warpup.interval.interval_batch_norm import interval_batch_norm
from warpup.interval.interval_box import interval_add, interval_sub
from warpup.interval.interval_conv import interval_conv1d, interval_conv2d
from warpup.interval.interval_linear import interval_linear


class Box(NamedTuple):
    """All x with |x - center| <= radius, and the clean point that goes through the layers beside it, if any."""

    center: Tensor
    radius: Tensor
    clean: Tensor | None = None

    def each(self, function: Callable, *rest, **options) -> Box:
        """A linear function without negative weights, so that it does the same to center and radius."""
        return Box(*(None if t is None else function(t, *rest, **options) for t in self))


class Refusal(Exception):
    """Raised by a rule; `bound` adds the layer's name."""


class Rules:
    """Layer type or function -> rule."""

    def __init__(self):
        self.layers: dict[type, Callable] = {}
        self.functions: dict[Callable | str, Callable] = {}

    def __call__(self, *targets):
        """Decorator: the function is the rule of these layer types, functions and names of tensor methods."""

        def add(function):
            for target in targets:
                table = self.layers if isinstance(target, type) and issubclass(target, nn.Module) else self.functions
                table[target] = function
            return function

        return add

    def of_layer(self, kind: type) -> Callable | None:
        """Rule of a layer type, or of one that it inherits its forward from."""
        bases = (base for base in kind.__mro__ if base in self.layers and kind.forward is base.forward)
        return next((self.layers[base] for base in bases), None)


rule = RULES = Rules()


def like_function(layer: type[nn.Module], function: Callable, *attributes: str) -> None:
    """Make a layer's rule that of its function, which takes these attributes of the layer as options."""

    @rule(layer)
    def _(walk, layer, x):
        return RULES.functions[function](walk, x, **{name: getattr(layer, name) for name in attributes})


# ---- linear maps


@rule(F.linear)
def linear(walk, x, weight, bias=None):
    return Box(*interval_linear(x.center, x.radius, weight, bias, clean=x.clean, sound=walk.sound))


like_function(nn.Linear, F.linear, "weight", "bias")


def conv(op, walk, x, weight, bias, stride, padding, dilation, groups):
    padding = padding_of(padding, weight, dilation)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return Box(*op(x.center, x.radius, weight, bias, **options, clean=x.clean, sound=walk.sound))


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


@rule(F.conv1d)
def _(walk, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return conv(interval_conv1d, walk, x, weight, bias, stride, padding, dilation, groups)


@rule(F.conv2d)
def _(walk, x, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
    return conv(interval_conv2d, walk, x, weight, bias, stride, padding, dilation, groups)


@rule(nn.Conv1d, nn.Conv2d)
def _(walk, layer, x):
    if layer.padding_mode != "zeros":
        raise Refusal(f"padding_mode {layer.padding_mode!r}, only 'zeros' has bounds")
    op = interval_conv1d if isinstance(layer, nn.Conv1d) else interval_conv2d
    return conv(op, walk, x, layer.weight, layer.bias, layer.stride, layer.padding, layer.dilation, layer.groups)


# ---- normalisation and activations


def uses_batch(layer, statistics: str) -> bool:
    """Whether a batch normalisation layer takes the batch's mean and variance."""
    return statistics != "frozen" and (layer.training or layer.running_mean is None)


@rule(nn.BatchNorm1d, nn.BatchNorm2d)
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


def _point(value, like: Box) -> Box:
    """A number or tensor as a box without extent."""
    point = torch.as_tensor(value, dtype=like.center.dtype, device=like.center.device)
    return Box(point, torch.zeros_like(point), None if like.clean is None else point)


def _sum(walk, op, function, x, y, alpha) -> Box:
    """x + alpha y or x - alpha y, by op on boxes and function on clean points."""
    x, y = (v if isinstance(v, Box) else _point(v, y if isinstance(y, Box) else x) for v in (x, y))
    y = y if alpha == 1 else scale(walk, y, alpha)
    return walk.rounded(Box(*op(x[:2], y[:2]), None if x.clean is None else function(x.clean, y.clean)))


@rule(operator.add, operator.iadd, torch.add, "add", "add_")
def add(walk, x, other, alpha=1):
    return _sum(walk, interval_add, torch.add, x, other, alpha)


@rule(operator.sub, operator.isub, torch.sub, "sub", "sub_")
def sub(walk, x, other, alpha=1):
    return _sum(walk, interval_sub, torch.sub, x, other, alpha)


@rule(operator.neg, torch.neg, "neg")
def negative(walk, x):
    return Box(-x.center, x.radius, None if x.clean is None else -x.clean)


@rule(operator.mul, operator.imul, torch.mul, "mul", "mul_")
def scale(walk, x, other):
    if isinstance(x, Box) and isinstance(other, Box):
        raise Refusal("a product of two boxes element by element has no rule")
    x, k = (x, other) if isinstance(x, Box) else (other, x)
    clean = None if x.clean is None else x.clean * k
    return walk.rounded(Box(x.center * k, x.radius * abs(k), clean))


@rule(operator.truediv, operator.itruediv, torch.div, "div", "div_")
def divide(walk, x, other):
    if isinstance(other, Box):
        raise Refusal("a division by a box has no rule")
    return walk.rounded(Box(x.center / other, x.radius / abs(other), None if x.clean is None else x.clean / other))
