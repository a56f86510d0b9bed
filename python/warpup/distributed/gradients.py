"""Gradients of a model whose parameters are kept in several ways: one norm, and one decision for all ranks."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from warpup.distributed.experts import ShardedExperts


@torch.no_grad()
def clip_grad_norm_(model: nn.Module, max_norm: float, parameters: Iterable[nn.Parameter] | None = None) -> Tensor:
    """Scale the gradients so that their 2-norm over the whole model is at most `max_norm`; returns the norm before.

    `torch.nn.utils.clip_grad_norm_` raises on a model of which FSDP2 ignores some parameters, and of experts in shards
    it sees a rank's own. Here every parameter counts once, whatever the number of ranks:

    - those of `ShardedExperts`: the squares of all ranks of their group are summed;
    - DTensors, as FSDP2's `fully_shard` makes them: the norm of the whole tensors;
    - all others are taken to be equal on all ranks, as under DDP.

    max_norm: above 0; infinity only measures. parameters: which are meant, None for all of `model`'s.
    Returns a tensor () in float64, the same on all ranks, so that what is decided by it is decided alike: an infinity
    or a NaN on any rank is one on all; 0 where nothing has a gradient. All ranks call it, also those without one.
    Raises ValueError if max_norm is not above 0.
    """
    if not max_norm > 0:
        raise ValueError(f"max_norm must be above 0, got {max_norm}")
    chosen = list(model.parameters() if parameters is None else parameters)
    shards: dict[int, dist.ProcessGroup | None] = {}
    for module in model.modules():
        if isinstance(module, ShardedExperts):
            shards |= {id(p): module.group for p in module.parameters()}
    groups = list(dict.fromkeys(shards[id(p)] for p in chosen if id(p) in shards))  # the same on all ranks
    parts: dict[object, list[Tensor]] = {kind: [] for kind in ("whole", "DTensor", *groups)}
    for parameter in chosen:
        if parameter.grad is not None:
            of_fsdp = isinstance(parameter.grad, DTensor)
            parts[shards.get(id(parameter), "DTensor" if of_fsdp else "whole")].append(parameter.grad)
    device = next((p.device for p in chosen), torch.device("cpu"))
    total = squares(parts["whole"], device)
    if parts["DTensor"]:
        norm = torch.nn.utils.get_total_norm(parts["DTensor"])
        assert isinstance(norm, DTensor)
        total = total + norm.full_tensor().double().square()
    for group in groups:
        of_group = squares(parts[group], device)
        if dist.is_initialized():
            dist.all_reduce(of_group, group=group)
        total = total + of_group
    norm = total.sqrt()
    if (scale := max_norm / (float(norm) + 1e-6)) < 1:  # torch's own formula; NaN scales nothing
        for grad in (grad for part in parts.values() for grad in part):
            grad.mul_(scale)
    return norm


def squares(grads: Iterable[Tensor], device: torch.device) -> Tensor:
    """() in float64, whatever the gradients are: a rank that has none sends it to the others."""
    total = torch.zeros((), dtype=torch.float64, device=device)
    for grad in grads:
        wide = torch.promote_types(grad.dtype, torch.float32)
        total = total + torch.linalg.vector_norm(grad, dtype=wide).double().square()
    return total
