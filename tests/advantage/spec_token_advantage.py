"""The entries of the case table (`cases.py`) for advantages over tokens and trees."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

import warpup
from tests.advantage.spec_group_advantage import fill_plan, generator, new_moments, new_plan, no_backward, to
from tests.support.case import Case, Inputs, New, Thunk, name_of
from warpup import arrays as core
from warpup import group_plan
from warpup.advantage import token_advantage as advantage_tokens

# ---- gae, reward_to_go ----------------------------------------------------------------------------------------------


def _tokens(size, dtype, rng, count: int) -> tuple[Tensor, list[Tensor]]:
    """A mask with observation tokens in it, and NaN outside of it."""
    mask = torch.rand(size, generator=rng) < 0.8
    columns = (torch.randn(size, generator=rng, dtype=torch.float64).to(dtype) for _ in range(count))
    return mask, [c.masked_fill(~mask, torch.nan) for c in columns]


def gae_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; bootstrap (responses cut off, no discount)."""
    rng = generator(seed)
    mask, (rewards, values) = _tokens(size, dtype, rng, 2)
    inputs: Inputs = {"rewards": rewards, "values": values, "mask": mask, "gamma": 0.98, "lam": 0.9}
    if variant == "bootstrap":
        bootstrap = torch.randn(size[:1], generator=rng, dtype=torch.float64).to(dtype)
        inputs |= {"gamma": 1.0, "lam": 1.0, "bootstrap": bootstrap}
    return to(device, inputs)


def reward_to_go_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; cut (a token outside the mask ends the sum)."""
    mask, (rewards,) = _tokens(size, dtype, generator(seed), 1)
    return to(device, {"rewards": rewards, "mask": mask, "gamma": 0.97, "carry": variant != "cut"})


def _scan_arguments(x: Inputs) -> tuple[tuple, tuple]:
    """Tensors; gamma, decay, cut."""
    tensors = (x["rewards"], x.get("values"), x["mask"], x.get("bootstrap"))
    return tensors, (x["gamma"], x["gamma"] * x.get("lam", 1.0), not x.get("carry", True))


def scan_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    tensors, options = _scan_arguments(x)
    return [("reverse_scan", (*tensors, *options))]


def scan_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    tensors, (gamma, decay, cut) = _scan_arguments(x)
    names = ("x", "returns") if "values" in x else ("x",)
    outputs = {name: new(tuple(x["rewards"].shape), name_of(x["rewards"].dtype)) for name in names}

    def forward():
        core.reverse_scan(*tensors, gamma=gamma, decay=decay, cut=cut, **outputs)
        return tuple(outputs.values())

    return forward, no_backward


def scan_bytes(x: Inputs) -> tuple[int, int]:
    rewards = x["rewards"]
    return rewards.numel() * (rewards.element_size() * (4 if "values" in x else 2) + 1), 0


# ---- masked_whiten --------------------------------------------------------------------------------------------------


def masked_whiten_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; unshifted (the mean kept, the biased variance)."""
    mask, (x,) = _tokens(size, dtype, generator(seed), 1)
    inputs: Inputs = {"x": 3 + x, "mask": mask}
    return to(device, inputs | ({"shift_mean": False, "correction": 0} if variant == "unshifted" else {}))


def masked_whiten_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    tensors, correction = (x["x"], x["mask"]), x.get("correction", 1)
    whiten = (*tensors, x.get("shift_mean", True), correction, 1e-8)
    return [("masked_whiten", whiten), ("masked_moments", (*tensors, False, correction))]


def masked_whiten_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    options = {k: x[k] for k in ("shift_mean", "correction") if k in x}
    out = new(tuple(x["x"].shape), name_of(x["x"].dtype))
    scratch = new_moments(math.prod(x["x"].shape), new)

    def forward():
        core.masked_whiten(x["x"], x["mask"], out=out, **scratch, **options)
        return (out,)

    return forward, no_backward


def masked_whiten_bytes(x: Inputs) -> tuple[int, int]:
    return x["x"].numel() * (3 * x["x"].element_size() + 2), 0  # the moments read x and the mask, the rest once more


