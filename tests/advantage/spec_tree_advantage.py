"""Case table of `tree_advantage`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import warpup
from tests.advantage.inputs import generator, no_backward
from tests.advantage.spec_group_plan import fill_plan, new_plan
from tests.support.case import Case, Inputs, New, Thunk, name_of
from tests.support.inputs import moved_to
from warpup import arrays as core
from warpup import group_plan
from warpup.advantage.tree_advantage import reference_tree_advantage


def tree_advantage_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain (a forest, parents before children); std (any order, NaN leaves)."""
    (nodes,) = size
    rng = generator(seed)
    parents = (torch.rand(nodes, generator=rng) * torch.arange(nodes)).long() - 1  # node i's: from -1 to i - 2
    rewards = torch.randn(nodes, generator=rng, dtype=torch.float64)
    if variant == "plain":
        return moved_to(device, {"rewards": rewards.to(dtype), "parents": parents})
    place = torch.randperm(nodes, generator=rng)
    shuffled = torch.empty_like(parents)
    shuffled[place] = torch.where(parents >= 0, place[parents.clamp(min=0)], parents)
    rewards[torch.rand(nodes, generator=rng) < 0.3] = torch.nan
    return moved_to(device, {"rewards": rewards.to(dtype), "parents": shuffled, "scale": "std"})


def _children(parents: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Where each node's children begin and end among the nodes sorted by their parents."""
    nodes, ordered = torch.arange(parents.shape[0], device=parents.device), parents[order]
    return torch.searchsorted(ordered, nodes), torch.searchsorted(ordered, nodes, right=True)


def tree_advantage_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    order, _ = group_plan(x["parents"])
    return [("tree_advantage", (x["rewards"].nan_to_num(), order, *_children(x["parents"], order)))]


def tree_advantage_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    rewards, scale, dtype = x["rewards"], x.get("scale", "none"), name_of(x["rewards"].dtype)
    parents = torch.from_dlpack(x["parents"])
    nodes = rewards.shape[0]
    plan = new_plan(nodes, new)
    values, settled, advantages = new((nodes,), dtype), new((nodes,), "uint8"), new((nodes,), dtype)

    def forward():
        fill_plan(x["parents"], plan)
        begin, end = _children(parents, torch.as_tensor(plan["order"]))
        core.tree_advantage(rewards, plan["order"], begin, end, values=values, settled=settled)
        options = {"scale": scale, "eps": 1e-8, "correction": 0}
        core.group_advantage(values, plan["offsets"], plan["order"], advantages=advantages, **options)
        dropped = (parents < 0) | torch.as_tensor(values).isnan()
        edges = torch.as_tensor(advantages).masked_fill_(dropped, 0)
        return edges, values, edges == 0

    return forward, no_backward


CASES = [
    Case(
        op="tree_advantage",
        family="advantage",
        call=warpup.tree_advantage,
        reference=reference_tree_advantage,
        sizes={"grad": (9,), "small": (67,), "threads": (3000,), "overhead": (16,), "bench": (8192,)},
        variants=("plain", "std"),
        inputs=tree_advantage_inputs,
        differentiable=(),
        raw=tree_advantage_raw,
        core=tree_advantage_core,
        bytes=lambda x: (x["rewards"].numel() * (2 * x["rewards"].element_size() + 24), 0),
        dtypes=(torch.float32, torch.float64),
    ),
]
