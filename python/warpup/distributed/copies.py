"""The weights that a rank computes with in a step: fetched, freed after the forward, fetched again for the backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from warpup.distributed.collectives import Gathering, rank_and_size, sparse_reduce_scatter
from warpup.distributed.placement import Placement, without_copies


def in_backward() -> bool:
    """Whether a backward is under way: a forward is then the second one of activation checkpointing. As FSDP2 asks."""
    return torch._C._current_graph_task_id() != -1


class Copies:
    """The experts of `placement.layout(rank)`, a buffer per parameter; begins to fetch them when made.

    `weights()` gives them as functions of the parameters; their gradients are summed on the owners, times `scale`. The
    buffers keep their place in the autograd graph while `release` gives their memory back: storage is resized, as FSDP
    does. `ahead`: copies to begin to fetch when the backward of these begins.
    """

    def __init__(
        self, parameters: Sequence[Tensor], placement: Placement, group: dist.ProcessGroup | None, scale: float,
        keep: bool, buffers: list[Tensor] | None = None,
    ):  # fmt: skip
        self.parameters, self.placement, self.group = parameters, placement, group
        self.scale, self.keep = scale, keep
        self.ahead: list[Copies] = []
        self.experts = placement.layout(rank_and_size(group)[0])
        self.shards = [p.detach() for p in parameters]
        self.versions = [p._version for p in parameters]
        self.under_way: list[Gathering] = []
        # A rank without experts computes with one of zeros that no token takes: its graph is that of the others.
        rows = max(1, len(self.experts))
        self.buffers = buffers or [s.new_empty(rows, *s.shape[1:]) for s in self.shards]
        self.sizes = [b.untyped_storage().nbytes() for b in self.buffers]
        self.freed = False
        if buffers is None:
            self.gather()

    def gather(self) -> None:
        for buffer in self.buffers:
            buffer[len(self.experts) :].zero_()
        pairs = zip(self.shards, self.buffers, strict=True)
        self.under_way = [Gathering(s, self.placement, self.group, out=b) for s, b in pairs]

    def wait(self) -> None:
        while self.under_way:
            self.under_way.pop(0).wait()

    def weights(self) -> tuple[Tensor, ...]:
        """The buffers, in the layout of the placement, with the parameters behind them."""
        self.check_unchanged()
        # Where saved tensors go through hooks (activation checkpointing) it is those that drop them and fetch again.
        autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]  torch's stubs lack it
        self.keep |= autograd._top_saved_tensors_default_hooks(False) is not None
        return _Materialize.apply(self, *self.parameters)

    def release(self, y: Tensor) -> Tensor:
        """`y`, the result of the weights' last use: their memory is free from here until y's backward."""
        return y if self.keep else _Release.apply(y, self)

    def free(self) -> None:
        self.freed = True
        for buffer in self.buffers:
            buffer.untyped_storage().resize_(0)

    def begin_refill(self) -> None:
        if not self.freed:
            return
        self.check_unchanged()
        self.freed = False
        for buffer, size in zip(self.buffers, self.sizes, strict=True):
            buffer.untyped_storage().resize_(size)
        self.gather()

    def check_unchanged(self) -> None:
        if [p._version for p in self.parameters] != self.versions:
            raise RuntimeError("the experts' parameters were modified in place after their copies were fetched")

    def changed_to(self, placement: Placement) -> Copies:
        """Another placement of the same shards, of which only what is missing is fetched."""
        self.wait()
        rank, ranks = rank_and_size(self.group)
        missing = without_copies(placement.owner, ranks)
        missing.held.logical_or_(placement.held & ~self.placement.held)
        fetched, wanted = missing.layout(rank), placement.layout(rank)
        buffers = []
        for shard, old in zip(self.shards, self.buffers, strict=True):
            new = Gathering(shard, missing, self.group).wait()
            at = dict(zip(self.experts, old, strict=False)) | dict(zip(fetched, new, strict=True))
            buffers.append(torch.stack([at[e] for e in wanted]) if wanted else torch.zeros_like(old[:1]))
        return Copies(self.parameters, placement, self.group, self.scale, self.keep, buffers)


class _Materialize(torch.autograd.Function):
    """The buffers as functions of the shards; the backward sums the gradients of all copies."""

    @staticmethod
    def forward(ctx, copies, *shards):
        ctx.copies = copies
        copies.wait()
        weights = tuple(buffer.data for buffer in copies.buffers)  # a refill is no modification: versions of their own
        if copies.keep:
            copies.buffers = []  # the graph alone keeps them
        return weights

    @staticmethod
    def backward(ctx, *grads):
        c = ctx.copies
        if not c.keep:
            c.free()
        n = len(c.experts)
        return None, *(sparse_reduce_scatter(g[:n], c.placement, c.group, scale=c.scale) for g in grads)


class _Release(torch.autograd.Function):
    """Frees the copies behind the experts' forward, and fetches them again before their backward."""

    @staticmethod
    def forward(ctx, y, copies):
        ctx.copies = copies
        copies.free()
        return y.data  # no view: the caller may write to it

    @staticmethod
    def backward(ctx, grad):
        ctx.copies.begin_refill()
        for other in ctx.copies.ahead:
            other.begin_refill()
        ctx.copies.wait()
        return grad, None
