"""Boxes through linear maps: center and radius of W x + b for every x in a box.

A box is (center, radius), radius >= 0: all x with |x - center| <= radius, element by element.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F

Box = tuple[Tensor, Tensor]


def reference_interval_linear(
    center, radius, weight, bias=None, *, weight_radius=None, mode="midpoint", clean=None, sound=False
):  # fmt: skip
    """`interval_linear` in plain torch."""
    return _reference(F.linear, center, radius, weight, bias, weight_radius, mode, clean, sound)


def reference_interval_conv(
    dims, center, radius, weight, bias=None, *, stride=1, padding=0, dilation=1, groups=1, weight_radius=None,
    mode="midpoint", clean=None, sound=False,
):  # fmt: skip
    """`interval_conv1d` (dims 1) and `interval_conv2d` (dims 2) in plain torch."""
    conv = {1: F.conv1d, 2: F.conv2d}[dims]

    def product(x, w, b=None):
        return conv(x, w, b, stride, padding, dilation, groups)

    return _reference(product, center, radius, weight, bias, weight_radius, mode, clean, sound)


def _reference(product, center, radius, weight, bias, weight_radius, mode, clean, sound) -> Any:
    if sound:
        raise NotImplementedError("sound")
    if weight_radius is None:
        c, r = product(center, weight, bias), product(radius, weight.abs())
    elif mode == "midpoint":
        c = product(center, weight, bias)
        r = product(radius, weight.abs()) + product(center.abs() + radius, weight_radius)
    else:
        raise NotImplementedError(mode)
    return (c, r) if clean is None else (c, r, product(clean, weight, bias))


interval_linear = reference_interval_linear


def interval_conv1d(center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None = None, **options):
    return reference_interval_conv(1, center, radius, weight, bias, **options)


def interval_conv2d(center: Tensor, radius: Tensor, weight: Tensor, bias: Tensor | None = None, **options):
    return reference_interval_conv(2, center, radius, weight, bias, **options)
