"""Family `logprob`: log-probabilities from hidden states, beside the products alone and what makes the logits."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import torch

from cases import OPS, gradients_of
from measure import DIRECTIONS, Comparison, Work, compiled, differentiable, expected, moved
from timing import Candidate

DTYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
SHAPES = {"cpu": (2048, 1024, 32000), "cuda": (8192, 4096, 151936), "quick": (8, 16, 500)}
GEMMS = {"forward": 1, "backward": 3, "forward+backward": 4}  # logits; logits again, two gradients
PRODUCTS = "its GEMMs alone"


def cases(device: str, size: str) -> Iterator[Comparison]:
    shape = SHAPES[size]
    for dtype in DTYPES if device == "cpu" else (torch.bfloat16,):
        for direction in DIRECTIONS:
            goals = {PRODUCTS: 0.8, "eager": 1} if size != "quick" and direction == "forward+backward" else {}
            name = f"linear_logprob {direction} {DTYPES[dtype]} {list(shape)}"
            yield Comparison(name, partial(linear_logprob, device, shape, dtype, direction), goals)


def test_logprob_linear(case, measure):
    measure(case)


@lru_cache(1)  # the cases of one dtype follow each other
def inputs_of(device, shape, dtype):
    inputs = OPS["linear_logprob"].inputs(shape, dtype, device, 0, "plain")
    return {k: inputs[k] for k in ("hidden", "weight", "targets")}


@lru_cache(1)
def results_of(device, shape, dtype):
    """Log-probs and gradients in float64, some rows at a time."""
    x = inputs_of(device, shape, dtype)
    (g,) = gradients_of([torch.empty(shape[0], device=device)])
    weight = x["weight"].double().requires_grad_()
    logp, grad_hidden, grad_weight = [], [], torch.zeros_like(weight)
    for h, y, gradient in zip(*(t.split(256) for t in (x["hidden"], x["targets"], g)), strict=True):
        h = h.double().requires_grad_()
        out = OPS["linear_logprob"].reference(h, weight, y)
        found = torch.autograd.grad(out, (h, weight), gradient.double())
        logp.append(out.detach()), grad_hidden.append(found[0])
        grad_weight += found[1]
    return torch.cat(logp), torch.cat(grad_hidden), grad_weight.detach()


def eager(hidden, weight, targets):
    """Cross-entropy from logits, as trainers write it: accumulated in float32 whatever the logits are."""
    logits = torch.nn.functional.linear(hidden, weight)
    return -torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")


def products(x, direction) -> Candidate:
    """The matrix products of `direction` in one piece each, on memory that is there."""
    hidden, weight = x["hidden"], x["weight"]
    logits, out_hidden, out_weight = hidden @ weight.t(), torch.empty_like(hidden), torch.empty_like(weight)

    def run():
        for _ in range(len(direction.split("+"))):
            torch.mm(hidden, weight.t(), out=logits)
        if "backward" in direction:
            torch.mm(logits, weight, out=out_hidden)
            torch.mm(logits.t(), hidden, out=out_weight)

    return Candidate(run, result=None)


def linear_logprob(device, shape, dtype, direction) -> Work:
    op = OPS["linear_logprob"]
    x = inputs_of(device, shape, dtype)
    functions = {"warpup": op.call, "eager": eager, "torch.compile": compiled(eager)}
    candidates = {n: differentiable(f, x, ("hidden", "weight"), direction) for n, f in functions.items()}
    candidates[PRODUCTS] = products(x, direction)
    rows, width, vocab = shape
    return Work(
        candidates,
        bytes=moved(direction, op.bytes(x)),
        reference=lambda: expected(direction, results_of(device, shape, dtype), 2),
        flops=2 * rows * width * vocab * GEMMS[direction],
        dtype=dtype,
    )
