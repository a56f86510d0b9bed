"""Sums over a box before its ReLU, which the regularizers of the warm-up are made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from warpup._op import accumulator


class BoxSums(NamedTuple):
    """Sums over all elements of a box before its ReLU, 0-d tensors with gradient but for the counts."""

    count: Tensor  # elements
    radius: Tensor
    center: Tensor
    active: Tensor  # elements with lower bound > 0
    active_center: Tensor  # their centers
    active_center2: Tensor  # (center - mean center)^2 of these
    inactive: Tensor  # elements with upper bound < 0
    inactive_center: Tensor
    inactive_center2: Tensor


def reference_box_sums(center: Tensor, radius: Tensor) -> BoxSums:
    active, inactive = center - radius > 0, center + radius < 0
    spread = (center - center.mean()).square()
    found = [torch.as_tensor(center.numel(), device=center.device), radius.sum(), center.sum()]
    for mask in (active, inactive):
        found += [mask.sum(), (center * mask).sum(), (spread * mask).sum()]
    return BoxSums(*found)


def box_sums(totals: Tensor, center: Tensor) -> BoxSums:
    """From the pass's sums around 0, in float64: radius, center, then of the active and of the inactive their count,
    centers and squared centers."""
    acc, size = accumulator(center), center.numel()
    radius, middle, *parts = totals.unbind()
    mean = middle / max(size, 1)
    found = [torch.full((), size, dtype=torch.int64, device=center.device), radius.to(acc), middle.to(acc)]
    for n, first, second in (parts[:3], parts[3:]):
        n = n.detach()
        found += [n.long(), first.to(acc), (second - mean * (2 * first - mean * n)).to(acc)]
    return BoxSums(*found)
