"""Case table of `gae` and `reward_to_go`."""

from __future__ import annotations

from typing import Any

import torch

import warpup
from tests.advantage.inputs import generator, no_backward, tokens_and_mask
from tests.support.case import Case, Inputs, New, Thunk, name_of
from tests.support.inputs import moved_to
from warpup import arrays as core
from warpup.advantage.gae import reference_gae, reference_reward_to_go


def gae_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; bootstrap (responses cut off, no discount)."""
    rng = generator(seed)
    mask, (rewards, values) = tokens_and_mask(size, dtype, rng, 2)
    inputs: Inputs = {"rewards": rewards, "values": values, "mask": mask, "gamma": 0.98, "lam": 0.9}
    if variant == "bootstrap":
        bootstrap = torch.randn(size[:1], generator=rng, dtype=torch.float64).to(dtype)
        inputs |= {"gamma": 1.0, "lam": 1.0, "bootstrap": bootstrap}
    return moved_to(device, inputs)


def reward_to_go_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; cut (a token outside the mask ends the sum)."""
    mask, (rewards,) = tokens_and_mask(size, dtype, generator(seed), 1)
    return moved_to(device, {"rewards": rewards, "mask": mask, "gamma": 0.97, "carry": variant != "cut"})


def _arguments(x: Inputs) -> tuple[tuple, tuple]:
    """Tensors; gamma, decay, cut."""
    tensors = (x["rewards"], x.get("values"), x["mask"], x.get("bootstrap"))
    return tensors, (x["gamma"], x["gamma"] * x.get("lam", 1.0), not x.get("carry", True))


def gae_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    tensors, options = _arguments(x)
    return [("gae", (*tensors, *options))]


def gae_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    tensors, (gamma, decay, cut) = _arguments(x)
    names = ("advantages", "returns") if "values" in x else ("advantages",)
    outputs = {name: new(tuple(x["rewards"].shape), name_of(x["rewards"].dtype)) for name in names}

    def forward():
        core.gae(*tensors, gamma=gamma, decay=decay, cut=cut, **outputs)
        return tuple(outputs.values())

    return forward, no_backward


def gae_bytes(x: Inputs) -> tuple[int, int]:
    rewards = x["rewards"]
    return rewards.numel() * (rewards.element_size() * (4 if "values" in x else 2) + 1), 0


CASES = [
    Case(
        op="gae",
        family="advantage",
        call=warpup.gae,
        reference=reference_gae,
        sizes={"grad": (3, 7), "small": (5, 131), "threads": (64, 3000), "overhead": (2, 16), "bench": (512, 2048)},
        variants=("plain", "bootstrap"),
        inputs=gae_inputs,
        differentiable=(),
        raw=gae_raw,
        core=gae_core,
        bytes=gae_bytes,
        dtypes=(torch.float32, torch.float64),
    ),
    Case(
        op="reward_to_go",
        family="advantage",
        call=warpup.reward_to_go,
        reference=reference_reward_to_go,
        sizes={"grad": (3, 7), "small": (5, 131), "threads": (64, 3000), "overhead": (2, 16), "bench": (512, 2048)},
        variants=("plain", "cut"),
        inputs=reward_to_go_inputs,
        differentiable=(),
        raw=gae_raw,
        core=gae_core,
        bytes=gae_bytes,
        dtypes=(torch.float32, torch.float64),
    ),
]