# ---- tree_advantage -------------------------------------------------------------------------------------------------


def tree_advantage_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain (a forest, parents before children); std (any order, NaN leaves)."""
    (nodes,) = size
    rng = generator(seed)
    parents = (torch.rand(nodes, generator=rng) * torch.arange(nodes)).long() - 1  # node i's: from -1 to i - 2
    rewards = torch.randn(nodes, generator=rng, dtype=torch.float64)
    if variant == "plain":
        return to(device, {"rewards": rewards.to(dtype), "parents": parents})
    place = torch.randperm(nodes, generator=rng)
    shuffled = torch.empty_like(parents)
    shuffled[place] = torch.where(parents >= 0, place[parents.clamp(min=0)], parents)
    rewards[torch.rand(nodes, generator=rng) < 0.3] = torch.nan
    return to(device, {"rewards": rewards.to(dtype), "parents": shuffled, "scale": "std"})


def _children(parents: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Where each node's children begin and end among the nodes sorted by their parents."""
    nodes, ordered = torch.arange(parents.shape[0], device=parents.device), parents[order]
    return torch.searchsorted(ordered, nodes), torch.searchsorted(ordered, nodes, right=True)


def tree_advantage_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    order, _ = group_plan(x["parents"])
    return [("tree_values", (x["rewards"].nan_to_num(), order, *_children(x["parents"], order)))]


def tree_advantage_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    rewards, scale, dtype = x["rewards"], x.get("scale", "none"), name_of(x["rewards"].dtype)
    parents = torch.from_dlpack(x["parents"])
    nodes = rewards.shape[0]
    plan = new_plan(nodes, new)
    values, settled, advantages = new((nodes,), dtype), new((nodes,), "uint8"), new((nodes,), dtype)

    def forward():
        fill_plan(x["parents"], plan)
        begin, end = _children(parents, torch.as_tensor(plan["order"]))
        core.tree_values(rewards, plan["order"], begin, end, values=values, settled=settled)
        options = {"scale": scale, "eps": 1e-8, "correction": 0}
        core.group_advantage(values, plan["offsets"], plan["order"], advantages=advantages, **options)
        dropped = (parents < 0) | torch.as_tensor(values).isnan()
        edges = torch.as_tensor(advantages).masked_fill_(dropped, 0)
        return edges, values, edges == 0

    return forward, no_backward


CASES = [
    Case(
        op="gae",
        family="advantage",
        call=warpup.gae,
        reference=advantage_tokens.reference_gae,
        sizes={"grad": (3, 7), "small": (5, 131), "threads": (64, 3000), "overhead": (2, 16), "bench": (512, 2048)},
        variants=("plain", "bootstrap"),
        inputs=gae_inputs,
        differentiable=(),
        raw=scan_raw,
        core=scan_core,
        bytes=scan_bytes,
        dtypes=(torch.float32, torch.float64),
    ),
    Case(
        op="reward_to_go",
        family="advantage",
        call=warpup.reward_to_go,
        reference=advantage_tokens.reference_reward_to_go,
        sizes={"grad": (3, 7), "small": (5, 131), "threads": (64, 3000), "overhead": (2, 16), "bench": (512, 2048)},
        variants=("plain", "cut"),
        inputs=reward_to_go_inputs,
        differentiable=(),
        raw=scan_raw,
        core=scan_core,
        bytes=scan_bytes,
        dtypes=(torch.float32, torch.float64),
    ),
    Case(
        op="masked_whiten",
        family="advantage",
        call=warpup.masked_whiten,
        reference=advantage_tokens.reference_masked_whiten,
        sizes={"grad": (3, 7), "small": (5, 1001), "threads": (64, 3000), "overhead": (2, 16), "bench": (512, 2048)},
        variants=("plain", "unshifted"),
        inputs=masked_whiten_inputs,
        differentiable=(),
        raw=masked_whiten_raw,
        core=masked_whiten_core,
        bytes=masked_whiten_bytes,
        dtypes=(torch.float32, torch.float64),
    ),
    Case(
        op="tree_advantage",
        family="advantage",
        call=warpup.tree_advantage,
        reference=advantage_tokens.reference_tree_advantage,
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
