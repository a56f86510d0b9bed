"""grouped_mm beside a loop of library products, one an expert, on the first product of DeepSeekMoE-16B's experts.

`one product` is as many operations in a single product with one matrix: what the library reaches where nothing is in
groups; on a CPU without instructions for bfloat16 it is one of float32, and the loop, which takes minutes, is left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import torch

from bench.harness.measure import DIRECTIONS, Comparison, Work, differentiable, expected, moved, upcast
from bench.harness.timing import Candidate
from tests.support.cases import OPS
from warpup._products import library_has, widened

SHAPES = {  # rows, E, N, K
    "cpu": (3072, 64, 2816, 2048),
    "cuda": (49152, 64, 2816, 2048),
    "quick": (40, 4, 24, 16),
}


def cases(device: str, size: str) -> Iterator[Comparison]:
    shape = SHAPES[size]
    for direction in DIRECTIONS:
        name = f"grouped_mm {direction} bf16 {list(shape)}"
        yield Comparison(name, partial(grouped_mm, device, shape, direction))


def test_grouped_mm(case, measure):
    measure(case)


def loop(x, w, offsets):
    """The equivalent in plain torch."""
    return torch.cat([x[a:b] @ m.t() for (a, b), m in zip(pairwise(offsets.tolist()), w, strict=True)])


def one_product(x, w, direction) -> Candidate:
    x, w = widened(x, w[:1])
    out, d_x, d_w = x @ w[0].t(), torch.empty_like(x), torch.empty_like(w[0])

    def run():
        if "forward" in direction:
            torch.mm(x, w[0].t(), out=out)
        if "backward" in direction:
            torch.mm(out, w[0], out=d_x)
            torch.mm(out.t(), x, out=d_w)

    return Candidate(run, result=None)


def grouped_mm(device, shape, direction) -> Work:
    op = OPS["grouped_mm"]
    inputs = op.inputs(shape, torch.bfloat16, device, 0, "plain")
    functions = {"warpup": op.call}
    if library_has(torch.bfloat16, inputs["x"].device):
        functions["loop"] = loop
    candidates = {n: differentiable(f, inputs, op.differentiable, direction) for n, f in functions.items()}
    candidates["one product"] = one_product(inputs["x"], inputs["w"], direction)
    rows, _, n, k = shape
    products = ("forward" in direction) + 2 * ("backward" in direction)
    return Work(
        candidates,
        bytes=moved(direction, op.bytes(inputs)),
        reference=lambda: expected(direction, op.run(upcast(inputs), op.reference), len(op.differentiable)),
        flops=2 * rows * n * k * products,
        dtype=torch.bfloat16,
    )
