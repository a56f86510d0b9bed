"""glu beside torch's chunk, activation and product, on the rows of DeepSeekMoE-16B."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.harness.measure import DIRECTIONS, Comparison, Work, beside_reference
from tests.support.cases import OPS

ROWS = {"cpu": (512 * 6, 1408), "cuda": (8192 * 6, 1408), "quick": (8, 37)}  # S, I


def cases(device: str, size: str) -> Iterator[Comparison]:
    rows = ROWS[size]
    for direction in DIRECTIONS:
        goals = {"eager": 1} if size != "quick" else {}
        yield Comparison(f"glu {direction} bf16 {list(rows)}", partial(glu, device, rows, direction), goals)


def test_glu(case, measure):
    measure(case)


def glu(device, rows, direction) -> Work:
    op = OPS["glu"]
    return beside_reference(op, op.inputs(rows, torch.bfloat16, device, 0, "silu"), direction)
