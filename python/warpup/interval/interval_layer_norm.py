"""interval_layer_norm and interval_rms_norm: compositions of torch's own functions, differentiated by autograd."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from warpup._arguments import explained
from warpup._op import accumulator
from warpup.interval.interval_box import CenterRadius, checked_box


def _over_root(
    d: Tensor, r: Tensor, n: int, dims: tuple[int, ...], eps: float, least: Tensor, most, spread
) -> CenterRadius:
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


def _scaled(box: CenterRadius, weight: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> CenterRadius:
    center, radius = box
    if weight is not None:
        center, radius = center * weight, radius * weight.abs()
    return (center if bias is None else center + bias).to(dtype), radius.to(dtype)


def _trailing(
    op: str, center: Tensor, radius: Tensor, normalized_shape: int | Sequence[int], **of_shape: Tensor | None
) -> tuple[int, tuple[int, ...]]:
    checked_box(op, (center, radius))
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    if not shape or center.shape[-len(shape) :] != shape:
        raise ValueError(f"{op}: normalized_shape must end center's shape {tuple(center.shape)}, got {shape}")
    for name, t in of_shape.items():
        if t is not None and t.shape != shape:
            raise ValueError(f"{op}: {name} must have the normalized_shape {shape}, got {tuple(t.shape)}")
    n = 1
    for size in shape:
        n *= size
    return n, tuple(range(-len(shape), 0))


@explained
def interval_layer_norm(
    center: Tensor,
    radius: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> CenterRadius:
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
        ValueError: a shape does not fit.
    """
    n, dims = _trailing("interval_layer_norm", center, radius, normalized_shape, weight=weight, bias=bias)
    dtype, center, radius = center.dtype, *(t.to(accumulator(center)) for t in (center, radius))
    d = center - center.mean(dims, keepdim=True)
    r = radius * (1 - 2 / n) + radius.mean(dims, keepdim=True)
    size, reach = (torch.linalg.vector_norm(t, dim=dims, keepdim=True) for t in (d, radius))
    least, most = (size - reach).clamp_min(0).square(), (size + reach).square()
    found = _over_root(d, r, n, dims, eps, least, most, spread=1 + 1 / max(n - 1, 1))
    return _scaled(found, weight, bias, dtype)


@explained
def interval_rms_norm(
    center: Tensor,
    radius: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> CenterRadius:
    """The tightest box of `rms_norm` over all x with |x - center| <= radius.

    `y[i] = x[i] / sqrt((x[i]^2 + Q) / n + eps)`, where x[i] and the sum Q of the others' squares do move freely: both
    bounds are attained, and |y[i]| <= sqrt(n).

    Args:
        center, radius, normalized_shape, weight, eps: as in `torch.nn.functional.rms_norm` (eps None: that of
            the dtype that it is computed in), radius >= 0.

    Returns:
        (center, radius) of center's shape and dtype; 16-bit ones are computed in float32.

    Raises:
        ValueError: a shape does not fit.
    """
    n, dims = _trailing("interval_rms_norm", center, radius, normalized_shape, weight=weight)
    eps = torch.finfo(accumulator(center)).eps if eps is None else eps
    dtype, center, radius = center.dtype, *(t.to(accumulator(center)) for t in (center, radius))
    free = center.new_zeros(()), center.new_full((), torch.inf)
    return _scaled(_over_root(center, radius, n, dims, eps, *free, spread=1), weight, None, dtype)
