"""Experts in shards: a rank owns some, computes with copies of the loaded ones, and sends tokens to the rest."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from warpup.distributed.collectives import Exchange, exchange, rank_and_size, same_on_all_ranks
from warpup.distributed.copies import Copies, in_backward
from warpup.distributed.placement import (
    Placement,
    calibrate,
    dispatch,
    even_shards,
    materialize,
    overlap_budget,
    owned,
)
from warpup.moe.glu import ACTIVATIONS
from warpup.moe.moe_experts import WEIGHT_PLACEMENTS, moe_experts
from warpup.moe.moe_plan import moe_plan

WINDOW = 5  # iterations whose load foretells the next


class ShardedExperts(nn.Module):
    """The experts of one layer over the ranks of a data-parallel group (FSSDP: Hecate, arXiv 2502.02581).

    A step: the ranks gather the tokens per expert, plan (`materialize`), fetch copies of the most loaded experts, send
    the tokens of the others to a rank that holds them, run `moe_experts`, and send the results back. Backward fetches
    the copies again, and sums the gradients of all copies on the owner, there divided by R once (`gradients="mean"`,
    for a loss that is a mean over the rank's tokens; "sum" for one that is normalized over all ranks).

    hidden, intermediate, experts: H, I, E.
    slots: experts that a rank has room for beside its own; 0 is expert parallelism.
    top: how many experts may be copied, see `overlap_budget` (default: all).
    nodes (R): the node of each rank (default: one node). owner (E,): the first owners (default: `even_shards`).
    keep: leave the copies in memory until the backward is done.
    costs: (seconds per token, seconds per expert) for `calibrate` after a prefetch; None: no calibration.
    activation, weight_placement: as in `moe_experts`.
    seed: each expert is initialised from it and its own number, whoever owns it.
    Raises ValueError on every rank if an argument does not fit or the ranks were given different ones, and on a process
    that is not in the group.

    Parameters: w_gate_up (n_owned, 2 I, H), w_down (n_owned, H, I), the experts `owned(owner, rank)` in this order; a
    rank may own none (n_owned = 0), and takes part all the same. Each is a shard, not a copy: a gradient norm over the
    model needs the squares of all ranks summed before clipping. Owners change by `move_shards` or `rebalance`, between
    optimizer steps, which take the optimizer's state along; other world sizes read `save_experts` by `load_experts`.
    Memory of a rank: its shard, and while the layer computes n_owned + slots experts in one buffer. Under activation
    checkpointing the second forward fetches them again instead of the backward.
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
        weight_placement: str = "combine",
        seed: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.rank, self.ranks = rank_and_size(group)
        if self.rank < 0:
            raise ValueError("this process is not in the group: make the layer on the group's ranks only")
        self.group, self.keep, self.costs = group, keep, costs
        self.owner = even_shards(experts, self.ranks) if owner is None else owner.cpu().long()
        self.nodes = [0] * self.ranks if nodes is None else list(nodes)
        same_on_all_ranks(
            {
                "sizes": (hidden, intermediate, experts, dtype),
                "owner": self.owner.tolist(),
                "nodes": self.nodes,
                "planning": (slots, top, costs, gradients, keep),
                "experts": (activation, weight_placement, seed),
            },
            group,
        )
        if min(hidden, intermediate, experts) < 1:
            raise ValueError(
                f"hidden, intermediate and experts must be at least 1, got {hidden}, {intermediate} and {experts}"
            )
        if gradients not in ("mean", "sum"):
            raise ValueError(f"gradients must be 'mean' or 'sum', got {gradients!r}")
        for name, value, known in (
            ("activation", activation, ACTIVATIONS),
            ("weight_placement", weight_placement, WEIGHT_PLACEMENTS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if len(self.owner) != experts or len(self.nodes) != self.ranks:
            raise ValueError(
                f"owner must name {experts} ranks and nodes {self.ranks} nodes, "
                f"got {len(self.owner)} and {len(self.nodes)}"
            )
        self.room = {"slots": slots, "top": experts if top is None else top}
        self.scale = 1 / self.ranks if gradients == "mean" else 1.0
        self.options = {"activation": activation, "weight_placement": weight_placement}
        self.loads: deque[Tensor] = deque(maxlen=WINDOW)  # (E,) each: tokens per expert of all ranks
        self.prefetched: Copies | None = None
        self.foretold: Placement | None = None  # of the last forward, if its copies were prefetched
        self.latest: Copies | None = None  # of the last forward, if a backward may follow
        self.before: Sequence[ShardedExperts] = ()  # see `overlap`; no list, which would make them submodules
        self.after: Sequence[ShardedExperts] = ()
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
        load = sum(self.loads, torch.zeros(len(self.owner), dtype=torch.int64))
        return materialize(load, self.owner, self.nodes, **self.room)

    def overlap_budget(self, seconds: float, bandwidth: float) -> int:
        """`top` for copies that hide behind `seconds` of other work at `bandwidth` bytes/s."""
        expert = sum(w.shape[1:].numel() * w.element_size() for w in (self.w_gate_up, self.w_down))
        return overlap_budget(seconds, bandwidth, expert)

    def prefetch(self) -> None:
        """Begin to fetch the copies of the next forward, planned from the last iterations; call it before the attention
        in front of this layer, on all ranks."""
        if self.prefetched is None:
            self.prefetched = self.fetch(self.plan())

    def fetch(self, placement: Placement) -> Copies:
        return Copies([self.w_gate_up, self.w_down], placement, self.group, self.scale, self.keep)

    @torch.compiler.disable
    def forward(self, x: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
        """x (T, H), weights and indices (T, k) with -1 for a dropped copy, T of this rank; (T, H) as `moe_experts`.

        It synchronizes with the host once, for the counts: they decide who sends how much to whom. So it is a graph
        break to `torch.compile`.
        """
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
        copies.ahead = [layer.latest for layer in self.before if layer.latest]
        slot = torch.full((len(self.owner) + 1,), -1)  # the last is that of a dropped copy, expert -1
        slot[copies.experts] = torch.arange(len(copies.experts))
        slot = slot.to(x.device)
        here = slot[indices]
        if copies.placement.held.t()[counts > 0].all():  # on all ranks or on none
            y = copies.release(moe_experts(x, weights, here, *copies.weights(), **self.options)).to(x.dtype)
        else:  # the tokens of others are computed behind this rank's own, in the same call
            split = dispatch(counts, copies.placement, self.nodes)
            leaving, send, arriving, receive = travellers(split, permutation, self.rank)
            pad, wide = (0, indices.shape[1] - 1), torch.promote_types(torch.float32, x.dtype)
            token, theirs = leaving // indices.shape[1], slot[arriving.to(x.device)].unsqueeze(1)
            coming = Exchange.apply(x[token], send, receive, self.group)  # while the copies come as well
            y = moe_experts(
                torch.cat([x, coming]),
                torch.cat([weights, F.pad(torch.ones_like(theirs, dtype=weights.dtype), pad)]),
                torch.cat([here, F.pad(theirs, pad, value=-1)]),
                *copies.weights(),
                **self.options,
            )
            y, theirs = copies.release(y).split([len(x), len(theirs)])
            back = Exchange.apply(theirs, receive, send, self.group)
            back = back.to(wide) * weights.flatten()[leaving].to(wide).unsqueeze(1)
            y = y.to(wide).index_put((token,), back, accumulate=True).to(x.dtype)
        self.latest = copies if torch.is_grad_enabled() else None
        if not in_backward():
            if self.training:
                self.loads.append(counts.sum(0))
            for layer in self.after:
                layer.prefetch()
        return y

    def count(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens of every rank for every expert, (R, E) on the CPU, and this rank's copies sorted by expert."""
        plan = moe_plan(indices, len(self.owner))
        to_each = [1] * self.ranks
        counts, _ = exchange(plan.counts.repeat(self.ranks, 1), to_each, to_each, self.group)
        return counts.cpu(), plan.permutation

    def copies(self, counts: Tensor) -> Copies:
        """The copies for these tokens: prefetched ones, corrected if that pays, or those of the best plan."""
        if in_backward() and self.foretold:  # the forward again: the same placement
            return self.fetch(self.foretold)
        copies, self.prefetched, self.foretold = self.prefetched, None, None
        if copies is None:
            return self.fetch(materialize(counts.sum(0), self.owner, self.nodes, **self.room))
        if self.costs:
            row, expert = self.costs
            placement = calibrate(
                copies.placement, counts, self.nodes, **self.room, seconds_per_row=row, seconds_per_expert=expert
            )
            copies = copies if placement is copies.placement else copies.changed_to(placement)
        self.foretold = copies.placement
        return copies

    def extra_repr(self) -> str:
        return f"experts={len(self.owner)}, owned={len(self.shard)}, rank={self.rank}/{self.ranks}, {self.room}"

    def get_extra_state(self) -> dict:
        return {"owner": self.owner, "loads": list(self.loads)}

    def set_extra_state(self, state: dict) -> None:
        if not torch.equal(state["owner"].cpu(), self.owner):
            raise ValueError("the state was saved with other owners: move_shards first, or use load_experts")
        self.loads = deque(state["loads"], maxlen=WINDOW)


def overlap(layers: Sequence[ShardedExperts]) -> None:
    """Have layers, given in the order of the forward, fetch ahead: each begins to fetch the next one's copies after its
    forward, and those of the one before at the start of its backward. All ranks then run all of them in this order."""
    for one, other in pairwise(layers):
        one.after, other.before = (other,), (one,)


def travellers(split: Tensor, permutation: Tensor, rank: int) -> tuple[Tensor, list[int], Tensor, list[int]]:
    """Who goes where by `split`: the copies of tokens that leave, in order of sending, how many to each rank; the
    experts that those which come want, in order of arrival, how many from each rank.

    permutation: this rank's copies sorted by expert. What goes from one rank to another is sorted by expert.
    """
    ranks, experts, _ = split.shape
    to = torch.arange(ranks).repeat(experts).repeat_interleave(split[rank].flatten())
    away = (to != rank).nonzero().flatten()
    away = away[to[away].argsort(stable=True)]
    coming = split[:, :, rank].clone()
    coming[rank] = 0
    arriving = torch.arange(experts).repeat(ranks).repeat_interleave(coming.flatten())
    send = torch.bincount(to[away], minlength=ranks).tolist()
    return permutation[away.to(permutation.device)], send, arriving, coming.sum(1).tolist()
