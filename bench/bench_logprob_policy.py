"""Family `logprob`: the policy losses on log-probabilities."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from cases import OPS
from measure import DIRECTIONS, Comparison, Work, beside_reference

SHAPES = {"cpu": (512, 2048), "cuda": (4096, 8192), "quick": (4, 64)}


def cases(device: str, size: str) -> Iterator[Comparison]:
    shape = SHAPES[size]
    for direction in DIRECTIONS:
        name = f"policy_loss {direction} fp32 {list(shape)}"
        goals = {"eager": 10, "torch.compile": 1.2} if (size, direction) == ("cpu", "forward+backward") else {}
        yield Comparison(name, partial(policy_loss, device, shape, direction), goals)


def test_logprob_policy(case, measure):
    measure(case)


def policy_loss(device, shape, direction) -> Work:
    op = OPS["policy_loss"]
    inputs = op.inputs(shape, torch.float32, device, 0, op.variants[0])
    # Of one sign: the loss of advantages that cancel has no digits left to compare, whoever sums them.
    return beside_reference(op, inputs | {"advantages": inputs["advantages"].abs()}, direction)
