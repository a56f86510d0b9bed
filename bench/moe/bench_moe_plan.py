"""moe_plan beside argsort and bincount."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import warpup
from bench.harness.measure import Comparison, Work
from bench.harness.timing import Candidate
from tests.support.cases import OPS

COPIES = {"cpu": (4096, 8, 128, 2048), "cuda": (8192, 8, 128, 2048), "quick": (16, 2, 5, 24)}  # T, k, E, H


def cases(device: str, size: str) -> Iterator[Comparison]:
    shape = COPIES[size]
    yield Comparison(f"moe_plan {list(shape[:3])}", partial(plan, device, shape))


def test_moe_plan(case, measure):
    measure(case)


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
