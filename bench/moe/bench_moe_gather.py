"""moe_gather and moe_combine beside indexing and a sum, on shapes of Qwen3-30B-A3B."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import torch

from bench.harness.measure import DIRECTIONS, Comparison, Work, differentiable, expected, moved, upcast
from bench.moe.bench_moe_plan import COPIES
from tests.support.cases import OPS

DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
BOTH = "forward+backward"


def cases(device: str, size: str) -> Iterator[Comparison]:
    shape = COPIES[size]
    for op, work in (("moe_gather", gather), ("moe_combine", combine)):
        for dtype, label in DTYPES.items():
            for direction in DIRECTIONS if op == "moe_gather" else ("forward", BOTH):
                goals = {"eager": 4} if size == "cpu" and (op, direction) == ("moe_gather", "backward") else {}
                yield Comparison(
                    f"{op} {direction} {label} {list(shape)}", partial(work, device, shape, dtype, direction), goals
                )


def test_moe_gather(case, measure):
    measure(case)


def index(x, plan):
    """Its backward is index_put with accumulation."""
    return x[plan.permutation // plan.inverse.shape[1]]


def index_sum(y, weights, plan):
    """transformers' way: weigh the sorted rows, bring them back, add up."""
    weighted = y * weights.view(-1)[plan.permutation].unsqueeze(-1).to(y.dtype)
    return weighted[plan.inverse.view(-1)].view(*plan.inverse.shape, -1).float().sum(1).to(y.dtype)


@lru_cache(1)
def inputs_of(op, device, shape, dtype):
    return OPS[op].inputs(shape, dtype, device, 0, "plain")


@lru_cache(1)
def results_of(op, device, shape, dtype):
    return OPS[op].run(upcast(inputs_of(op, device, shape, dtype)), OPS[op].reference)


def compare(name, eager, device, shape, dtype, direction) -> Work:
    op, inputs = OPS[name], inputs_of(name, device, shape, dtype)
    functions = {"warpup": op.call, "eager": eager}
    return Work(
        {k: differentiable(f, inputs, op.differentiable, direction) for k, f in functions.items()},
        bytes=moved(direction, op.bytes(inputs)),
        reference=lambda: expected(direction, results_of(name, device, shape, dtype), len(op.differentiable)),
        dtype=dtype,
    )


gather = partial(compare, "moe_gather", index)
combine = partial(compare, "moe_combine", index_sum)
