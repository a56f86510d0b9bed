"""Family `moe`: the router, the plan, gather and combine, on shapes of DeepSeekMoE-16B, Qwen3-30B-A3B, DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import torch

import warpup
from bench.harness.measure import (
    DIRECTIONS,
    Comparison,
    Work,
    beside_reference,
    differentiable,
    expected,
    moved,
    upcast,
)
from bench.harness.timing import Candidate
from tests.support.cases import OPS

DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
COPIES = {"cpu": (4096, 8, 128, 2048), "cuda": (8192, 8, 128, 2048), "quick": (16, 2, 5, 24)}  # T, k, E, H
ROUTES = {  # T, E, k
    "cpu": [(4096, 64, 6), (4096, 128, 8), (4096, 256, 8)],
    "cuda": [(8192, 64, 6), (8192, 128, 8), (8192, 256, 8)],
    "quick": [(16, 12, 3)],
}
BOTH = "forward+backward"


def cases(device: str, size: str) -> Iterator[Comparison]:
    shape, goal = COPIES[size], size == "cpu"
    for tokens, experts, k in ROUTES[size]:
        name = f"moe_route {BOTH} T={tokens} E={experts} k={k}"
        yield Comparison(name, partial(route, device, (tokens, experts, k)), {"eager": 5} if goal else {})
    yield Comparison(f"moe_plan {list(shape[:3])}", partial(plan, device, shape))
    for op, work in (("moe_gather", gather), ("moe_combine", combine)):
        for dtype, label in DTYPES.items():
            for direction in DIRECTIONS if op == "moe_gather" else ("forward", BOTH):
                goals = {"eager": 4} if goal and (op, direction) == ("moe_gather", "backward") else {}
                yield Comparison(
                    f"{op} {direction} {label} {list(shape)}", partial(work, device, shape, dtype, direction), goals
                )


def test_moe(case, measure):
    measure(case)


# ---- moe_route ------------------------------------------------------------------------------------------------------


def torch_chain(logits, k, renormalize):
    """Softmax, top-k, renormalisation, and what the balance losses need."""
    probabilities = torch.softmax(logits, -1, dtype=torch.float32)
    indices = logits.topk(k, -1).indices
    weights = probabilities.gather(1, indices)
    weights = weights / weights.sum(-1, keepdim=True) if renormalize else weights
    counts = torch.nn.functional.one_hot(indices, logits.shape[1]).sum((0, 1))
    return weights, indices, counts, probabilities.mean(0), torch.logsumexp(logits, -1).square().mean()


def route(device, shape) -> Work:
    op = OPS["moe_route"]
    inputs = op.inputs(shape, torch.float32, device, 0, "plain") | {"renormalize": True}
    work = beside_reference(op, inputs, BOTH)
    work.candidates["eager"] = differentiable(torch_chain, inputs, op.differentiable, BOTH)
    work.candidates.pop("torch.compile")
    return work


# ---- moe_plan -------------------------------------------------------------------------------------------------------


def argsort_bincount(indices, experts):
    flat = indices.view(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=experts)
    offsets = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    inverse = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    return counts, offsets, order, inverse.view(indices.shape)


def plan(device, shape) -> Work:
    inputs = OPS["moe_plan"].inputs(shape, torch.int64, device, 0, "plain")
    arguments = (inputs["indices"], inputs["num_experts"])
    candidates = {
        "warpup": Candidate(partial(warpup.moe_plan, *arguments)),
        "eager": Candidate(partial(argsort_bincount, *arguments)),
    }
    return Work(candidates, OPS["moe_plan"].bytes(inputs)[0], lambda: argsort_bincount(*arguments))


# ---- moe_gather, moe_combine ----------------------------------------------------------------------------------------


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
