"""Where experts live: planners of fully sharded sparse data parallelism (Hecate, arXiv 2502.02581).

Pure functions of what all ranks know: loads summed over the ranks, owners, nodes. Ties go to the lower expert, then to
the lower rank, so that all ranks find the same plan without talking.

E experts, R ranks. `nodes` gives the node of each rank. A load is a number of tokens, best as an integer.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor


class Placement(NamedTuple):
    """Who owns each expert and who holds a copy of it, on the CPU."""

    owner: Tensor  # (E,) int64: the rank that keeps the expert, its gradient and its optimizer state
    held: Tensor  # (E, R) bool: the ranks that compute with it; the owner is one of them

    def shard(self, rank: int) -> list[int]:
        """Experts that `rank` owns, ascending: the rows of its parameters."""
        return owned(self.owner, rank)

    def copied(self) -> Tensor:
        """(E, R) bool: the copies beside the owners'."""
        return self.held.clone().scatter_(1, self.owner.unsqueeze(1), False)

    def layout(self, rank: int) -> list[int]:
        """Experts that `rank` computes with: its own, then the copies by owner, each part ascending."""
        copies = self.copied()[:, rank].nonzero().flatten().tolist()
        return self.shard(rank) + sorted(copies, key=lambda e: (int(self.owner[e]), e))


def owned(owner: Tensor, rank: int) -> list[int]:
    """Experts of `rank`, ascending."""
    return (owner == rank).nonzero().flatten().tolist()


def even_shards(experts: int, ranks: int) -> Tensor:
    """(E,) owners in blocks that differ by one expert at most; with fewer experts than ranks some ranks own none."""
    return torch.arange(experts) * ranks // experts


def without_copies(owner: Tensor, ranks: int) -> Placement:
    """Every expert on its owner only: expert parallelism."""
    return Placement(owner, torch.zeros(len(owner), ranks, dtype=torch.bool).scatter_(1, owner.unsqueeze(1), True))


