"""Experts in shards: a rank owns some, computes with copies of the loaded ones, and sends tokens to the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from warpup.ops.moe import moe_plan
from warpup.ops.moe_experts import moe_experts
from warpup.parallel.collectives import Gathering, exchange, rank_and_size, sparse_reduce_scatter
from warpup.parallel.placement import (
    Placement,
    calibrate,
    dispatch,
    even_shards,
    materialize,
    overlap_budget,
    owned,
    without_copies,
)

WINDOW = 5  # iterations whose load foretells the next


class ShardedExperts(nn.Module):
    """The experts of one layer over the ranks of a data-parallel group (FSSDP: Hecate, arXiv 2502.02581).

    A step: the ranks gather the tokens per expert, plan (`materialize`), fetch copies of the most loaded experts, send
    the tokens of the others to a rank that holds them, run `moe_experts`, and send the results back. Backward fetches
    the copies again, and sums the gradients of all copies on the owner, there divided by R once (`gradients="mean"`,
    for a loss that is a mean over the rank's tokens; "sum" for one that is normalised over all ranks).

    hidden, intermediate, experts: H, I, E.
    slots: experts that a rank has room for beside its own; 0 is expert parallelism.
    top: how many experts may be copied, see `overlap_budget` (default: all).
    nodes (R): the node of each rank (default: one node). owner (E,): the first owners (default: `even_shards`).
    keep: leave the copies in memory until the backward is done.
    costs: (seconds per token, seconds per expert) for `calibrate` after a prefetch; None: no calibration.
    activation, placement: as in `moe_experts`.
    seed: each expert is initialised from it and its own number, whoever owns it.
    Raises ValueError on every rank if the ranks were given different arguments.

    Parameters: w_gate_up (n_owned, 2 I, H), w_down (n_owned, H, I), the experts `owned(owner, rank)` in this order.
    The group's ranks must run the same forwards and backwards in the same order, with T = 0 where one has no tokens.
    With FSDP2, give the parameters to `fully_shard(..., ignored_params=...)`; DDP must ignore them too.
    """

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        experts: int,
        *,
        slots: int,
        top: int | None = None,
        group: dist.ProcessGroup | None = None,
        nodes: Sequence[int] | None = None,
        owner: Tensor | None = None,
        gradients: str = "mean",
        keep: bool = False,
        costs: tuple[float, float] | None = None,
        activation: str = "silu",
        placement: str = "combine",
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.rank, self.ranks = rank_and_size(group)
        self.group, self.keep, self.costs = group, keep, costs
        self.owner = even_shards(experts, self.ranks) if owner is None else owner.cpu().long()
        self.nodes = [0] * self.ranks if nodes is None else list(nodes)
        same_on_all_ranks(
            {
                "sizes": (hidden, intermediate, experts, dtype),
                "owner": self.owner.tolist(),
                "nodes": self.nodes,
                "planning": (slots, top, costs, gradients, keep),
            },
            group,
        )
        if gradients not in ("mean", "sum"):
            raise ValueError(f"gradients must be 'mean' or 'sum', got {gradients!r}")
        if len(self.owner) != experts or len(self.nodes) != self.ranks:
            raise ValueError(
                f"owner must name {experts} ranks and nodes {self.ranks} nodes, "
                f"got {len(self.owner)} and {len(self.nodes)}"
            )
        self.room = {"slots": slots, "top": experts if top is None else top}
        self.scale = 1 / self.ranks if gradients == "mean" else 1.0
        self.options = {"activation": activation, "placement": placement}
        self.loads: deque[Tensor] = deque(maxlen=WINDOW)  # (E,) each: tokens per expert of all ranks
        self.prefetched: Copies | None = None
        self.plan()  # tells wrong owners, slots, top
        shapes = (2 * intermediate, hidden), (hidden, intermediate)
        n = len(self.shard)
        self.w_gate_up, self.w_down = (nn.Parameter(torch.empty(n, *s, device=device, dtype=dtype)) for s in shapes)
        self.reset_parameters(seed)

    @property
    def shard(self) -> list[int]:
        """Experts that this rank owns: the rows of its parameters."""
        return owned(self.owner, self.rank)

    @torch.no_grad()
    def reset_parameters(self, seed: int = 0) -> None:
        """Uniform in +-1/sqrt(fan in), as nn.Linear; the same expert on whatever rank."""
        for row, e in enumerate(self.shard):
            generator = torch.Generator(self.w_down.device).manual_seed(seed * len(self.owner) + e)
            for weight in (self.w_gate_up[row], self.w_down[row]):
                bound = weight.shape[1] ** -0.5
                weight.uniform_(-bound, bound, generator=generator)

    def plan(self) -> Placement:
        """The placement that the last iterations' loads ask for."""
        if not self.loads:
            return materialize(torch.zeros(len(self.owner)), self.owner, self.nodes, **self.room)
        return materialize(torch.stack(list(self.loads)).sum(0), self.owner, self.nodes, **self.room)

    def overlap_budget(self, seconds: float, bandwidth: float) -> int:
        """`top` for copies that hide behind `seconds` of other work at `bandwidth` bytes/s."""
        expert = sum(w.shape[1:].numel() * w.element_size() for w in (self.w_gate_up, self.w_down))
        return overlap_budget(seconds, bandwidth, expert)

    def prefetch(self) -> None:
        """Begin to fetch the copies of the next forward, planned from the last iterations; call it before the attention
        in front of this layer, on all ranks."""
        if self.prefetched is None:
            self.prefetched = Copies(self, self.plan())

    def forward(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        """x (T, H), weights and indices (T, k) with -1 for a dropped copy, T of this rank; (T, H) as `moe_experts`."""
        if x.dim() != 2 or x.shape[1] != self.w_down.shape[1] or x.dtype != self.w_down.dtype:
            raise ValueError(
                f"x must be (T, {self.w_down.shape[1]}) in {self.w_down.dtype}, got {tuple(x.shape)} in {x.dtype}"
            )
        if indices.dim() != 2 or weights.shape != indices.shape or len(indices) != len(x):
            raise ValueError(
                f"weights and indices must be (T, k) with T = {len(x)}, "
                f"got {tuple(weights.shape)} and {tuple(indices.shape)}"
            )
        counts, permutation = self.count(indices)
        copies = self.copies(counts)
        w_gate_up, w_down = _Materialize.apply(copies, self.w_gate_up, self.w_down)
        split = dispatch(counts, copies.placement, self.nodes)
        slot = torch.full((len(self.owner),), -1)
        slot[copies.experts] = torch.arange(len(copies.experts))
        slot = slot.to(x.device)
        local = torch.where(indices >= 0, slot[indices.clamp_min(0)], -1)
        moved = (split * ~torch.eye(self.ranks, dtype=torch.bool).unsqueeze(1)).sum(1)  # (R, R): tokens from, to
        if not moved.any():  # on all ranks or on none
            y = moe_experts(x, weights, local, w_gate_up, w_down, **self.options)
            y = _Release.apply(y, copies)
        else:
            y = self.forward_with_moves(x, weights, local, permutation, copies, w_gate_up, w_down, split, moved, slot)
        if self.training and torch.is_grad_enabled():
            self.loads.append(counts.sum(0))
        return y

    def forward_with_moves(self, x, weights, local, permutation, copies, w_gate_up, w_down, split, moved, slot):
        """The same where some tokens go to other ranks: they are computed behind this rank's own in one call."""
        k, me = local.shape[1], self.rank
        send, receive = moved[me].tolist(), moved[:, me].tolist()
        ranks = torch.arange(self.ranks)
        # Copies by expert, then by the rank they go to; of those that leave, by rank, then by expert.
        to = ranks.repeat(len(self.owner)).repeat_interleave(split[me].flatten()).to(x.device)
        leaving = (to != me).nonzero().flatten()
        leaving = permutation[leaving[to[leaving].argsort(stable=True)]]
        token = leaving // k

        coming = _Exchange.apply(x[token], send, receive, self.group)
        experts = torch.arange(len(self.owner)).repeat(self.ranks)
        from_others = (split[:, :, me] * (ranks != me).unsqueeze(1)).flatten()
        theirs = slot[experts.repeat_interleave(from_others).to(x.device)]
        pad = (0, k - 1)
        y = moe_experts(
            torch.cat([x, coming]),
            torch.cat([weights, nn.functional.pad(weights.new_ones(len(theirs), 1), pad)]),
            torch.cat([local, nn.functional.pad(theirs.unsqueeze(1), pad, value=-1)]),
            w_gate_up,
            w_down,
            **self.options,
        )
        y = _Release.apply(y, copies)
        back = _Exchange.apply(y[len(x) :], receive, send, self.group)
        wide = torch.promote_types(torch.float32, y.dtype)
        back = back.to(wide) * weights.flatten()[leaving].unsqueeze(1)
        return y[: len(x)].to(wide).index_put((token,), back, accumulate=True).to(y.dtype)

    def count(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of every rank for every expert, (R, E) on the CPU, and this rank's copies sorted by expert."""
        plan = moe_plan(indices, len(self.owner))
        if self.ranks == 1:
            return plan.counts.unsqueeze(0).cpu(), plan.permutation
        counts = plan.counts.new_empty(self.ranks * len(self.owner))
        dist.all_gather_into_tensor(counts, plan.counts, self.group)
        return counts.view(self.ranks, -1).cpu(), plan.permutation

    def copies(self, counts: Tensor) -> Copies:
        """The copies for these tokens: prefetched ones, corrected if that pays, or those of the best plan."""
        copies, self.prefetched = self.prefetched, None
        if copies is None:
            return Copies(self, materialize(counts.sum(0), self.owner, self.nodes, **self.room))
        copies.check_unchanged()
        if self.costs is None:
            return copies
        row, expert = self.costs
        placement = calibrate(
            copies.placement, counts, self.nodes, **self.room, seconds_per_row=row, seconds_per_expert=expert
        )
        return copies if placement is copies.placement else copies.changed_to(placement)

    def extra_repr(self) -> str:
        return f"experts={len(self.owner)}, owned={len(self.shard)}, rank={self.rank}/{self.ranks}, {self.room}"

    def get_extra_state(self) -> dict:
        return {"owner": self.owner, "loads": list(self.loads)}

    def set_extra_state(self, state: dict) -> None:
        if not torch.equal(state["owner"], self.owner):
            raise ValueError("the state was saved with other owners: move_shards first, or use load_experts")
        self.loads = deque(state["loads"], maxlen=WINDOW)


class Copies:
    """The weights that a rank computes with, a buffer per parameter: fetched, freed after the forward, fetched again.

    The buffers keep their place in the autograd graph while their memory is given back: storage is resized, as in FSDP.
    """

    def __init__(self, layer: ShardedExperts, placement: Placement, buffers: list[Tensor] | None = None):
        self.layer, self.placement = layer, placement
        self.experts = placement.layout(layer.rank)
        self.parameters = [layer.w_gate_up, layer.w_down]
        self.shards = [p.detach() for p in self.parameters]
        self.versions = [p._version for p in self.parameters]
        self.under_way: list[Gathering] = []
        # A rank without experts computes with one of zeros that no token takes: its graph is that of the others.
        rows = max(1, len(self.experts))
        self.buffers = buffers or [s.new_zeros(rows, *s.shape[1:]) for s in self.shards]
        self.bytes = [b.untyped_storage().nbytes() for b in self.buffers]
        if buffers is None:
            self.gather()

    def gather(self) -> None:
        pairs = zip(self.shards, self.buffers, strict=True)
        self.under_way = [Gathering(s, self.placement, self.layer.group, out=b) for s, b in pairs]

    def check_unchanged(self) -> None:
        if [p._version for p in self.parameters] != self.versions:
            raise RuntimeError("the experts' parameters were modified in place after their copies were fetched")

    def wait(self) -> list[Tensor]:
        while self.under_way:
            self.under_way.pop(0).wait()
        return self.buffers

    def free(self) -> None:
        for buffer in self.buffers:
            buffer.untyped_storage().resize_(0)

    def refill(self) -> None:
        self.check_unchanged()
        for buffer, size in zip(self.buffers, self.bytes, strict=True):
            buffer.untyped_storage().resize_(size)
            buffer[len(self.experts) :].zero_()
        self.gather()
        self.wait()

    def changed_to(self, placement: Placement) -> Copies:
        """Another placement of the same shards, of which only what is missing is fetched."""
        self.wait()
        layer = self.layer
        missing = without_copies(self.placement.owner, layer.ranks)
        missing.held.logical_or_(placement.held & ~self.placement.held)
        fetched, wanted = missing.layout(layer.rank), placement.layout(layer.rank)
        buffers = []
        for shard, old in zip(self.shards, self.buffers, strict=True):
            new = Gathering(shard, missing, layer.group).wait()
            at = dict(zip(self.experts, old, strict=False)) | dict(zip(fetched, new, strict=True))
            buffers.append(torch.stack([at[e] for e in wanted]) if wanted else old[:1].zero_())
        return Copies(layer, placement, buffers)


class _Materialize(torch.autograd.Function):
    """The buffers of `copies` as functions of the shards; the backward sums the gradients of all copies."""

    @staticmethod
    def forward(ctx, copies, *shards):
        ctx.copies = copies
        return tuple(buffer.data for buffer in copies.wait())  # their versions are not those of the buffers

    @staticmethod
    def backward(ctx, *grads):
        copies = ctx.copies
        if not copies.layer.keep:
            copies.free()
        n, layer = len(copies.experts), copies.layer
        return None, *(sparse_reduce_scatter(g[:n], copies.placement, layer.group, scale=layer.scale) for g in grads)


class _Release(torch.autograd.Function):
    """Frees the copies behind the experts' forward, and fetches them again before their backward."""

    @staticmethod
    def forward(ctx, y, copies):
        ctx.copies = copies
        if not copies.layer.keep:
            copies.free()
        return y.data  # no view: the caller may write to it

    @staticmethod
    def backward(ctx, grad):
        if not ctx.copies.layer.keep:
            ctx.copies.refill()
        return grad, None


class _Exchange(torch.autograd.Function):
    """Tokens to other ranks, their gradients back."""

    @staticmethod
    def forward(ctx, rows, send, receive, group):
        ctx.way_back = receive, send, group
        return exchange(rows, send, receive, group)[0]

    @staticmethod
    def backward(ctx, grad):
        return _Exchange.apply(grad, *ctx.way_back), None, None, None


def same_on_all_ranks(facts: dict, group: dist.ProcessGroup | None) -> None:
    """ValueError on every rank, naming the first fact in which two ranks differ."""
    if not dist.is_initialized():
        return
    found = [None] * dist.get_world_size(group)
    dist.all_gather_object(found, facts, group)
    for rank, other in enumerate(found):
        for name in facts:
            if other[name] != found[0][name]:
                raise ValueError(
                    f"{name} must be the same on all ranks: rank {rank} has {other[name]}, rank 0 {found[0][name]}"
                )
