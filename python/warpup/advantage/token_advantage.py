"""Advantages over tokens, segments and trees: GAE, reward-to-go, masked whitening, SPO's chain and tree.

Contracts, numerics and bytes moved: csrc/advantage/*.h. As in `advantage`, nothing here has a gradient.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from warpup import _op
from warpup.advantage.group_advantage import check_shape, fail, group_plan, widened

_op.raw("reverse_scan", "masked_whiten", "tree_values")


def _mask_like(op: str, mask: Tensor, x: Tensor) -> Tensor:
    check_shape(op, "mask", mask, x.shape)
    return mask if mask.dtype == torch.bool else mask != 0


def _rows(x: Tensor) -> Tensor:
    """Rows may be strided (a slice of a longer batch is not copied), tokens may not."""
    return x if x.stride(-1) == 1 else x.contiguous()


# ---- gae, reward_to_go ----------------------------------------------------------------------------------------------


def reference_gae(rewards, values, mask, *, gamma, lam, bootstrap=None):
    """`gae` as a loop over tokens in plain torch."""
    next_value = torch.zeros_like(values[:, 0]) if bootstrap is None else bootstrap
    running, advantages = torch.zeros_like(next_value), torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        live = mask[:, t] != 0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(live, delta + gamma * lam * running, running)
        next_value = torch.where(live, values[:, t], next_value)
        advantages[:, t] = torch.where(live, running, 0.0)
    return advantages, torch.where(mask != 0, advantages + values, 0.0)


def reference_reward_to_go(rewards, mask, gamma=1.0, *, carry=True):
    """`reward_to_go` as a loop over tokens in plain torch."""
    running, out = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        live = mask[:, t] != 0
        running = torch.where(live, rewards[:, t] + gamma * running, running if carry else 0.0)
        out[:, t] = torch.where(live, running, 0.0)
    return out


@torch.library.register_fake("warpup::reverse_scan")
def _(rewards, values, mask, bootstrap, gamma, decay, cut):
    return rewards.new_empty(rewards.shape), rewards.new_empty(0 if values is None else rewards.shape)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float, bootstrap: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the tokens of a batch.

    `delta[t] = r[t] + gamma V[t+1] - V[t]` and `A[t] = delta[t] + gamma lam A[t+1]`, where t+1 is the next token inside
    the mask: observation tokens (tool output, the other player's turn) and padding neither add nor decay, so the value
    is carried through them as if they were not there.

    Args:
        rewards: (B, T), any floating dtype, a reward for each token (an outcome stands at the last one).
        values: (B, T), any floating dtype, the critic's value before each token.
        mask: (B, T) bool or number, nonzero where the policy chose the token. Nothing is read outside of it, NaN
        included. gamma: discount. lam: GAE's lambda. bootstrap: (B,) value after the last token, of responses that were
        cut off; None: 0, the responses have ended.

    Returns:
        Advantages and returns (advantage + value), both (B, T) in float32 (float64 if an input is), 0 outside the mask.
        Not whitened; see `masked_whiten`.

    Raises:
        ValueError: a shape or dtype does not fit.

    Source: Schulman et al. 2016 (arXiv 1506.02438); masked as in verl's compute_gae_advantage_return.
    """
    op = "gae"
    if rewards.dim() != 2:
        fail(op, f"rewards must have shape (B, T), got {tuple(rewards.shape)}")
    check_shape(op, "values", values, rewards.shape)
    mask = _mask_like(op, mask, rewards)
    r, v = widened(op, "rewards", rewards, values), widened(op, "values", values, rewards)
    if bootstrap is not None:
        check_shape(op, "bootstrap", bootstrap, rewards.shape[:1])
        bootstrap = bootstrap.detach().to(r.dtype).contiguous()
    return _op.ops.reverse_scan(_rows(r), _rows(v), _rows(mask), bootstrap, gamma, gamma * lam, False)


def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0, *, carry: bool = True) -> Tensor:
    """Discounted sum of the rewards from each token on: `R[t] = r[t] + gamma R[t+1]`, R = 0 past the last token.

    Args:
        rewards: (B, T), any floating dtype.
        mask: (B, T) bool or number, nonzero where the policy chose the token. Other tokens' rewards do not count.
        gamma: discount.
        carry: tokens outside the mask neither add nor decay, so R is carried through observation tokens. False: such a
            token sets R to 0, as verl's REINFORCE++ does; the same where a response has no hole.

    Returns:
        (B, T) in float32 (float64 for float64), 0 outside the mask.

    Raises:
        ValueError: a shape or dtype does not fit.
    """
    op = "reward_to_go"
    if rewards.dim() != 2:
        fail(op, f"rewards must have shape (B, T), got {tuple(rewards.shape)}")
    mask = _mask_like(op, mask, rewards)
    return _op.ops.reverse_scan(
        _rows(widened(op, "rewards", rewards)), None, _rows(mask), None, gamma, gamma, not carry
    )[0]


