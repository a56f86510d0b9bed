"""What the functions of this family ask of their tensors before a kernel sees them.

Advantages are constants of the loss: nothing in this family has a gradient, so inputs that require one are detached.
"""

from __future__ import annotations

import torch
from torch import Tensor


def fail(op: str, message: str):
    raise ValueError(f"{op}: {message}")


def check_shape(op: str, name: str, x: Tensor, shape: tuple) -> None:
    if tuple(x.shape) != tuple(shape):
        fail(op, f"{name} must have shape {tuple(shape)}, got {tuple(x.shape)}")


def widened(op: str, name: str, x: Tensor, *others: Tensor | None) -> Tensor:
    """`x` in the type that is computed in: float64 where it or another is float64, else float32."""
    if not x.is_floating_point():
        fail(op, f"{name} must be a floating tensor, got {x.dtype}")
    x = x.detach() if x.requires_grad else x
    wide = x.dtype == torch.float64 or (others and any(t is not None and t.dtype == torch.float64 for t in others))
    dtype = torch.float64 if wide else torch.float32
    return x if x.dtype == dtype else x.to(dtype)


def mask_like(op: str, mask: Tensor, x: Tensor) -> Tensor:
    """`mask`, of the shape of `x`, as bool."""
    check_shape(op, "mask", mask, x.shape)
    return mask if mask.dtype == torch.bool else mask != 0


def eps_of(op: str, eps: float | None, scale: str, default: float) -> float:
    """What is added to the scale: `eps`, or the default where it is not given. Without a scale it must not be given."""
    if eps is not None and scale == "none":
        fail(op, f"eps is added to the scale, and scale='none' divides by nothing: leave eps out, got {eps}")
    return default if eps is None else eps
