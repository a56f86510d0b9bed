"""Normalisation layers that keep training stable: of a large batch, of queries and keys."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GhostBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch normalisation that takes its statistics over small parts of a large batch, as many small batches would.

    In training the batch is split into ghost batches, each normalised by its own mean and variance. The running
    statistics move once for each, in order: after G of them mu <- (1 - m)^G mu + sum_g (1 - m)^(G - g) m mu_g. As in
    torch they are of the unbiased variance, where the paper's are of the deviation. In eval mode plain BatchNorm.

    Args:
        features: channels C of inputs (B, C, ...).
        ghost: examples of a ghost batch; the last one of a batch may be smaller, but where that leaves one number a
            channel, which has no variance, it joins the one before.
        others: as of `torch.nn.BatchNorm1d`.

    Source: "Train longer, generalize better" (arXiv 1705.08741), algorithm 1. With it go the rate `sqrt_rate`, the
    same number of updates as with the small batch, and clipping of the gradient's norm.
    """

    def __init__(self, features: int, ghost: int, **others):
        if ghost < 1:
            raise ValueError(f"GhostBatchNorm: ghost must be at least 1, got {ghost}")
        super().__init__(features, **others)
        self.ghost = ghost

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"GhostBatchNorm: input must be (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        parts = list(input.split(self.ghost))
        if len(parts) > 1 and parts[-1].numel() == input.shape[1]:
            parts[-2:] = [torch.cat(parts[-2:])]
        return torch.cat([super(GhostBatchNorm, self).forward(part) for part in parts])


class QKNorm(nn.Module):
    """Layer normalisation of queries and keys over the head's width, before their product (arXiv 2302.05442; against
    attention logits that grow with the learning rate, arXiv 2309.14322).

    Normalised in the dtype of its weights, float32, and returned in that of the inputs: on a CPU the gradients of a
    16-bit LayerNorm's weights stop growing at 256.

    Args:
        width: of a head.
        eps: as of `torch.nn.LayerNorm`.
    """

    def __init__(self, width: int, eps: float = 1e-5):
        super().__init__()
        self.query, self.key = nn.LayerNorm(width, eps), nn.LayerNorm(width, eps)

    def forward(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        """Both (..., width)."""
        return tuple(norm(x.to(norm.weight.dtype)).to(x.dtype) for norm, x in ((self.query, query), (self.key, key)))