# ---- masked_whiten --------------------------------------------------------------------------------------------------


def reference_masked_whiten(x, mask, *, shift_mean=True, correction=1, eps=1e-8):
    """`masked_whiten` in plain torch."""
    kept, out = x[mask != 0], torch.zeros_like(x)
    if kept.numel() > 0:
        equal = kept.max() == kept.min()
        mean = torch.where(equal, kept.max(), kept.mean())
        var = kept.var(correction=correction) if kept.numel() > 1 else 0 * mean
        factor = torch.where(equal, 0.0, torch.rsqrt(var + eps))
        out[mask != 0] = (kept - mean) * factor + (0 if shift_mean else mean)
    return out


@torch.library.register_fake("warpup::masked_whiten")
def _(x, mask, shift_mean, correction, eps):
    return x.new_empty(x.shape)


def masked_whiten(
    x: Tensor, mask: Tensor, *, shift_mean: bool = True, correction: int = 1, eps: float = 1e-8
) -> Tensor:
    """Shift and scale `x` to mean 0 and variance 1 over the mask: `(x - mean) / sqrt(variance + eps)`.

    Two-pass moments over fixed chunks: the same bits for any number of threads. Equal values give exactly 0.

    Args:
        x: any shape, any floating dtype.
        mask: the shape of x, bool or number; nonzero counts. What it leaves out is not read into anything.
        shift_mean: False adds the mean again.
        correction: 1 divides squared deviations by n - 1 (Bessel), 0 by n.
        eps: added to the variance.

    Returns:
        The shape of x, float32 (float64 for float64), 0 outside the mask (TRL and verl leave other values there).

    Raises:
        ValueError: a shape or dtype does not fit, correction is not 0 or 1.

    Source: TRL and verl, masked_whiten.
    """
    op = "masked_whiten"
    mask = _mask_like(op, mask, x).contiguous()
    return _op.ops.masked_whiten(widened(op, "x", x).contiguous(), mask, shift_mean, correction, eps)


# ---- segment_advantage ----------------------------------------------------------------------------------------------


class SegmentAdvantage(NamedTuple):
    advantages: Tensor  # (B, T) float32, 0 before the first cut and outside the mask
    loss_mask: Tensor  # (B, T) bool: inside the mask, and the token's probability at most the threshold
    segments: Tensor  # (B, T) int64, -1 before the first cut and outside the mask


def segment_ids(probs: Tensor, mask: Tensor, *, threshold: float = 0.9, every: int = 5) -> Tensor:
    """Segments of a response, cut before tokens that the policy was unsure of.

    A token inside the mask with probability below `threshold` is a cut point; segments begin at cut points 0, `every`,
    2 `every`, ... To estimate a cut's value, sample continuations of what stands before the segment's first token.

    Args:
        probs: (B, T) floating, the policy's probability of each token.
        mask: (B, T) bool or number, nonzero where the policy chose the token.

    Returns:
        (B, T) int64: the token's segment from 0 on; -1 before the first cut and outside the mask.

    Source: SPO-chain (arXiv 2505.23564) and its released code.
    """
    if probs.dim() != 2:
        fail("segment_ids", f"probs must have shape (B, T), got {tuple(probs.shape)}")
    if every < 1:
        fail("segment_ids", f"every must be at least 1, got {every}")
    mask = _mask_like("segment_ids", mask, probs)
    cuts = (mask & (probs.detach() < threshold)).cumsum(-1)
    return torch.where(mask & (cuts > 0), torch.div(cuts - 1, every, rounding_mode="floor"), -1)


