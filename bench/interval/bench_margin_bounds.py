"""margin_bounds and margin_cross_entropy, beside a difference of weights a sample and a table a pair."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.harness.measure import Comparison, Work, beside_reference
from tests.support.cases import OPS
from warpup.interval.margin_bounds import others

SHAPES = {  # (B, H, K)
    "cpu": ((256, 512, 10), (256, 512, 200)),
    "cuda": ((256, 512, 10), (256, 512, 200), (1024, 2048, 1000)),
    "quick": ((8, 16, 5),),
}
GOALS = {10: {"eager": 4}, 200: {"eager": 9}}


def cases(device: str, size: str) -> Iterator[Comparison]:
    for shape in SHAPES[size]:
        for op in ("margin_bounds", "margin_cross_entropy"):
            for direction in ("forward", "forward+backward"):
                goals = GOALS[shape[2]] if (size, direction) == ("cpu", "forward+backward") else {}
                yield Comparison(
                    f"{op} {direction} fp32 {list(shape)}", partial(margins, device, shape, op, direction), goals
                )


def test_margin_bounds(case, measure):
    measure(case)


def table_and_gather(center, radius, weight, bias, labels):
    """One product with |W[y] - W[k]| of all pairs, from which each sample takes its own."""
    classes = len(weight)
    table = (weight.unsqueeze(1) - weight).abs().flatten(0, 1)
    rest = others(labels, classes)
    width = (radius @ table.t()).view(-1, classes, classes)
    z = torch.nn.functional.linear(center, weight, bias)
    own = labels.view(-1, 1, 1).expand(-1, 1, classes)
    return z.gather(1, labels.unsqueeze(1)) - z.gather(1, rest) - width.gather(1, own).squeeze(1).gather(1, rest)


def table_loss(**inputs):
    bounds = table_and_gather(**inputs)
    return torch.nn.functional.pad(-bounds, (1, 0)).logsumexp(1), bounds


def margins(device, shape, op, direction) -> Work:
    inputs = OPS[op].inputs(shape, torch.float32, device, 0, "plain")
    peer = table_and_gather if op == "margin_bounds" else table_loss
    return beside_reference(OPS[op], inputs, direction, **{"table and gather": peer})
