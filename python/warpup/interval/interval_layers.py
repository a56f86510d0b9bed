"""Boxes through what needs no kernel of its own: the input's box, sums, pooling, layer and RMS normalisation.

Compositions of torch's own functions, differentiated by autograd. As everywhere, radius >= 0 is not checked element by
element: a negative radius gives what is no box, a NaN spreads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from warpup._op import accumulator

Pair = tuple[Tensor, Tensor]  # center, radius


def interval_box(
    x: Tensor,
    eps: float | Sequence[float] | Tensor,
    *,
    low: float | Sequence[float] | Tensor | None = None,
    high: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
) -> Pair:
    """The box of all inputs within eps of `x`, element by element, that are valid: within [low, high].

    Args:
        x: (B, C, ...), a floating dtype.
        eps: how far each element may move, in units of the data; low, high: the valid range of x; std: what the data
            was divided by, so that x moves by eps / std. Each a number or one a channel, (C,). low and high are in the
            units of x: (0 - mean) / std and (1 - mean) / std for images.

    Returns:
        (center, radius) of x's shape and dtype. An x out of range by more than eps is left with the end it is nearest.

    Raises:
        ValueError: eps is below 0 or std not above 0 where they are numbers or sequences, or a shape does not fit.
    """

    def per_channel(name, value, allowed):
        if value is None:
            return None
        if not isinstance(value, Tensor):
            numbers = value if isinstance(value, Sequence) else [value]
            if not all(allowed(n) for n in numbers):
                raise ValueError(
                    f"interval_box: {name} must be {'at least' if name == 'eps' else 'above'} 0, got {value}"
                )
            value = torch.tensor(value, dtype=torch.float64, device=x.device)
        elif value.is_cpu and not torch.compiler.is_compiling() and not all(map(allowed, value.flatten().tolist())):
            raise ValueError(f"interval_box: {name} must be {'at least' if name == 'eps' else 'above'} 0, got {value}")
        value = value.to(x.dtype)
        if value.dim() == 0:
            return value
        if x.dim() < 2 or value.shape != x.shape[1:2]:
            channels = tuple(x.shape[1:2])
            raise ValueError(f"interval_box: {name} must be one number or {channels}, got shape {tuple(value.shape)}")
        return value.view(-1, *[1] * (x.dim() - 2))

    eps, std = per_channel("eps", eps, lambda n: n >= 0), per_channel("std", std, lambda n: n > 0)
    low, high = (per_channel(name, value, lambda n: True) for name, value in (("low", low), ("high", high)))
    reach = eps if std is None else eps / std
    up = down = reach.expand(x.shape)  # distances, not x +- reach, which loses a small reach
    if low is not None:
        up, down = torch.maximum(up, low - x), torch.minimum(down, x - low)
    if high is not None:
        up, down = torch.minimum(up, high - x), torch.maximum(down, x - high)
    return x + (up - down) / 2, (up + down) / 2


def interval_add(a: Pair, b: Pair) -> Pair:
    """The box of `x + y` over x in `a` and y in `b`: exact where they are independent, else sound."""
    return a[0] + b[0], a[1] + b[1]


def interval_sub(a: Pair, b: Pair) -> Pair:
    """The box of `x - y` over x in `a` and y in `b`: exact where they are independent, else sound."""
    return a[0] - b[0], a[1] + b[1]


def rising(function: Callable, center: Tensor, radius: Tensor, *options) -> Pair:
    """The tightest box of a function that does not fall in any element: from that of the lower ends to that of the
    upper ends."""
    lower, upper = (function(end, *options) for end in (center - radius, center + radius))
    return (lower + upper) / 2, (upper - lower) / 2


def interval_max_pool2d(
    center: Tensor, radius: Tensor, kernel_size, stride=None, padding=0, dilation=1, ceil_mode: bool = False
) -> Pair:
    """The tightest box of `max_pool2d`, which is monotone."""
    return rising(F.max_pool2d, center, radius, kernel_size, stride, padding, dilation, ceil_mode)


def interval_avg_pool2d(center: Tensor, radius: Tensor, kernel_size, stride=None, padding=0, **options) -> Pair:
    """The exact box of `avg_pool2d`, which is linear with weights >= 0. options: as torch's."""
    return tuple(F.avg_pool2d(t, kernel_size, stride, padding, **options) for t in (center, radius))


def interval_adaptive_avg_pool2d(center: Tensor, radius: Tensor, output_size) -> Pair:
    """The exact box of `adaptive_avg_pool2d`."""
    return tuple(F.adaptive_avg_pool2d(t, output_size) for t in (center, radius))


# ---- normalisation --------------------------------------------------------------------------------------------------


