"""moe_route beside the same chain of torch operations, on shapes of DeepSeekMoE-16B, Qwen3-30B-A3B, DeepSeek-V3."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.harness.measure import Comparison, Work, beside_reference, differentiable
from tests.support.cases import OPS

ROUTES = {  # T, E, k
    "cpu": [(4096, 64, 6), (4096, 128, 8), (4096, 256, 8)],
    "cuda": [(8192, 64, 6), (8192, 128, 8), (8192, 256, 8)],
    "quick": [(16, 12, 3)],
}
BOTH = "forward+backward"


def cases(device: str, size: str) -> Iterator[Comparison]:
    for tokens, experts, k in ROUTES[size]:
        name = f"moe_route {BOTH} T={tokens} E={experts} k={k}"
        yield Comparison(name, partial(route, device, (tokens, experts, k)), {"eager": 5} if size == "cpu" else {})


def test_moe_route(case, measure):
    measure(case)


def torch_chain(logits, k, renormalize):
    """Softmax, top-k, renormalization, and what the balance losses need."""
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
