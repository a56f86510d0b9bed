"""interval_batch_norm and interval_relu, beside plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.harness.measure import Comparison, Work, beside_reference
from tests.support.cases import OPS


def cases(device: str, size: str) -> Iterator[Comparison]:
    for op in ("interval_batch_norm", "interval_relu"):
        build = partial(both_ways, op, device, "small" if size == "quick" else "bench")
        yield Comparison(f"{op} forward+backward", build)


def test_interval_batch_norm(case, measure):
    measure(case)


def both_ways(op: str, device: str, size: str) -> Work:
    return beside_reference(OPS[op], OPS[op].make(size, torch.float32, device), "forward+backward")
