"""interval_max_pool2d, interval_avg_pool2d and interval_adaptive_avg_pool2d: boxes through pooling, by torch's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from warpup._arguments import explained
from warpup.interval.interval_box import CenterRadius, checked_box


def rising(function: Callable, center: Tensor, radius: Tensor, *options) -> CenterRadius:
    """The tightest box of a function that does not fall in any element: from that of the lower ends to that of the
    upper ends."""
    lower, upper = (function(end, *options) for end in (center - radius, center + radius))
    return (lower + upper) / 2, (upper - lower) / 2


@explained
def interval_max_pool2d(
    center: Tensor, radius: Tensor, kernel_size, stride=None, padding=0, dilation=1, ceil_mode: bool = False
) -> CenterRadius:
    """The tightest box of `max_pool2d`, which is monotone. Raises ValueError where the shapes differ."""
    checked_box("interval_max_pool2d", (center, radius))
    return rising(F.max_pool2d, center, radius, kernel_size, stride, padding, dilation, ceil_mode)


@explained
def interval_avg_pool2d(center: Tensor, radius: Tensor, kernel_size, stride=None, padding=0, **options) -> CenterRadius:
    """The exact box of `avg_pool2d`, which is linear with weights >= 0. options: as torch's. Raises ValueError where
    the shapes of center and radius differ."""
    checked_box("interval_avg_pool2d", (center, radius))
    center, radius = (F.avg_pool2d(t, kernel_size, stride, padding, **options) for t in (center, radius))
    return center, radius


@explained
def interval_adaptive_avg_pool2d(center: Tensor, radius: Tensor, output_size) -> CenterRadius:
    """The exact box of `adaptive_avg_pool2d`. Raises ValueError where the shapes of center and radius differ."""
    checked_box("interval_adaptive_avg_pool2d", (center, radius))
    return F.adaptive_avg_pool2d(center, output_size), F.adaptive_avg_pool2d(radius, output_size)
