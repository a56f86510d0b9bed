"""Rules of the layers that have an operator of their own beside linear maps, ReLU and batch normalisation."""

from __future__ import annotations

import operator
from types import ModuleType
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from warpup.ops import interval_activation, interval_attention, interval_layers

from .layers import Box, Refusal, rule


class Operator(NamedTuple):
    """An operator of `warpup.ops`. It takes the box, as (center, radius), and then what its function takes, by the
    function's names; an operator of several boxes takes each as a pair."""

    module: ModuleType
    functions: tuple  # the first is called for the clean point
    layer: type[nn.Module] | None = None
    attributes: tuple[str, ...] = ()  # of the layer, its function's options
    pairs: bool = False


_NORM = ("normalized_shape", "weight", "bias", "eps")
OPERATORS = {
    "interval_sigmoid": Operator(interval_activation, (F.sigmoid, torch.sigmoid, "sigmoid"), nn.Sigmoid),
    "interval_tanh": Operator(interval_activation, (F.tanh, torch.tanh, "tanh"), nn.Tanh),
    "interval_gelu": Operator(interval_activation, (F.gelu,), nn.GELU, ("approximate",)),
    "interval_silu": Operator(interval_activation, (F.silu,), nn.SiLU),
    "interval_hardswish": Operator(interval_activation, (F.hardswish,), nn.Hardswish),
    "interval_leaky_relu": Operator(interval_activation, (F.leaky_relu,), nn.LeakyReLU, ("negative_slope",)),
    "interval_elu": Operator(interval_activation, (F.elu,), nn.ELU, ("alpha",)),
    "interval_exp": Operator(interval_activation, (torch.exp, "exp")),
    "interval_softmax": Operator(interval_activation, (F.softmax, torch.softmax, "softmax"), nn.Softmax, ("dim",)),
    "interval_layer_norm": Operator(interval_layers, (F.layer_norm,), nn.LayerNorm, _NORM),
    "interval_rms_norm": Operator(interval_layers, (F.rms_norm,), nn.RMSNorm, ("normalized_shape", "weight", "eps")),
    "interval_matmul": Operator(
        interval_attention, (torch.matmul, operator.matmul, torch.bmm, "matmul", "bmm"), pairs=True
    ),
    "interval_attention": Operator(interval_attention, (F.scaled_dot_product_attention,), pairs=True),
}
IGNORED = ("_stacklevel", "inplace")  # options that say nothing about the result


def _add(name: str, row: Operator) -> None:
    def apply(walk, *values, **options):
        if walk.sound:
            raise Refusal("it has no sound bounds")
        if name == "interval_softmax" and options.get("dim", values[1] if len(values) > 1 else None) is None:
            raise Refusal("its dim is not given")
        op = getattr(row.module, name)
        boxes, rest = [v for v in values if isinstance(v, Box)], [v for v in values if not isinstance(v, Box)]
        if row.pairs and len(boxes) < len(values):
            raise Refusal("every operand must come from the input")
        options = {k: v for k, v in options.items() if k not in IGNORED and v is not None}
        parts = [box[:2] for box in boxes] if row.pairs else boxes[0][:2]
        center, radius = op(*parts, *rest, **options)
        cleans = [box.clean for box in boxes if box.clean is not None]
        return Box(center, radius, row.functions[0](*cleans, *rest, **options) if cleans else None)

    def of_layer(walk, layer, x):
        return apply(walk, x, **{attribute: getattr(layer, attribute) for attribute in row.attributes})

    rule(*row.functions)(apply)
    if row.layer:
        rule(row.layer)(of_layer)


for _name, _row in OPERATORS.items():
    _add(_name, _row)
