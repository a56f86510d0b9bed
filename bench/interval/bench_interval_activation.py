"""interval_activation: boxes through element-wise functions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.harness.measure import Comparison, Work, beside_reference
from tests.interval.spec_interval_activation import VARIANTS, activation_inputs
from tests.support.cases import OPS

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
SHAPES = {"cpu": (128, 64, 16, 16), "cuda": (1024, 64, 32, 32), "quick": (2, 3, 4)}
torch._dynamo.config.recompile_limit = 64  # of the reference there is a graph for each kind


def cases(device: str, size: str) -> Iterator[Comparison]:
    for kind in VARIANTS:
        for dtype in DTYPES if kind == "gelu" else (torch.float32,):
            for direction in ("forward", "forward+backward") if kind == "gelu" else ("forward+backward",):
                name = f"interval_activation {kind} {direction} {DTYPES[dtype]} {list(SHAPES[size])}"
                yield Comparison(name, partial(activation, device, SHAPES[size], dtype, direction, kind))


def test_interval_activation(case, measure):
    measure(case)


def activation(device, shape, dtype, direction, kind) -> Work:
    op = OPS["interval_activation"]
    return beside_reference(op, activation_inputs(shape, dtype, device, 0, kind), direction)
