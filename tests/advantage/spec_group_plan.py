"""Case table of `group_plan`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import warpup
from tests.advantage.inputs import generator, no_backward
from tests.support.case import Case, Inputs, New, Thunk
from tests.support.inputs import moved_to
from warpup import arrays as core
from warpup.advantage.group_plan import reference_group_plan


def new_plan(rows: int, new: New) -> dict[str, Any]:
    return {"order": new((rows,), "int64"), "offsets": new((rows + 1,), "int64")}


def fill_plan(ids: Any, plan: dict[str, Any]) -> None:
    if isinstance(ids, Tensor) and ids.is_cuda:  # there is no kernel, the framework sorts
        for out, value in zip(plan.values(), reference_group_plan(ids), strict=True):
            out.copy_(value)
    else:
        core.group_plan(ids, **plan)


def any_ids(rows: int, groups: int, rng: torch.Generator) -> Tensor:
    """Ids that are no indices: up to `groups` different ones, of any sign, far apart."""
    return (torch.randint(groups, (rows,), generator=rng) - groups // 2) * 1_000_003


def group_plan_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; sorted. The dtype is that of the ids, int64 where it is a floating one."""
    ids = any_ids(*size, generator(seed)).to(torch.int64 if dtype.is_floating_point else dtype)
    return moved_to(device, {"ids": ids.sort().values if variant == "sorted" else ids})


def group_plan_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    outputs = new_plan(x["ids"].shape[0], new)

    def forward():
        fill_plan(x["ids"], outputs)
        return tuple(outputs.values())

    return forward, no_backward


CASES = [
    Case(
        op="group_plan",
        family="advantage",
        call=warpup.group_plan,
        reference=reference_group_plan,
        sizes={"grad": (7, 3), "small": (131, 9), "threads": (20000, 700), "overhead": (16, 4), "bench": (65536, 8192)},
        variants=("plain", "sorted"),
        inputs=group_plan_inputs,
        differentiable=(),
        raw=lambda ops, x: [("group_plan", (x["ids"],))],
        core=group_plan_core,
        bytes=lambda x: (x["ids"].numel() * (x["ids"].element_size() + 16), 0),
        dtypes=(torch.int64, torch.int32),
        backends=("cpu",),
    ),
]
