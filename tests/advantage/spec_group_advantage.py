"""Case table of `group_advantage`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import warpup
from tests.advantage.inputs import generator, no_backward
from tests.advantage.spec_group_plan import any_ids, fill_plan, new_plan
from tests.advantage.spec_masked_whiten import new_moments
from tests.support.case import Case, Inputs, New, Thunk, name_of
from tests.support.inputs import moved_to
from warpup import arrays as core
from warpup import group_plan
from warpup.advantage.group_advantage import reference_group_advantage

LARGE = 130  # rows: what the CUDA kernel takes by a block, where there are so many


def group_advantage_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: fixed; offsets (ragged, empty ones, one large group, singletons kept, statistics); ids (shuffled);
    leave_one_out; length_weighted; batch_std (NaN rewards, statistics). Size: rows, rows a group (a constant of a
    compiled function)."""
    rows, groups = size[0], size[0] // size[1]
    rng = generator(seed)
    rewards = 2 + torch.randn(rows, generator=rng, dtype=torch.float64)
    inputs: Inputs = {"groups": size[1]}
    if variant == "offsets":
        small = rows - min(LARGE, rows // 2)
        inner = torch.randint(small + 1, (groups - 1,), generator=rng).sort().values
        inputs = {"offsets": torch.tensor([0, *inner.tolist(), rows]), "singleton": "raw", "stats": True}
    if variant == "ids":
        inputs = {"groups": any_ids(rows, groups, rng), "stats": True}
    if variant == "leave_one_out":
        inputs |= {"baseline": "leave_one_out", "scale": "leave_one_out_std"}
    if variant == "length_weighted":
        lengths = torch.randint(1, 99, (rows,), generator=rng)
        inputs |= {"baseline": "length_weighted", "scale": "none", "lengths": lengths.to(dtype)}
    if variant == "batch_std":
        rewards[torch.rand(rows, generator=rng) < 0.2] = torch.nan
        inputs |= {"scale": "batch_std", "correction": 0, "stats": True}
    return moved_to(device, {"rewards": rewards.to(dtype), **inputs})


def group_advantage_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    rewards, groups, correction = x["rewards"], x.get("groups"), x.get("correction", 1)
    order, offsets = group_plan(groups) if isinstance(groups, Tensor) else (None, x.get("offsets"))
    names = (x.get("baseline", "mean"), x.get("scale", "std"))
    moments = (rewards, None, True, correction)
    batch = ops.masked_moments(*moments) if names[1] == "batch_std" else None
    size = groups if isinstance(groups, int) else 0
    arguments = (rewards, size, offsets, order, x.get("lengths"), batch, *names, 1e-4, correction)
    arguments = (*arguments, x.get("singleton", "zero"))
    calls = [("group_advantage_stats" if x.get("stats") else "group_advantage", arguments)]
    return calls if batch is None else [*calls, ("masked_moments", moments)]


def group_advantage_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    rewards, groups, offsets, scale = x["rewards"], x.get("groups"), x.get("offsets"), x.get("scale", "std")
    rows, dtype = rewards.shape[0], name_of(rewards.dtype)
    plan = {"order": None, "offsets": offsets}
    if groups is not None and not isinstance(groups, int):
        plan = new_plan(rows, new)
    count = rows // groups if isinstance(groups, int) else plan["offsets"].shape[0] - 1
    outputs = {"advantages": new((rows,), dtype)}
    if x.get("stats"):
        dtypes = {"count": "int64", "mean": dtype, "std": dtype, "mean_abs": dtype, "zero_variance": "bool"}
        outputs |= {name: new((count,), t) for name, t in dtypes.items()}
    batch = new_moments(rows, new) if scale == "batch_std" else None
    options = {k: x[k] for k in ("baseline", "scale", "correction", "singleton") if k in x}
    options |= {"group_size": groups if isinstance(groups, int) else 0}

    def forward():
        if plan["order"] is not None:
            fill_plan(groups, plan)
        if batch is not None:
            core.masked_moments(rewards, skip_nan=True, correction=options.get("correction", 1), **batch)
        moments = batch and batch["moments"]
        core.group_advantage(rewards, plan["offsets"], plan["order"], x.get("lengths"), moments, **options, **outputs)
        return tuple(outputs.values())

    return forward, no_backward


def group_advantage_bytes(x: Inputs) -> tuple[int, int]:
    rewards, groups = x["rewards"], x.get("groups")
    count = rewards.numel() * rewards.element_size() * (2 + ("lengths" in x) + (x.get("scale") == "batch_std"))
    count += x["offsets"].numel() * 8 if "offsets" in x else 0
    return count + (groups.numel() * (groups.element_size() + 24) if isinstance(groups, Tensor) else 0), 0


CASES = [
    Case(
        op="group_advantage",
        family="advantage",
        call=warpup.group_advantage,
        reference=reference_group_advantage,
        sizes={"grad": (12, 6), "small": (264, 6), "threads": (20000, 8), "overhead": (16, 8), "bench": (65536, 8)},
        variants=("fixed", "offsets", "ids", "leave_one_out", "length_weighted", "batch_std"),
        inputs=group_advantage_inputs,
        differentiable=(),
        raw=group_advantage_raw,
        core=group_advantage_core,
        bytes=group_advantage_bytes,
        dtypes=(torch.float32, torch.float64),
    ),
]
