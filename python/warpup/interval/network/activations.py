"""Rules of activations, softmax, normalisation, products and attention: what has an operator, but no sound bounds."""

from __future__ import annotations

import operator
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from warpup.interval import interval_activation as ops
from warpup.interval.interval_attention import interval_attention, interval_matmul
from warpup.interval.interval_layer_norm import interval_layer_norm, interval_rms_norm
from warpup.interval.interval_softmax import interval_softmax

from .layers import add, batch_norm, divide, from_ends, negative
from .rules import Box, Refusal, like_function, refuse_sound, rule
from .shapes import relu6

MISH = -1.1924312, -0.30884341301726  # where it is least, and no more than it is there

# ---- activations


def through(walk, op: Callable, x: Box, **options) -> Box:
    """An element-wise operator, which takes the clean point along."""
    refuse_sound(walk)
    return Box(*op(x.center, x.radius, clean=x.clean, **options))


def without_options(op: Callable, *targets) -> None:
    rule(*targets)(lambda walk, x, inplace=False: through(walk, op, x))


without_options(ops.interval_sigmoid, F.sigmoid, torch.sigmoid, "sigmoid", "sigmoid_")
without_options(ops.interval_tanh, F.tanh, torch.tanh, "tanh", "tanh_")
without_options(ops.interval_silu, F.silu)
without_options(ops.interval_hardswish, F.hardswish)
without_options(ops.interval_exp, torch.exp, "exp", "exp_")


@rule(F.gelu)
def _(walk, x, approximate="none"):
    return through(walk, ops.interval_gelu, x, approximate=approximate)


@rule(F.leaky_relu)
def _(walk, x, negative_slope=0.01, inplace=False):
    return through(walk, ops.interval_leaky_relu, x, negative_slope=negative_slope)


@rule(F.elu)
def elu(walk, x, alpha=1.0, inplace=False):
    return through(walk, ops.interval_elu, x, alpha=alpha)


@rule(F.celu)
def _(walk, x, alpha=1.0, inplace=False):
    if alpha <= 0:
        raise Refusal(f"alpha must be above 0, got {alpha}")
    return elu(walk, x.each(torch.div, alpha)).each(torch.mul, alpha)


@rule(F.selu, torch.selu)
def _(walk, x, inplace=False):
    return elu(walk, x, 1.6732632423543772).each(torch.mul, 1.0507009873554805)


@rule(F.softplus)
def softplus(walk, x, beta=1.0, threshold=20.0):
    if beta <= 0:
        raise Refusal(f"beta must be above 0, got {beta}")
    if threshold < 20:  # torch steps from log(1 + e^t) down to t there; from 20 on by less than 2e-9
        raise Refusal(f"threshold must be at least 20, below which the function has a step, got {threshold}")
    return through(walk, ops.interval_softplus, x.each(torch.mul, beta)).each(torch.div, beta)


@rule(F.logsigmoid)
def _(walk, x):
    return negative(walk, softplus(walk, negative(walk, x)))


@rule(F.hardsigmoid)
def _(walk, x, inplace=False):
    return divide(walk, relu6(walk, add(walk, x, 3.0)), 6.0)


@rule(F.prelu, torch.prelu)
def prelu(walk, x, weight):
    """A slope below 0 makes it fall before 0; where 0 is inside, 0 may be the least then."""
    (low, high), at = x.ends(), [F.prelu(end, weight) for end in x.ends()]
    least = torch.minimum(*at)
    least = torch.where((low < 0) & (high > 0), least.clamp_max(0), least)
    out = from_ends(least, torch.maximum(*at), None if x.clean is None else F.prelu(x.clean, weight))
    if not walk.sound:
        return out
    return walk.wider(out, 8, (x.center.abs() + x.radius) * (1 + weight.abs().amax()))


@rule(F.mish)
def _(walk, x, inplace=False):
    """Falls to its minimum, -.3088 at -1.1924, then rises."""
    refuse_sound(walk)
    (low, high), at = x.ends(), [F.mish(end) for end in x.ends()]
    least = torch.where((low < MISH[0]) & (high > MISH[0]), MISH[1], torch.minimum(*at))
    return from_ends(least, torch.maximum(*at), None if x.clean is None else F.mish(x.clean))


@rule(F.softmax, torch.softmax, "softmax")
def _(walk, x, dim=None, _stacklevel=3, dtype=None):
    refuse_sound(walk)
    if dim is None:
        raise Refusal("its dim is not given")
    if dtype is not None or isinstance(_stacklevel, torch.dtype):  # torch.softmax has it in third place
        raise Refusal("option dtype has no rule: leave it out, and call bound in that dtype")
    return Box(*interval_softmax(x.center, x.radius, dim), None if x.clean is None else x.clean.softmax(dim))


