"""Family `divergence`: from a teacher's top K tokens."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from bench.divergence.bench_divergence import DTYPES, SHAPES, in_parts, logits
from bench.harness.measure import Comparison, Work, compiled, differentiable, moved
from tests.support.cases import OPS


def cases(device: str, size: str) -> Iterator[Comparison]:
    shape = SHAPES[size]
    for dtype in DTYPES:
        for kind, tail in (("forward", False), ("jsd", True)):
            name = f"topk_divergence {kind}{' with tail' * tail} forward+backward {DTYPES[dtype]} {list(shape)}"
            yield Comparison(name, partial(topk_divergence, device, shape, dtype, kind, tail))


def test_topk_divergence(case, measure):
    measure(case)


def topk_divergence(device, shape, dtype, kind, tail) -> Work:
    op = OPS["topk_divergence"]
    student, teacher = logits(device, shape, dtype)
    logp, ids = teacher.float().log_softmax(-1).topk(20)
    inputs = {"student_logits": student, "teacher_ids": ids, "teacher_logp": logp, "kind": kind, "tail": tail}
    functions = {"warpup": op.call, "eager": op.reference, "torch.compile": compiled(op.reference)}
    direction = "forward+backward"
    return Work(
        {name: differentiable(f, inputs, op.differentiable, direction) for name, f in functions.items()},
        bytes=moved(direction, op.bytes(inputs)),
        reference=lambda: in_parts(
            lambda x, i, p: op.reference(x, i, p.double(), kind=kind, tail=tail), student, (ids, logp), direction
        ),
    )
