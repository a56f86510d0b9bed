"""The box of a network's inputs, and interval_add and interval_sub of two boxes.

Compositions of torch's own functions, differentiated by autograd. As everywhere, radius >= 0 is not checked
element by element: a negative radius gives what is no box, a NaN spreads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from warpup._arguments import explained

CenterRadius = tuple[Tensor, Tensor]  # a box: all x with |x - center| <= radius


def checked_box(op: str, box: CenterRadius, of: str = "") -> None:
    """ValueError where the radius would be broadcast: `of` says whose it is."""
    center, radius = box
    if radius.shape != center.shape:
        wanted, got = tuple(center.shape), tuple(radius.shape)
        raise ValueError(f"{op}: radius{of} must have its center's shape {wanted}, got {got}")


@explained
def interval_box(
    x: Tensor,
    eps: float | Sequence[float] | Tensor,
    *,
    low: float | Sequence[float] | Tensor | None = None,
    high: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
) -> CenterRadius:
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

    def per_channel(name: str, value: float | Sequence[float] | Tensor, allowed: Callable[[float], bool]) -> Tensor:
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

    reach = per_channel("eps", eps, lambda n: n >= 0)
    if std is not None:
        reach = reach / per_channel("std", std, lambda n: n > 0)
    up = down = reach.expand(x.shape)  # distances, not x +- reach, which loses a small reach
    if low is not None:
        lowest = per_channel("low", low, lambda n: True)
        up, down = torch.maximum(up, lowest - x), torch.minimum(down, x - lowest)
    if high is not None:
        highest = per_channel("high", high, lambda n: True)
        up, down = torch.minimum(up, highest - x), torch.maximum(down, x - highest)
    return x + (up - down) / 2, (up + down) / 2


def interval_add(a: CenterRadius, b: CenterRadius) -> CenterRadius:
    """The box of `x + y` over x in `a` and y in `b`: exact where they are independent, else sound."""
    checked_box("interval_add", a, " of a"), checked_box("interval_add", b, " of b")
    return a[0] + b[0], a[1] + b[1]


def interval_sub(a: CenterRadius, b: CenterRadius) -> CenterRadius:
    """The box of `x - y` over x in `a` and y in `b`: exact where they are independent, else sound."""
    checked_box("interval_sub", a, " of a"), checked_box("interval_sub", b, " of b")
    return a[0] - b[0], a[1] + b[1]
