"""Inputs that the specs of a family share: random tensors, their size, and their way to a device."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.support.case import Inputs


def normal(generator, *shape, dtype=torch.float64) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def moved_to(device: str, inputs: Inputs) -> Inputs:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def size_of(*tensors: Tensor) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)


def within(got: Tensor, want: Tensor, naive: Tensor, scale: float = 1.0) -> None:
    """The rule of `agree` with a scale of 1, the inputs', where the result is smaller: some gradients are exactly 0."""
    if want.numel():
        error, plain = ((t.double() - want).abs().max() for t in (got, naive))
        eps = torch.finfo(got.dtype).eps
        assert error <= 2 * plain + (4 if got.element_size() == 2 else 64) * eps * want.abs().max().clamp_min(scale)