def _over_root(d: Tensor, r: Tensor, n: int, dims: tuple[int, ...], eps: float, least: Tensor, most, spread) -> Pair:
    """The box of `d[i] / sqrt(E / n + eps)`, E = sum d^2, over the box d +- r, least <= E <= most.

    It rises with d[i], and for a given d[i] shrinks towards 0 as the sum Q of the others' squares grows. So the upper
    bound stands at d[i]'s upper end: with the least Q where that is positive, with the greatest where it is not.
    spread: 1 + 1 / (n - 1) where the d sum to 0, and so Q >= d[i]^2 / (n - 1); else 1."""
    near, far = (d.abs() - r).clamp_min(0).square(), (d.abs() + r).square()
    near, far = (t.sum(dims, keepdim=True) - t for t in (near, far))  # of the others

    def at(end: Tensor, away: Tensor) -> Tensor:
        """away: whether 0 is not between the end and the other one, seen from the end: the nearest value counts."""
        square = end.square()
        small = torch.maximum(torch.maximum(square + near, square * spread), least)
        return end / (torch.where(away, torch.minimum(square + far, most), small) / n + eps).sqrt()

    lower, upper = at(d - r, d - r > 0), at(d + r, d + r < 0)
    return (lower + upper) / 2, (upper - lower).clamp_min(0) / 2  # of a box without width they differ by roundings


def _scaled(box: Pair, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Pair:
    center, radius = box
    if weight is not None:
        center, radius = center * weight, radius * weight.abs()
    return (center if bias is None else center + bias).to(dtype), radius.to(dtype)


def _trailing(op: str, center: Tensor, normalized_shape: int | Sequence[int]) -> tuple[int, tuple[int, ...]]:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or center.shape[-len(shape) :] != shape:
        raise ValueError(f"{op}: normalized_shape must end center's shape {tuple(center.shape)}, got {shape}")
    n = 1
    for size in shape:
        n *= size
    return n, tuple(range(-len(shape), 0))


def interval_layer_norm(
    center: Tensor,
    radius: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Pair:
    """A box of `layer_norm` over all x with |x - center| <= radius.

    The box of `d = x - mean(x)` is exact. Then `y[i] = d[i] / sqrt((d[i]^2 + Q) / n + eps)`, bounded as if d[i] and the
    sum Q of the others' squares moved freely within what holds of them: Q from the others' boxes, sum d^2 within
    (|Pc| -+ |r|)^2, and Q >= d[i]^2 / (n - 1), since the d sum to 0. So |y[i]| <= sqrt(n - 1) however wide the box, a
    box of radius 0 gives layer_norm itself, and what is lost is only that d[i] and Q move together.

    Args:
        center, radius, normalized_shape, weight, bias, eps: as in `torch.nn.functional.layer_norm`, radius >= 0.

    Returns:
        (center, radius) of center's shape and dtype; 16-bit ones are computed in float32.

    Raises:
        ValueError: normalized_shape does not fit.
    """
    n, dims = _trailing("interval_layer_norm", center, normalized_shape)
    dtype, center, radius = center.dtype, *(t.to(accumulator(center)) for t in (center, radius))
    d = center - center.mean(dims, keepdim=True)
    r = radius * (1 - 2 / n) + radius.mean(dims, keepdim=True)
    size, reach = (torch.linalg.vector_norm(t, dim=dims, keepdim=True) for t in (d, radius))
    least, most = (size - reach).clamp_min(0).square(), (size + reach).square()
    found = _over_root(d, r, n, dims, eps, least, most, spread=1 + 1 / max(n - 1, 1))
    return _scaled(found, weight, bias, dtype)


def interval_rms_norm(
    center: Tensor,
    radius: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Pair:
    """The tightest box of `rms_norm` over all x with |x - center| <= radius.

    `y[i] = x[i] / sqrt((x[i]^2 + Q) / n + eps)`, where x[i] and the sum Q of the others' squares do move freely: both
    bounds are attained, and |y[i]| <= sqrt(n).

    Args:
        center, radius, normalized_shape, weight, eps: as in `torch.nn.functional.rms_norm` (eps None: that of
            the dtype that it is computed in), radius >= 0.

    Returns:
        (center, radius) of center's shape and dtype; 16-bit ones are computed in float32.

    Raises:
        ValueError: normalized_shape does not fit.
    """
    n, dims = _trailing("interval_rms_norm", center, normalized_shape)
    eps = torch.finfo(accumulator(center)).eps if eps is None else eps
    dtype, center, radius = center.dtype, *(t.to(accumulator(center)) for t in (center, radius))
    free = center.new_zeros(()), center.new_full((), torch.inf)
    return _scaled(_over_root(center, radius, n, dims, eps, *free, spread=1), weight, None, dtype)