def segment_advantage(
    rewards: Tensor, values: Tensor, probs: Tensor, mask: Tensor, *, threshold: float = 0.9, every: int = 5
) -> SegmentAdvantage:
    """Advantage of each segment of a response: the value at its end minus the value at its beginning.

    `A = V[k+1] - V[k]` for all tokens of segment k, `A = reward - V[k]` for those of a row's last. No wait for the GPU.

    Args:
        rewards: (B,), any floating dtype: the outcome.
        values: (B, S) floating, S >= 1: V[k] is the mean reward of continuations sampled from the beginning of segment
            k (see `segment_ids`). Columns past a row's last segment are not read; segments past S - 1 are one with it.
        probs, mask, threshold, every: see `segment_ids`.

    Returns:
        `SegmentAdvantage(advantages, loss_mask, segments)`; `loss_mask` is what SPO takes the loss over, and divides
        by: tokens that were nearly certain (p > threshold) are out.

    Raises:
        ValueError: a shape or dtype does not fit.

    Source: SPO-chain (arXiv 2505.23564) and its released code.
    """
    op = "segment_advantage"
    segments = segment_ids(probs, mask, threshold=threshold, every=every)
    check_shape(op, "rewards", rewards, probs.shape[:1])
    if values.dim() != 2 or values.shape[0] != probs.shape[0] or values.shape[1] < 1:
        fail(op, f"values must have shape ({probs.shape[0]}, S) with S >= 1, got {tuple(values.shape)}")
    outcome, v = widened(op, "rewards", rewards, values).unsqueeze(1), widened(op, "values", values, rewards)
    segments = segments.clamp(max=v.shape[1] - 1)
    behind = torch.cat([segments, segments.new_full((segments.shape[0], 1), -1)], 1).amax(1, keepdim=True) + 1
    start = v.gather(1, segments.clamp(min=0))
    end = v.gather(1, (segments + 1).clamp(max=v.shape[1] - 1))
    advantages = torch.where(segments + 1 == behind, outcome, end) - start
    loss_mask = _mask_like(op, mask, probs) & (probs.detach() <= threshold)
    return SegmentAdvantage(torch.where(segments >= 0, advantages, 0.0), loss_mask, segments)


# ---- tree_advantage -------------------------------------------------------------------------------------------------


class TreeAdvantage(NamedTuple):
    advantages: Tensor  # (M,) of the edge from each node's parent to it; 0 for roots
    values: Tensor  # (M,)
    zero: Tensor  # (M,) bool: the advantage is exactly 0, a root's included; SPO drops these from the batch


def reference_tree_values(rewards, parents):
    """The values of `tree_advantage`, recursively, in plain torch."""
    children = {}
    for node, parent in enumerate(parents.tolist()):
        children.setdefault(parent, []).append(node)

    def value(node):
        if node not in children:
            return rewards[node]
        return torch.stack([value(child) for child in children[node]]).nanmean()

    return torch.stack([value(node) for node in range(len(rewards))])


def reference_tree_advantage(rewards, parents, *, scale="none", eps=1e-8):
    """`tree_advantage`, edge by edge, in plain torch."""
    values = reference_tree_values(rewards, parents)
    advantages = torch.zeros_like(values)
    for node, parent in enumerate(parents.tolist()):
        siblings = values[parents == parent]
        siblings = siblings[~siblings.isnan()]
        if parent >= 0 and not values[node].isnan() and siblings.max() != siblings.min():
            spread = siblings.std(correction=0) + eps if scale == "std" else 1.0
            advantages[node] = (values[node] - values[parent]) / spread
    return TreeAdvantage(advantages, values, advantages == 0)


@torch.library.register_fake("warpup::tree_values")
def _(rewards, children, begin, end):
    return rewards.new_empty(rewards.shape)


def tree_advantage(rewards: Tensor, parents: Tensor, *, scale: str = "none", eps: float = 1e-8) -> TreeAdvantage:
    """Advantages of the edges of a tree of partial responses, from the rewards of its leaves.

    `V(leaf) = reward`, `V(node) = mean V(child)`, `A(child) = V(child) - V(parent)`; with `scale="std"` divided by
    `std + eps`, the biased standard deviation of the siblings' values. Equal siblings get exactly 0.

    Args:
        rewards: (M,), any floating dtype, read at the leaves; NaN there means "no reward": left out of the means, edge
        0. parents: (M,) int64: the parent's index, negative for a root. Nodes in any order, any number of trees. scale:
        `none` or `std`. eps: added to the standard deviation.

    Returns:
        `TreeAdvantage(advantages, values, zero)`, in float32 (float64 for float64). A cycle gives NaN values, edges 0.

    Raises:
        ValueError: a shape, dtype or name does not fit, (CPU, not compiled) a parent is not below M. Elsewhere such a
            node is a root.

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
    parents, nodes = parents.long(), rewards.shape[0]
    if parents.is_cpu and not torch.compiler.is_compiling() and nodes > 0 and int(parents.max()) >= nodes:
        fail(op, f"parents must be below the number of nodes, {nodes}, got {int(parents.max())}")
    order, offsets = group_plan(parents)
    index = torch.arange(nodes, device=parents.device)
    ordered = parents[order]
    begin, end = torch.searchsorted(ordered, index), torch.searchsorted(ordered, index, right=True)
    values = _op.ops.tree_values(widened(op, "rewards", rewards).contiguous(), order, begin, end)
    advantages = _op.ops.group_advantage(values, offsets, order, None, None, 0, "mean", scale, eps, 0, "zero")
    root = (parents < 0) | (parents >= nodes)
    advantages = advantages.masked_fill(root | values.isnan(), 0.0)
    return TreeAdvantage(advantages, values, advantages == 0)
