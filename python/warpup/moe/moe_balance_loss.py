"""Balance of a mixture of experts: losses as tiny functions of a route, and the bias that balances without a loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from warpup._arguments import explained
from warpup.moe.moe_route import MoERoute


def _load(counts: Tensor, group: dist.ProcessGroup | None, dtype: torch.dtype) -> Tensor:
    """f = E / (k T) counts: 1 for every expert where the load is even. Over a group of ranks, of the counts of all."""
    if group is not None:
        counts = counts.clone()
        dist.all_reduce(counts, group=group)
    counts = counts.to(dtype)
    return counts * counts.shape[-1] / counts.sum(-1, keepdim=True).clamp_min(1)


@explained
def moe_balance_loss(route: MoERoute, *, group: dist.ProcessGroup | None = None) -> Tensor:
    """`sum over experts of f P`, f = E / (k T) counts and P the mean scores: 1 where load and scores are even.

    Expert level (DeepSeekMoE, Switch); of a route with `sequences` the sequence level, the mean of the sequences'
    losses (DeepSeek-V3). Multiply it by its coefficient.

    Args:
        route: of `moe_route`.
        group: ranks over which the counts are summed (global batch, Qwen3). P stays the rank's own: the mean of the
            ranks' losses, and with it the gradient after data parallelism has averaged it, is that of the global batch.

    Returns:
        A scalar. Its gradient goes through P alone.

    Source: DeepSeekMoE (arXiv 2401.06066, eq. 12-14), DeepSeek-V3 (arXiv 2412.19437, eq. 17-20), Demons in the Detail
    (arXiv 2501.11873). transformers' `load_balancing_loss_func` is k times as large: its f sums to k E, not to E.
    """
    if route.counts.shape != route.mean_score.shape:
        raise ValueError(
            f"moe_balance_loss: route.mean_score must have the shape of its counts {tuple(route.counts.shape)}, got "
            f"{tuple(route.mean_score.shape)}"
        )
    return (_load(route.counts, group, route.mean_score.dtype) * route.mean_score).sum(-1).mean()


@explained
def moe_device_balance_loss(
    route: MoERoute, devices: int | Sequence[int], *, group: dist.ProcessGroup | None = None
) -> Tensor:
    """`sum over devices of f' P'`, f' the mean of f over a device's experts, P' the sum of P: the load of devices, not
    of each expert, made even (DeepSeekMoE).

    Args:
        route: of `moe_route`.
        devices: how many devices have the experts in equal parts of neighbors; or each expert's device.
        group: as in `moe_balance_loss`.

    Returns:
        A scalar, 1 where all is even.

    Raises:
        ValueError: a number of devices that does not divide E, or not one device for each expert.

    Source: DeepSeekMoE (arXiv 2401.06066, eq. 15-17).
    """
    experts = route.counts.shape[-1]
    if isinstance(devices, int):
        if devices < 1 or experts % devices != 0:
            raise ValueError(
                f"moe_device_balance_loss: devices must be at least 1 and divide {experts} experts, got {devices}"
            )
        devices = [e // (experts // devices) for e in range(experts)]
    if len(devices) != experts or min(devices) < 0:
        raise ValueError(
            f"moe_device_balance_loss: devices must name one for each of {experts} experts, got {list(devices)}"
        )
    member = torch.zeros(experts, max(devices) + 1, dtype=route.mean_score.dtype)
    member[range(experts), list(devices)] = 1
    member = member.to(route.mean_score.device)
    load = _load(route.counts, group, member.dtype) @ (member / member.sum(0).clamp_min(1))
    return (load * (route.mean_score @ member)).sum(-1).mean()


@explained
@torch.no_grad()
def moe_update_bias(bias: Tensor, counts: Tensor, rate: float, *, group: dist.ProcessGroup | None = None) -> Tensor:
    """`bias += rate sign(mean of counts - counts)`, in place: balance without a loss, once a step.

    Args:
        bias: (E,) floating, what `moe_route` is given.
        counts: (E,) of the step, or (B, E).
        rate: 1e-3 in DeepSeek-V3.
        group: ranks over which the counts are summed.

    Returns:
        `bias`.

    Source: Auxiliary-loss-free load balancing (arXiv 2408.15664), DeepSeek-V3 (arXiv 2412.19437).
    """
    if bias.dim() != 1 or counts.dim() not in (1, 2) or counts.shape[-1:] != bias.shape:
        raise ValueError(
            f"moe_update_bias: bias must be (E,) and counts (E,) or (B, E), got {tuple(bias.shape)} and "
            f"{tuple(counts.shape)}"
        )
    counts = counts.reshape(-1, bias.shape[0]).sum(0)
    if group is not None:
        dist.all_reduce(counts, group=group)
    return bias.add_((counts.sum() - counts * counts.shape[0]).sign().to(bias.dtype), alpha=rate)
