"""interval_batch_norm and interval_relu, beside plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.harness.measure import Comparison, beside_reference
from tests.support.cases import OPS


def cases(device: str, size: str) -> Iterator[Comparison]:
    for op in ("interval_batch_norm", "interval_relu"):
        case = OPS[op]
        inputs = case.make("small" if size == "quick" else "bench", torch.float32, device)
        yield Comparison(f"{op} forward+backward", partial(beside_reference, case, inputs, "forward+backward"))


def test_interval_batch_norm(case, measure):
    measure(case)
