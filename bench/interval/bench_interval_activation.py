"""Family `interval`: boxes through element-wise functions and softmax."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.harness.measure import Comparison, Work, beside_reference
from tests.interval.spec_interval_activation import VARIANTS, activation_inputs, softmax_inputs
from tests.support.cases import OPS

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
SHAPES = {"cpu": (128, 64, 16, 16), "cuda": (1024, 64, 32, 32), "quick": (2, 3, 4)}
SCORES = {"cpu": (16, 64, 128), "cuda": (256, 512, 512), "quick": (2, 3, 5)}  # eager makes n^2 for each row
torch._dynamo.config.recompile_limit = 64  # of the reference there is a graph for each kind


def cases(device: str, size: str) -> Iterator[Comparison]:
    for kind in VARIANTS:
        for dtype in DTYPES if kind == "gelu" else (torch.float32,):
            for direction in ("forward", "forward+backward") if kind == "gelu" else ("forward+backward",):
                name = f"interval_activation {kind} {direction} {DTYPES[dtype]} {list(SHAPES[size])}"
                yield Comparison(name, partial(activation, device, SHAPES[size], dtype, direction, kind))
    for direction in ("forward", "forward+backward"):
        name = f"interval_softmax {direction} fp32 {list(SCORES[size])}"
        yield Comparison(name, partial(softmax, device, SCORES[size], direction))


def test_interval_activation(case, measure):
    measure(case)


def activation(device, shape, dtype, direction, kind) -> Work:
    op = OPS["interval_activation"]
    return beside_reference(op, activation_inputs(shape, dtype, device, 0, kind), direction)


def shared_sum(center, radius):
    """The softmax as it is usually written in O(n): each sum without its own term by subtraction, which cancels."""
    low, high = center - radius, center + radius
    top = high.amax(-1, keepdim=True)
    e_low, e_high = (low - top).exp(), (high - top).exp()
    lower = e_low / (e_low + e_high.sum(-1, keepdim=True) - e_high)
    upper = e_high / (e_high + e_low.sum(-1, keepdim=True) - e_low)
    return (lower + upper) / 2, (upper - lower) / 2


def softmax(device, shape, direction) -> Work:
    op = OPS["interval_softmax"]
    return beside_reference(
        op, softmax_inputs(shape, torch.float32, device, 0, "plain"), direction, **{"shared sum": shared_sum}
    )
