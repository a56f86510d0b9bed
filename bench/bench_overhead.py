"""What a call costs before any work: each entry of each op at a tiny size, beside `torch.add`. Host time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from measure import Comparison, Work, differentiable, expected
from timing import Candidate

from cases import CASES, Case, gradients_of, upcast


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


def overhead(op: Case, device: str) -> Work:
    inputs = op.make("overhead", device=device)
    a = torch.ones(op.sizes["overhead"], device=device)
    name, arguments = op.raw(torch.ops.warpup, inputs)[0]
    raw = getattr(torch.ops.warpup, name).default
    outputs = len(op.run(inputs)) - len(op.differentiable)
    make = partial(differentiable, inputs=inputs, wrt=op.differentiable)
    first = {"result": lambda out: out[:outputs]}  # the gradients of "both ways" are for the other benchmarks to check
    candidates = {
        "torch.add": Candidate(partial(torch.add, a, a), result=None),
        "warpup._core, torch": core(op, inputs),
        "raw op": Candidate(partial(raw, *arguments), result=None),  # checked by tests/test_contract.py
        "warpup, no grad": make(op.call, direction="forward"),
    }
    if device == "cpu":
        candidates["warpup._core, NumPy"] = core(op, inputs, lambda tensor: tensor.numpy())
    if op.differentiable:
        pass
    return Work(candidates, bytes=0, reference=lambda: op.run(upcast(inputs), op.reference)[:outputs])