# ---- normalisation


@rule(F.layer_norm)
def _(walk, x, normalized_shape, weight=None, bias=None, eps=1e-5):
    return normalised(walk, x, interval_layer_norm, F.layer_norm, normalized_shape, weight, bias, eps)


@rule(F.rms_norm)
def _(walk, x, normalized_shape, weight=None, eps=None):
    return normalised(walk, x, interval_rms_norm, F.rms_norm, normalized_shape, weight, eps)


def normalised(walk, x: Box, op: Callable, function: Callable, *options) -> Box:
    refuse_sound(walk)
    center, radius = op(x.center, x.radius, *options)
    return Box(center, radius, None if x.clean is None else function(x.clean, *options))


@rule(F.group_norm)
def group_norm(walk, x, num_groups, weight=None, bias=None, eps=1e-5):
    """Layer normalisation of each group of channels, then a scale and shift of each channel."""
    refuse_sound(walk)
    grouped = x.each(lambda t: t.reshape(t.shape[0], num_groups, -1))
    center, radius = interval_layer_norm(grouped.center, grouped.radius, grouped.center.shape[-1], None, None, eps)
    shape = (1, -1, *(1,) * (x.center.dim() - 2))
    center, radius = center.view(x.center.shape), radius.view(x.center.shape)
    if weight is not None:
        center, radius = center * weight.view(shape), radius * weight.view(shape).abs()
    center = center if bias is None else center + bias.view(shape)
    return Box(center, radius, None if x.clean is None else F.group_norm(x.clean, num_groups, weight, bias, eps))


@rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def _(walk, layer, x):
    """Each channel by its own statistics; in eval mode with running ones it is batch normalisation."""
    if layer.track_running_stats and layer.training and walk.statistics != "frozen":
        raise Refusal(
            "in training mode it moves its running statistics: call eval() on it, or pass statistics='frozen'"
        )
    alone = x.center.dim() == layer._get_no_batch_dim()
    x = x.each(torch.unsqueeze, 0) if alone else x
    if layer.track_running_stats:
        out = batch_norm(walk, layer, x)
    else:
        out = group_norm(walk, x, x.center.shape[1], layer.weight, layer.bias, layer.eps)
    return out.each(torch.squeeze, 0) if alone else out


# ---- products


def pairs(walk, *boxes) -> list[tuple[Tensor, Tensor]]:
    """(center, radius) of each."""
    refuse_sound(walk)
    if not all(isinstance(box, Box) for box in boxes):
        raise Refusal("every operand must come from the input")
    return [box[:2] for box in boxes]


@rule(torch.matmul, operator.matmul, torch.bmm, "matmul", "bmm")
def _(walk, x, other):
    found = interval_matmul(*pairs(walk, x, other))
    return Box(*found, None if x.clean is None else x.clean @ other.clean)


@rule(F.scaled_dot_product_attention)
def _(
    walk, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False
):  # fmt: skip
    if dropout_p:
        raise Refusal(f"dropout_p is {dropout_p}, and dropout has no bounds: pass 0 in eval mode")
    if enable_gqa:
        raise Refusal("option enable_gqa has no rule: repeat the heads of key and value")
    if isinstance(attn_mask, Box):
        raise Refusal("attn_mask must not come from the input")
    options = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale}
    found = interval_attention(*pairs(walk, query, key, value), **options)
    cleans = query.clean, key.clean, value.clean
    return Box(*found, None if cleans[0] is None else F.scaled_dot_product_attention(*cleans, **options))


# ---- layers

like_function(nn.Sigmoid, F.sigmoid)
like_function(nn.Tanh, F.tanh)
like_function(nn.SiLU, F.silu)
like_function(nn.Hardswish, F.hardswish)
like_function(nn.GELU, F.gelu, "approximate")
like_function(nn.LeakyReLU, F.leaky_relu, "negative_slope")
like_function(nn.ELU, F.elu, "alpha")
like_function(nn.CELU, F.celu, "alpha")
like_function(nn.SELU, F.selu)
like_function(nn.Softplus, F.softplus, "beta", "threshold")
like_function(nn.LogSigmoid, F.logsigmoid)
like_function(nn.Hardsigmoid, F.hardsigmoid)
like_function(nn.Softmax, F.softmax, "dim")
like_function(nn.Mish, F.mish)
like_function(nn.PReLU, F.prelu, "weight")
like_function(nn.GroupNorm, F.group_norm, "num_groups", "weight", "bias", "eps")
like_function(nn.LayerNorm, F.layer_norm, "normalized_shape", "weight", "bias", "eps")
like_function(nn.RMSNorm, F.rms_norm, "normalized_shape", "weight", "eps")
