"""The two sparse collectives, each the other's backward: experts from their owners to the ranks that compute with them,
and their gradients back.

    sparse_all_gather      P0 -> P1: every rank of `placement.held` receives the expert from its owner
    sparse_reduce_scatter  P1 -> P0: every owner receives the sum of all copies

A copy crosses the wire once, in the dtype of the parameter: with a share lambda of the experts on all ranks, lambda
times the bytes of the dense collective. Both are one `all_to_all_single`, which gloo and NCCL run with uneven and empty
splits. All ranks of the group must call them in the same order with the same placement, also those that own or receive
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from warpup.distributed.placement import Placement


def rank_and_size(group: dist.ProcessGroup | None = None) -> tuple[int, int]:
    """This process in the group; without torch.distributed it is alone."""
    return (dist.get_rank(group), dist.get_world_size(group)) if dist.is_initialized() else (0, 1)


def same_on_all_ranks(facts: dict, group: dist.ProcessGroup | None) -> None:
    """ValueError on every rank, naming the first fact in which two ranks differ."""
    if not dist.is_initialized():
        return
    found: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, facts, group)
    for rank, other in enumerate(found):
        for name in facts:
            if other[name] != found[0][name]:
                raise ValueError(
                    f"{name} must be the same on all ranks: rank {rank} has {other[name]}, rank 0 {found[0][name]}"
                )


def exchange(rows: Tensor, send: Sequence[int], receive: Sequence[int], group=None, *, out=None, async_op=False):
    """Rows to all ranks: the first send[0] to rank 0 and so on; receive[r] come from rank r. (rows received, work)"""
    if out is None:
        out = rows.new_empty(sum(receive), *rows.shape[1:])
    if not dist.is_initialized():
        return out.copy_(rows), None
    return out, dist.all_to_all_single(out, rows.contiguous(), list(receive), list(send), group, async_op)


class Exchange(torch.autograd.Function):
    """`exchange` of tokens, `apply(rows, send, receive, group)`; its backward sends their gradients back."""

    @staticmethod
    def forward(rows, send, receive, group):
        return exchange(rows, send, receive, group)[0]

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, *ctx.there, ctx.group = inputs

    @staticmethod
    def backward(ctx, grad):
        send, receive = ctx.there
        return Exchange.apply(grad, receive, send, ctx.group), None, None, None


class Gathering:
    """A sparse all-gather under way. What it sends is read until `wait` returns."""

    def __init__(self, shard: Tensor, placement: Placement, group=None, out: Tensor | None = None):
        rank, size = rank_and_size(group)
        copied, mine = _copied(placement, size), placement.shard(rank)
        _check("shard", shard, len(mine))
        ids = [copied[mine, r].nonzero().flatten() for r in range(size)]
        receive = _received(copied, placement, rank, size)
        shape = (len(mine) + sum(receive), *shard.shape[1:])
        self.out, self.work = shard.new_empty(shape) if out is None else out, None
        self.out[: len(mine)].copy_(shard)
        if copied.any():  # on all ranks or on none
            self.sent = shard[torch.cat(ids).to(shard.device)]
            _, self.work = exchange(
                self.sent, [len(i) for i in ids], receive, group, out=self.out[len(mine) : shape[0]], async_op=True
            )

    def wait(self) -> Tensor:
        """(n, ...): the experts of `placement.layout(rank)`."""
        if self.work is not None:
            self.work.wait()
            self.work = self.sent = None
        return self.out


def sparse_all_gather(
    shard: Tensor, placement: Placement, group=None, *, scale: float = 1.0, check: bool = False
) -> Tensor:
    """The experts that this rank computes with, from their owners.

    shard (n_owned, ...): the experts `placement.shard(rank)`; any floating dtype, also n_owned = 0.
    Returns (n_held, ...): the experts `placement.layout(rank)`. Its backward is `sparse_reduce_scatter` with `scale`:
    1 / R for the mean over data-parallel ranks. Raises ValueError where shard and placement disagree.

    check: compare the placements of all ranks first, at the cost of one more collective, and raise ValueError on every
    rank where two differ. Without it they abort the process from within gloo, or wait for each other under NCCL.

    `Gathering` is the same without autograd, under way while other work runs.
    """
    if check:
        check_same(placement, group)
    return _AllGather.apply(shard, placement, group, scale)


def sparse_reduce_scatter(
    grads: Tensor, placement: Placement, group=None, *, scale: float = 1.0, check: bool = False
) -> Tensor:
    """The sum of all copies of the experts that this rank owns, times `scale`.

    grads (n_held, ...): the experts `placement.layout(rank)`. Returns (n_owned, ...): `placement.shard(rank)`, in the
    dtype of `grads`, summed in float32 (float64 for float64) from rank 0 up, whoever the owner is: deterministic.
    Raises ValueError where grads and placement disagree. check: as in `sparse_all_gather`.
    """
    if check:
        check_same(placement, group)
    return _ReduceScatter.apply(grads, placement, group, scale)


def check_same(placement: Placement, group=None) -> None:
    """ValueError on every rank where two hold different placements."""
    held = [held.nonzero().flatten().tolist() for held in placement.held]
    same_on_all_ranks({"placement.owner": placement.owner.tolist(), "placement.held": held}, group)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(shard, placement, group, scale):
        return Gathering(shard, placement, group).wait()

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.placement, ctx.group, ctx.scale = inputs

    @staticmethod
    def backward(ctx, grad):
        return sparse_reduce_scatter(grad, ctx.placement, ctx.group, scale=ctx.scale), None, None, None


class _ReduceScatter(torch.autograd.Function):
    @staticmethod
    def forward(grads, placement, group, scale):
        rank, size = rank_and_size(group)
        copied, mine = _copied(placement, size), placement.shard(rank)
        _check("grads", grads, len(placement.layout(rank)))
        send, parts = _received(copied, placement, rank, size), [grads[:0]] * size
        rows = [copied[mine, r].nonzero().flatten().to(grads.device) for r in range(size)]
        if copied.any():
            receive = [len(i) for i in rows]
            parts = list(exchange(grads[len(mine) :], send, receive, group)[0].split(receive))
        out = grads[: len(mine)] * scale  # which is all there is to it for an expert without copies
        shared = copied[mine].any(1).nonzero().flatten().to(grads.device)
        parts[rank], rows[rank] = grads[shared], shared
        wide = torch.promote_types(grads.dtype, torch.float32)
        total = grads.new_zeros(len(shared), *grads.shape[1:], dtype=wide)
        for index, part in zip(rows, parts, strict=True):
            total.index_add_(0, torch.searchsorted(shared, index), part.to(wide))  # no index twice: deterministic
        return out.index_copy_(0, shared, total.mul_(scale).to(out.dtype))

    @staticmethod
    def setup_context(ctx, inputs, output):
        _, ctx.placement, ctx.group, ctx.scale = inputs

    @staticmethod
    def backward(ctx, grad):
        return sparse_all_gather(grad * ctx.scale, ctx.placement, ctx.group), None, None, None


def _received(copied: Tensor, placement: Placement, rank: int, size: int) -> list[int]:
    """Copies that `rank` gets from each rank."""
    return torch.bincount(placement.owner[copied[:, rank]], minlength=size).tolist()


def _copied(placement: Placement, size: int) -> Tensor:
    """The copies of a placement that fits the group."""
    if placement.held.shape != (len(placement.owner), size):
        raise ValueError(
            f"placement.held must be (E, R) = {(len(placement.owner), size)}, got {tuple(placement.held.shape)}"
        )
    return placement.copied()


def _check(name: str, rows: Tensor, expected: int) -> None:
    if rows.dim() == 0 or len(rows) != expected or not rows.is_floating_point():
        raise ValueError(f"{name} must hold {expected} experts in floating point, got {rows.dtype} {tuple(rows.shape)}")
