"""Margins: lower bounds of the label's logit minus each other one, over a box of inputs to the last layer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def others(labels: Tensor, classes: int) -> Tensor:
    """(B, K - 1): the classes that are not the label, ascending."""
    rest = torch.arange(classes - 1, device=labels.device)
    return rest + (rest >= labels.unsqueeze(1))


def reference_margin_bounds(center, radius, weight, bias, labels):
    """`margin_bounds` in plain torch, with a (B, K - 1, H) difference of weights."""
    rest = others(labels, weight.shape[0])
    w = weight[labels].unsqueeze(1) - weight[rest]
    bound = torch.einsum("bkh,bh->bk", w, center) - torch.einsum("bkh,bh->bk", w.abs(), radius)
    return bound if bias is None else bound + bias[labels].unsqueeze(1) - bias[rest]


def reference_margin_cross_entropy(center, radius, weight, bias, labels, *, reduction="mean"):
    """`margin_cross_entropy` in plain torch: cross-entropy of (-margins, 0) at the last entry."""
    bound = reference_margin_bounds(center, radius, weight, bias, labels)
    loss = F.pad(-bound, (1, 0)).logsumexp(1)
    return {"mean": loss.mean, "sum": loss.sum, "none": lambda: loss}[reduction]()


margin_bounds = reference_margin_bounds
margin_cross_entropy = reference_margin_cross_entropy
