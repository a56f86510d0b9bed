"""The advantage family's entries of the case table (`cases.py`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import warpup
from tests.support.case import Case, Inputs, New, Thunk, name_of
from warpup import arrays as core
from warpup.advantage import group_advantage as advantage


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def to(device: str, inputs: Inputs) -> Inputs:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def no_backward() -> tuple:
    return ()


def new_plan(rows: int, new: New) -> dict[str, Any]:
    return {"order": new((rows,), "int64"), "offsets": new((rows + 1,), "int64")}


def fill_plan(ids: Any, plan: dict[str, Any]) -> None:
    if isinstance(ids, Tensor) and ids.is_cuda:  # there is no twin, the framework sorts
        for out, value in zip(plan.values(), advantage.reference_group_plan(ids), strict=True):
            out.copy_(value)
    else:
        core.group_plan(ids, **plan)


def new_moments(count: int, new: New) -> dict[str, Any]:
    return {"partials": new((-(-count // 4096), 5), "float64"), "moments": new((4,), "float64")}


# ---- group_plan -----------------------------------------------------------------------------------------------------


def _ids(rows: int, groups: int, rng: torch.Generator) -> Tensor:
    """Ids that are no indices: up to `groups` different ones, of any sign, far apart."""
    return (torch.randint(groups, (rows,), generator=rng) - groups // 2) * 1_000_003


def group_plan_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; sorted. The dtype is that of the ids, int64 where it is a floating one."""
    ids = _ids(*size, generator(seed)).to(torch.int64 if dtype.is_floating_point else dtype)
    return to(device, {"ids": ids.sort().values if variant == "sorted" else ids})


def group_plan_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    outputs = new_plan(x["ids"].shape[0], new)

    def forward():
        fill_plan(x["ids"], outputs)
        return tuple(outputs.values())

    return forward, no_backward


# ---- group_advantage ------------------------------------------------------------------------------------------------

LARGE = 130  # rows: what the CUDA twin takes by a block, where there are so many


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
        inputs = {"groups": _ids(rows, groups, rng), "stats": True}
    if variant == "leave_one_out":
        inputs |= {"baseline": "leave_one_out", "scale": "leave_one_out_std"}
    if variant == "length_weighted":
        lengths = torch.randint(1, 99, (rows,), generator=rng)
        inputs |= {"baseline": "length_weighted", "scale": "none", "lengths": lengths.to(dtype)}
    if variant == "batch_std":
        rewards[torch.rand(rows, generator=rng) < 0.2] = torch.nan
        inputs |= {"scale": "batch_std", "correction": 0, "stats": True}
    return to(device, {"rewards": rewards.to(dtype), **inputs})


def group_advantage_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    rewards, groups, correction = x["rewards"], x.get("groups"), x.get("correction", 1)
    order, offsets = advantage.group_plan(groups) if isinstance(groups, Tensor) else (None, x.get("offsets"))
    names = (x.get("baseline", "mean"), x.get("scale", "std"))
    moments = (rewards, None, True, correction)
    batch = ops.masked_moments(*moments) if names[1] == "batch_std" else None
    size = groups if isinstance(groups, int) else 0
    tensors = (rewards, offsets, order, x.get("lengths"), batch)
    arguments = (*tensors, size, *names, 1e-4, correction, x.get("singleton", "zero"))
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
    moved = rewards.numel() * rewards.element_size() * (2 + ("lengths" in x) + (x.get("scale") == "batch_std"))
    moved += x["offsets"].numel() * 8 if "offsets" in x else 0
    return moved + (groups.numel() * (groups.element_size() + 24) if isinstance(groups, Tensor) else 0), 0


# ---- role_advantage -------------------------------------------------------------------------------------------------


def role_advantage_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; missing (NaN rewards, a role without rows)."""
    rows, count = size
    rng = generator(seed)
    rewards = torch.randn(rows, generator=rng, dtype=torch.float64)
    roles = torch.randint(count, (rows,), generator=rng)
    state = torch.randn(count, generator=rng, dtype=torch.float64)
    if variant == "missing":
        rewards[torch.rand(rows, generator=rng) < 0.3] = torch.nan
        roles = roles.clamp(min=1)
    inputs = {"rewards": rewards.to(dtype), "roles": roles, "baseline_state": state.to(dtype), "decay": 0.9}
    return to(device, inputs)


def role_advantage_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    *arrays, decay = x.values()
    dtype = name_of(x["rewards"].dtype)
    outputs = {"advantages": new(tuple(x["rewards"].shape), dtype)}
    outputs["new_state"] = new(tuple(x["baseline_state"].shape), dtype)

    def forward():
        core.role_advantage(*arrays, decay=decay, **outputs)
        return tuple(outputs.values())

    return forward, no_backward


def role_advantage_bytes(x: Inputs) -> tuple[int, int]:
    rewards, state = x["rewards"], x["baseline_state"]
    return rewards.numel() * (2 * rewards.element_size() + 8) + 2 * state.numel() * state.element_size(), 0


CASES = [
    Case(
        op="group_advantage",
        family="advantage",
        call=warpup.group_advantage,
        reference=advantage.reference_group_advantage,
        sizes={"grad": (12, 6), "small": (264, 6), "threads": (20000, 8), "overhead": (16, 8), "bench": (65536, 8)},
        variants=("fixed", "offsets", "ids", "leave_one_out", "length_weighted", "batch_std"),
        inputs=group_advantage_inputs,
        differentiable=(),
        raw=group_advantage_raw,
        core=group_advantage_core,
        bytes=group_advantage_bytes,
        dtypes=(torch.float32, torch.float64),
    ),
    Case(
        op="group_plan",
        family="advantage",
        call=warpup.group_plan,
        reference=advantage.reference_group_plan,
        sizes={"grad": (7, 3), "small": (131, 9), "threads": (20000, 700), "overhead": (16, 4), "bench": (65536, 8192)},
        variants=("plain", "sorted"),
        inputs=group_plan_inputs,
        differentiable=(),
        raw=lambda ops, x: [("group_plan", (x["ids"],))],
        core=group_plan_core,
        bytes=lambda x: (x["ids"].numel() * (x["ids"].element_size() + 16), 0),
        dtypes=(torch.int64, torch.int32),
        twins=("cpu",),
    ),
    Case(
        op="role_advantage",
        family="advantage",
        call=warpup.role_advantage,
        reference=advantage.reference_role_advantage,
        sizes={"grad": (7, 2), "small": (131, 5), "threads": (3000, 6), "overhead": (16, 2), "bench": (8192, 8)},
        variants=("plain", "missing"),
        inputs=role_advantage_inputs,
        differentiable=(),
        raw=lambda ops, x: [("role_advantage", tuple(x.values()))],
        core=role_advantage_core,
        bytes=role_advantage_bytes,
        dtypes=(torch.float32, torch.float64),
    ),
]
