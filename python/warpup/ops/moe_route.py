"""Stand-in in plain torch for the router's operator, with its signature: softmax scores only."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Route(NamedTuple):
    weights: Tensor  # (T, k)
    indices: Tensor  # (T, k) int64
    counts: Tensor  # (E,) int64
    mean_score: Tensor  # (E,)
    z_loss: Tensor  # ()


def moe_route(
    logits,
    k,
    *,
    score="softmax",
    order="softmax_topk",
    renormalize=False,
    bias=None,
    groups=None,
    scale=1.0,
    replay_indices=None,
    token_mask=None,
):
    scores = logits.float().softmax(-1) if score == "softmax" else logits.float().sigmoid()
    chosen = scores if bias is None else scores + bias
    indices = chosen.topk(k, -1).indices if replay_indices is None else replay_indices
    weights = scores.gather(-1, indices)
    if renormalize:
        weights = weights / weights.sum(-1, keepdim=True)
    counts = torch.zeros(logits.shape[-1], dtype=torch.int64).scatter_add(
        0, indices.flatten(), torch.ones_like(indices.flatten())
    )
    z = logits.float().logsumexp(-1).square().mean()
    return Route(weights * scale, indices, counts, scores.mean(0), z)