def overlap_budget(seconds: float, bandwidth: float, expert_bytes: int) -> int:
    """The `top` of `materialize`: experts that are gathered at `bandwidth` bytes/s while other work takes `seconds`."""
    return int(seconds * bandwidth // expert_bytes)


def materialize(load: Tensor, owner: Tensor, nodes: Sequence[int], *, slots: int, top: int) -> Placement:
    """Which ranks get copies of which experts (Hecate's Materialize).

    load (E,): tokens of each expert, a mean or a sum over the last iterations; owner (E,); nodes (R).
    slots: experts that a rank has room for beside its own. top: how many experts may be copied, `overlap_budget`.

    If the `top` experts of the highest load fit in the slots, every rank gets them. Otherwise each in turn gets copies
    in proportion to its load, first on nodes that lack it, then on the ranks with most free slots. An expert without
    load is not copied. Raises ValueError for arguments that do not fit together.
    """
    ranks = _check(load, owner, nodes)
    if slots < 0 or top < 0:
        raise ValueError(f"slots and top must be at least 0, got {slots} and {top}")
    if not (load >= 0).all():
        raise ValueError(f"load must be at least 0, got {load.tolist()}")
    loads = load.tolist()
    hot = [e for e in _by_load(loads) if loads[e] > 0][:top]
    placement = without_copies(owner, ranks)
    if len(hot) <= slots:
        placement.held[hot] = True
        return placement
    free, left = [slots] * ranks, slots * ranks
    waiting = list(accumulate(loads[e] for e in reversed(hot)))  # the load of those not yet placed
    for e in hot:
        holders = {int(owner[e])}
        for _ in range(int(-(-left * loads[e] // waiting.pop()))):  # rounded up: the hottest gets the odd slot
            able = [r for r in range(ranks) if free[r] and r not in holders]
            if not able:
                break
            reached = {nodes[r] for r in holders}
            rank = min(able, key=lambda r: (nodes[r] in reached, -free[r], r))
            holders.add(rank)
            free[rank] -= 1
            left -= 1
        placement.held[e, list(holders)] = True
    return placement


def calibrate(
    planned: Placement,
    counts: Tensor,
    nodes: Sequence[int],
    *,
    slots: int,
    top: int,
    seconds_per_row: float,
    seconds_per_expert: float,
) -> Placement:
    """The placement to use once the gate has spoken: `planned`, or one made from the real loads if that pays.

    counts (R, E): tokens that each rank sends to each expert. The new plan is taken if the time it saves on the busiest
    rank (`seconds_per_row` each token) exceeds that of the copies it still has to fetch (`seconds_per_expert` each, on
    the rank that sends or receives most): those are not hidden behind other work.
    """
    real = materialize(counts.sum(0), planned.owner, nodes, slots=slots, top=top)
    saved = _busiest(planned, counts, nodes) - _busiest(real, counts, nodes)
    missing = real.held & ~planned.held
    sent = torch.zeros(len(nodes), dtype=torch.int64).index_add_(0, planned.owner, missing.sum(1))
    exposed = max(int(missing.sum(0).max()), int(sent.max()))
    return real if saved * seconds_per_row > exposed * seconds_per_expert else planned


def _busiest(placement: Placement, counts: Tensor, nodes: Sequence[int]) -> int:
    return int(dispatch(counts, placement, nodes).sum((0, 1)).max())


def heterogeneous_shards(loads: Tensor, nodes: Sequence[int], *, top: int) -> Tensor:
    """Owners of the experts of all layers, (layers, E), from their loads (layers, E); a rank may own more in one layer
    and fewer in another, ceil(layers E / R) in all at most.

    The `top` experts of a layer are copied anyway, so where they are kept does not matter: they fill what is left. The
    others go, layers with the highest load first, highest load first, to the least loaded node, there to the least
    loaded rank (ties: the one with fewer free slots).
    """
    if loads.dim() != 2:
        raise ValueError(f"loads must be (layers, E), got shape {tuple(loads.shape)}")
    if top < 0 or not len(nodes):
        raise ValueError(f"top must be at least 0 and nodes not empty, got {top} and {list(nodes)}")
    layers, experts = loads.shape
    ranks, values = len(nodes), loads.tolist()
    members = {node: [r for r in range(ranks) if nodes[r] == node] for node in sorted(set(nodes))}
    free = [-(-layers * experts // ranks)] * ranks
    owner = torch.empty(layers, experts, dtype=torch.int64)
    ordered = sorted(range(layers), key=lambda layer: (-max(values[layer], default=0), layer))

    def give(layer: int, e: int, rank: int) -> None:
        owner[layer, e] = rank
        free[rank] -= 1

    for layer in ordered:
        load = [0] * ranks

        def of_node(node):
            held = members[node]
            return sum(load[r] for r in held) / len(held), sum(free[r] for r in held), node  # noqa: B023

        for e in _by_load(values[layer])[top:]:
            node = min((n for n in members if any(free[r] for r in members[n])), key=of_node)
            rank = min((r for r in members[node] if free[r]), key=lambda r: (load[r], free[r], r))
            load[rank] += values[layer][e]
            give(layer, e, rank)
    for layer in ordered:
        for e in _by_load(values[layer])[:top]:
            give(layer, e, max(range(ranks), key=lambda r: (free[r], -r)))
    return owner


def dispatch(counts: Tensor, placement: Placement, nodes: Sequence[int]) -> Tensor:
    """(R, E, R) int64: how many of the tokens that rank r routes to expert e are computed on rank d.

    counts (R, E): tokens of each rank for each expert. All stay where they are if the rank holds the expert; otherwise
    they are split evenly between the holders on its node, or, where the node has none, between all holders.
    """
    ranks = _check(placement.owner, placement.owner, nodes)
    if counts.shape != (ranks, len(placement.owner)):
        raise ValueError(f"counts must be (R, E) = {(ranks, len(placement.owner))}, got {tuple(counts.shape)}")
    node, source = torch.tensor(nodes), torch.arange(ranks)
    held = placement.held.expand(ranks, -1, -1)
    here = held & torch.eye(ranks, dtype=torch.bool).unsqueeze(1)
    near = held & (node.unsqueeze(1) == node).unsqueeze(1)
    able = torch.where(here.any(-1, True), here, torch.where(near.any(-1, True), near, held))
    among = able.sum(-1, keepdim=True)
    # The odd tokens go round from a start that differs by source and expert, so that no holder gets all of them.
    start = source.view(-1, 1, 1) + torch.arange(len(placement.owner)).view(-1, 1)
    turn = able.cumsum(-1, dtype=torch.int32) - (1 + start % among).int()
    turn = torch.where(turn < 0, turn + among.int(), turn)
    counts = counts.unsqueeze(-1)
    return able * (counts // among + (turn < (counts % among).int()))


def _by_load(loads: Sequence[float]) -> list[int]:
    return sorted(range(len(loads)), key=lambda e: (-loads[e], e))


def _check(load: Tensor, owner: Tensor, nodes: Sequence[int]) -> int:
    """Number of ranks, of arguments that fit together."""
    ranks = len(nodes)
    if owner.dim() != 1 or load.shape != owner.shape:
        raise ValueError(f"load and owner must both be (E,), got {tuple(load.shape)} and {tuple(owner.shape)}")
    if len(owner) and not 0 <= int(owner.min()) <= int(owner.max()) < ranks:
        raise ValueError(f"owner must name ranks in [0, {ranks}), got {owner.tolist()}")
    return ranks
