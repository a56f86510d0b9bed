"""What a call costs before any work: each entry of each op at a tiny size, beside `torch.add`. Host time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from bench.harness.measure import Comparison, Work, differentiable
from bench.harness.timing import Candidate
from tests.support.cases import CASES, Case, leaves, upcast


def cases(device: str, size: str) -> Iterator[Comparison]:
    for op in CASES:
        shape = list(op.sizes["overhead"])
        yield Comparison(f"call overhead {op.op} {shape}", partial(overhead, op, device), host_clock=True)


def test_overhead(case, measure):
    measure(case)


def core(op: Case, inputs: dict, convert=lambda tensor: tensor) -> Candidate:
    """The pybind11 entry on caller-given outputs, with nothing in between."""

    def new(shape, dtype):
        device = next(v.device for v in inputs.values() if isinstance(v, torch.Tensor))
        return convert(torch.empty(shape, dtype=getattr(torch, dtype), device=device))

    arrays = {k: convert(v) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()}
    forward, _ = op.core(arrays, (), new)
    return Candidate(forward, result=lambda out: tuple(torch.as_tensor(o) for o in out))


def given(schema: list, arguments: tuple) -> tuple:
    """The arguments without the last ones that are their defaults, as the public functions call a raw op."""
    while arguments:
        last, value = schema[len(arguments) - 1], arguments[-1]
        if isinstance(value, torch.Tensor) or not last.has_default_value() or value != last.default_value:
            break
        arguments = arguments[:-1]
    return arguments


def both_ways(op: Case, function, inputs: dict, outputs: int) -> Candidate:
    once = differentiable(function, inputs, op.differentiable, "forward+backward")
    return Candidate(partial(once.run, *once.arguments()), result=lambda results: results[:outputs])


def overhead(op: Case, device: str) -> Work:
    inputs = op.make("overhead", device=device)
    results = op.run(upcast(inputs), op.reference)
    outputs = len(results) - len(op.differentiable)
    a = torch.ones(op.sizes["overhead"], device=device)
    name, arguments = op.raw(torch.ops.warpup, inputs)[0]
    raw = getattr(torch.ops.warpup, name)
    arguments = given(raw.default._schema.arguments, arguments)
    candidates = {
        "torch.add": Candidate(partial(torch.add, a, a), result=None),
        "raw op": Candidate(partial(raw, *arguments), result=None),  # its outputs are the public function's
        "warpup, no grad": Candidate(partial(op.call, **inputs), result=leaves),
        "eager, no grad": Candidate(partial(op.reference, **inputs), result=leaves),
    }
    if op.core:
        candidates["warpup.arrays, torch tensors"] = core(op, inputs)
    if op.core and device == "cpu":
        candidates["warpup.arrays, NumPy arrays"] = core(op, inputs, lambda tensor: tensor.numpy())
    if op.differentiable:
        candidates["warpup, both ways"] = both_ways(op, op.call, inputs, outputs)
        candidates["eager, both ways"] = both_ways(op, op.reference, inputs, outputs)
    return Work(candidates, bytes=0, reference=lambda: results[:outputs])
