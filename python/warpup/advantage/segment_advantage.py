"""`segment_advantage`: value differences over the segments of a response (SPO-chain). Composed of torch ops."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from warpup._arguments import explained
from warpup.advantage._inputs import check_shape, fail, mask_like, widened


class SegmentAdvantage(NamedTuple):
    advantages: Tensor  # (B, T) float32, 0 before the first cut and outside the mask
    loss_mask: Tensor  # (B, T) bool: inside the mask, and the token's probability at most the threshold
    segments: Tensor  # (B, T) int64, -1 before the first cut and outside the mask


@explained
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
    mask = mask_like("segment_ids", mask, probs)
    cuts = (mask & (probs.detach() < threshold)).cumsum(-1)
    return torch.where(mask & (cuts > 0), torch.div(cuts - 1, every, rounding_mode="floor"), -1)


@explained
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
    loss_mask = mask_like(op, mask, probs) & (probs.detach() <= threshold)
    return SegmentAdvantage(torch.where(segments >= 0, advantages, 0.0), loss_mask, segments)
