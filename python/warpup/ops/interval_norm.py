"""Boxes through ReLU and batch normalisation, with the sums that the warm-up's regularisers are made of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


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


def reference_interval_relu(center, radius, *, clean=None, sums=False):
    """`interval_relu` in plain torch."""
    lower, upper = (center - radius).relu(), (center + radius).relu()
    found = ((lower + upper) / 2, (upper - lower) / 2)
    found += () if clean is None else (clean.relu(),)
    return (*found, reference_box_sums(center, radius)) if sums else found


def reference_interval_batch_norm(
    center, radius, running_mean, running_var, weight=None, bias=None, *, clean=None, training=False, momentum=0.1,
    eps=1e-5, statistics="clean", relu=False, sums=False,
):  # fmt: skip
    """`interval_batch_norm` in plain torch."""
    if training and statistics != "frozen":
        source = center if statistics == "midpoint" else clean
        dims = [d for d in range(source.dim()) if d != 1]
        var, mean = torch.var_mean(source, dims, correction=0)
        if running_mean is not None:
            n = source.numel() // source.shape[1]
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean), momentum)
                running_var.lerp_((var * (n / max(n - 1, 1))).to(running_var), momentum)
    else:
        mean, var = running_mean, running_var
    scale = (var + eps).rsqrt() * (1 if weight is None else weight)
    shift = (0 if bias is None else bias) - mean * scale
    shape = (1, -1, *(1,) * (center.dim() - 2))
    scale, shift = scale.view(shape), shift.view(shape)
    c, r = center * scale + shift, radius * scale.abs()
    clean = None if clean is None else clean * scale + shift
    if relu:
        return reference_interval_relu(c, r, clean=clean, sums=sums)
    found = (c, r) if clean is None else (c, r, clean)
    return (*found, reference_box_sums(c, r)) if sums else found


interval_relu = reference_interval_relu
interval_batch_norm = reference_interval_batch_norm
