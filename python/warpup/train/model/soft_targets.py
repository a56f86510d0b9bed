"""Cross-entropy towards a distribution in place of a token, from hidden states: label smoothing, a teacher's top
tokens."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag
from torch.utils.checkpoint import checkpoint

from warpup import linear_logprob

from .heads import ROWS, Head


def cross_entropy(head: Head, hidden: Tensor, ids: Tensor, probs: Tensor, smoothing: float = 0.0) -> Tensor:
    """(N,): -sum_v q_v log p_v, with q = (1 - smoothing) * probs at `ids`, and smoothing / V everywhere.

    ids (N, K) int64 and probs (N, K), whose rows add up to 1. Of a linear head no logits are made as a whole: the sum
    is log Z - sum_v q_v z_v, and a mean of logits is the logit of a mean of the output layer's rows.
    """
    if head.form != "linear" or head.cap is not None:
        return _of_logits(head, hidden, ids, probs, smoothing)
    weight, bias = head.layer.weight, head.layer.bias
    _, lse = linear_logprob(hidden, weight, ids[:, 0].contiguous(), bias=bias, scale=head.scale, lse=True)
    # In float32: a bag of 16-bit rows would sum its gradient in 16 bits.
    mean = (1 - smoothing) * embedding_bag(ids, weight.float(), per_sample_weights=probs, mode="sum")
    if smoothing:
        mean = mean + smoothing * weight.float().mean(0)
    z = (hidden.float() * mean).sum(-1)
    if bias is not None:
        z = z + (1 - smoothing) * (probs * bias.float()[ids]).sum(-1) + smoothing * bias.float().mean()
    return lse - head.scale * z


def _of_logits(head: Head, hidden: Tensor, ids: Tensor, probs: Tensor, smoothing: float) -> Tensor:
    """The same from logits, of ROWS rows at a time, and again backward."""

    def of_rows(h: Tensor, ids: Tensor, probs: Tensor) -> Tensor:
        logp = head.logits(h).float().log_softmax(-1)
        return -(1 - smoothing) * (logp.gather(1, ids) * probs).sum(-1) - smoothing * logp.mean(-1)

    parts = zip(hidden.split(ROWS), ids.split(ROWS), probs.split(ROWS), strict=True)
    return torch.cat([checkpoint(of_rows, *part, use_reentrant=False) for part in parts])
