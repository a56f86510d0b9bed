"""`tree_advantage`: advantages of the edges of a tree of partial responses (SPO-tree).

Contract, numerics and bytes moved of the values: csrc/advantage/tree_advantage.h; the advantages are those of
`group_advantage`, with siblings as the groups.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from warpup import _op
from warpup._arguments import explained
from warpup.advantage._inputs import check_shape, eps_of, fail, widened
from warpup.advantage.group_plan import group_plan


class TreeAdvantage(NamedTuple):
    advantages: Tensor  # (M,) of the edge from each node's parent to it; 0 for roots
    values: Tensor  # (M,)
    zero: Tensor  # (M,) bool: the advantage is exactly 0, a root's included; SPO drops these from the batch


def reference_node_values(rewards, parents):
    """The values of `tree_advantage`, recursively, in plain torch."""
    children = {}
    for node, parent in enumerate(parents.tolist()):
        children.setdefault(parent, []).append(node)

    def value(node):
        if node not in children:
            return rewards[node]
        return torch.stack([value(child) for child in children[node]]).nanmean()

    return torch.stack([value(node) for node in range(len(rewards))])


def reference_tree_advantage(rewards, parents, *, scale="none", eps=None):
    """`tree_advantage`, edge by edge, in plain torch."""
    values = reference_node_values(rewards, parents)
    advantages = torch.zeros_like(values)
    for node, parent in enumerate(parents.tolist()):
        siblings = values[parents == parent]
        siblings = siblings[~siblings.isnan()]
        if parent >= 0 and not values[node].isnan() and siblings.max() != siblings.min():
            spread = siblings.std(correction=0) + (1e-8 if eps is None else eps) if scale == "std" else 1.0
            advantages[node] = (values[node] - values[parent]) / spread
    return TreeAdvantage(advantages, values, advantages == 0)


@_op.fake("tree_advantage")
def _(rewards, children, begin, end):
    return rewards.new_empty(rewards.shape)


@explained
def tree_advantage(rewards: Tensor, parents: Tensor, *, scale: str = "none", eps: float | None = None) -> TreeAdvantage:
    """Advantages of the edges of a tree of partial responses, from the rewards of its leaves.

    `V(leaf) = reward`, `V(node) = mean V(child)`, `A(child) = V(child) - V(parent)`; with `scale="std"` divided by
    `std + eps`, the biased standard deviation of the siblings' values. Equal siblings get exactly 0.

    Args:
        rewards: (M,), any floating dtype, read at the leaves; NaN there means "no reward": left out of the means, its
            edge gets 0.
        parents: (M,) int64: the parent's index, negative for a root. Nodes in any order, any number of trees.
        scale: `none` or `std`.
        eps: added to the standard deviation, for `std` only; None: 1e-8.

    Returns:
        `TreeAdvantage(advantages, values, zero)`, in float32 (float64 for float64). A cycle gives NaN values, edges 0.

    Raises:
        ValueError: a shape, dtype or name does not fit, `eps` without a scale, (CPU, not compiled) a parent is not
            below M. Elsewhere such a node is a root.

    Source: SPO-tree (arXiv 2505.23564).
    """
    op = "tree_advantage"
    if rewards.dim() != 1:
        fail(op, f"rewards must have shape (M,), got {tuple(rewards.shape)}")
    check_shape(op, "parents", parents, rewards.shape)
    if parents.dtype not in (torch.int64, torch.int32):
        fail(op, f"parents must be int64, got {parents.dtype}")
    if scale not in ("none", "std"):
        fail(op, f"scale must be one of none, std; got {scale!r}")
    eps = eps_of(op, eps, scale, 1e-8)
    parents, nodes = parents.long(), rewards.shape[0]
    if parents.is_cpu and not torch.compiler.is_compiling() and nodes > 0 and int(parents.max()) >= nodes:
        fail(op, f"parents must be below the number of nodes, {nodes}, got {int(parents.max())}")
    order, offsets = group_plan(parents)
    index = torch.arange(nodes, device=parents.device)
    ordered = parents[order]
    begin, end = torch.searchsorted(ordered, index), torch.searchsorted(ordered, index, right=True)
    values = _op.ops.tree_advantage(widened(op, "rewards", rewards).contiguous(), order, begin, end)
    advantages = _op.ops.group_advantage(values, 0, offsets, order, None, None, "mean", scale, eps, 0)
    root = (parents < 0) | (parents >= nodes)
    advantages = advantages.masked_fill(root | values.isnan(), 0.0)
    return TreeAdvantage(advantages, values, advantages == 0)
