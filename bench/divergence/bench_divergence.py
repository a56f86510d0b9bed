"""Family `divergence`: from the logits of both models."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache, partial

import torch

from bench.harness.measure import DIRECTIONS, Comparison, Work, compiled, differentiable, expected, moved
from tests.support.cases import OPS, gradients_of
from warpup.divergence.divergence import DIVERGENCES, reference_divergence

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
SHAPES = {"cpu": (512, 32000), "cuda": (4096, 151936), "quick": (8, 1000)}
GOALS = {"eager": 5, "torch.compile": 3}


def cases(device: str, size: str) -> Iterator[Comparison]:
    shape, goal_size = SHAPES[size], size == "cpu"
    for dtype in DTYPES:
        for kind in DIVERGENCES:
            for direction in DIRECTIONS if kind in ("forward", "jsd") else ("forward+backward",):
                name = f"divergence {kind} {direction} {DTYPES[dtype]} {list(shape)}"
                goals = GOALS if goal_size and direction == "forward+backward" and dtype == torch.float32 else {}
                yield Comparison(name, partial(divergence, device, shape, dtype, kind, direction), goals)


def test_divergence(case, measure):
    measure(case)


@lru_cache(1)  # the cases of one shape and dtype follow each other
def logits(device, shape, dtype):
    generator = torch.Generator(device).manual_seed(0)
    options = {"generator": generator, "device": device, "dtype": torch.float32}
    return [(2 * torch.randn(shape, **options)).to(dtype) for _ in range(2)]


def in_parts(function, varied, rows, wanted):
    """Outputs and gradient in float64, some rows at a time."""
    cotangent = gradients_of([torch.empty(varied.shape[:-1], device=varied.device)])[0]
    parts = []
    for x, g, *others in zip(*(t.split(128) for t in (varied, cotangent, *rows)), strict=True):
        x = x.double().requires_grad_()
        value = function(x, *others)
        parts.append((value.detach(), *torch.autograd.grad(value, x, g.double())))
    return expected(wanted, [torch.cat(part) for part in zip(*parts, strict=True)], 1)


def divergence(device, shape, dtype, kind, direction) -> Work:
    op = OPS["divergence"]
    student, teacher = logits(device, shape, dtype)
    inputs = {"student_logits": student, "teacher_logits": teacher, "kind": kind, "temperature": 1.5}
    inputs["beta"] = 0.3 if kind == "jsd" else None
    inputs["targets"] = torch.arange(shape[0], device=device) if kind == "logit_swap" else None

    def make(function, **options):
        return differentiable(function, inputs, op.differentiable, direction, **options)

    def reference(x, t, y):
        return reference_divergence(x, t.double(), kind=kind, beta=0.3, temperature=1.5, targets=y)

    torch.compiler.reset()  # each kind is another graph of one function, and these are limited to 8
    candidates = {"warpup": make(op.call)}
    if direction != "forward":
        candidates["warpup, inplace_backward"] = make(partial(op.call, inplace_backward=True), consumes=True)
    candidates |= {"eager": make(op.reference), "torch.compile": make(compiled(op.reference))}
    rows = (teacher, torch.arange(shape[0], device=device))
    return Work(
        candidates,
        bytes=moved(direction, op.bytes(inputs)),
        reference=lambda: in_parts(reference, student, rows, direction),
    )
