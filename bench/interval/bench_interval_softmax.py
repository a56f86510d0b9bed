"""interval_softmax, beside plain torch and beside the form whose sums cancel."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.harness.measure import Comparison, Work, beside_reference
from tests.interval.spec_interval_softmax import softmax_inputs
from tests.support.cases import OPS

SCORES = {"cpu": (16, 64, 128), "cuda": (256, 512, 512), "quick": (2, 3, 5)}  # eager makes n^2 for each row


def cases(device: str, size: str) -> Iterator[Comparison]:
    for direction in ("forward", "forward+backward"):
        name = f"interval_softmax {direction} fp32 {list(SCORES[size])}"
        yield Comparison(name, partial(softmax, device, SCORES[size], direction))


def test_interval_softmax(case, measure):
    measure(case)


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
