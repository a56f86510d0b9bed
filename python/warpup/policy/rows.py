"""Rows of tokens, padded (B, T) or packed (N,) with `cu_seqlens` (S + 1,): sums over them, values of them, checks."""

from __future__ import annotations

import torch
from torch import Tensor

from warpup._op import accumulator


def per_token(values: Tensor, like: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """One value a row, or one a token, as one a token of `like`."""
    rows = like.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if values.dim() != 1 or values.shape[0] != rows:
        return values
    if cu_seqlens is None:
        return values.unsqueeze(-1).expand_as(like)
    return torch.repeat_interleave(values, cu_seqlens.diff(), output_size=like.shape[0])


def check_tokens(
    op: str, advantages: Tensor | None = None, cu_seqlens: Tensor | None = None, **tensors: Tensor
) -> None:
    """Raises ValueError unless the tensors have one shape, and the advantages that or one a row: torch would broadcast
    what has not."""
    (first, shape), *others = ((name, t.shape) for name, t in tensors.items())
    for name, other in others:
        if other != shape:
            raise ValueError(f"{op}: {name} must have {first}'s shape {tuple(shape)}, got {tuple(other)}")
    if cu_seqlens is not None and (cu_seqlens.dim() != 1 or len(cu_seqlens) < 1 or len(shape) != 1):
        raise ValueError(
            f"{op}: cu_seqlens (S + 1,) goes with {first} (N,), got {tuple(cu_seqlens.shape)} and {tuple(shape)}"
        )
    if advantages is not None:
        rows = shape[:1] if cu_seqlens is None else (len(cu_seqlens) - 1,)
        if advantages.shape not in (shape, rows):
            raise ValueError(
                f"{op}: advantages must have shape {tuple(rows)} or {tuple(shape)}, got {tuple(advantages.shape)}"
            )


def row_sums(x: Tensor, cu_seqlens: Tensor | None = None) -> Tensor:
    """The sum over each row. Floats are added in float64, and the sum is float32 (or float64), so that packed and
    padded rows agree: `index_add` adds one after the other, and in bfloat16 stalls at 256 ones."""
    dtype = accumulator(x) if x.is_floating_point() else x.dtype
    x = x.double() if x.is_floating_point() else x
    if cu_seqlens is None:
        return x.sum(-1).to(dtype)
    rows = torch.arange(cu_seqlens.shape[0] - 1, device=x.device)
    return x.new_zeros(rows.shape).index_add(0, per_token(rows, x, cu_seqlens), x).to(dtype)


def widened(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Floats of any types in the one that is computed in."""
    wide = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return tuple(t.to(wide) for t in tensors)
