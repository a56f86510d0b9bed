"""`masked_whiten`: what a mask keeps, shifted and scaled to mean 0 and variance 1.

Contract, numerics and bytes moved: csrc/advantage/masked_whiten.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup import _op
from warpup._arguments import explained
from warpup.advantage._inputs import mask_like, widened


def reference_masked_whiten(x, mask, *, shift_mean=True, correction=1, eps=1e-8):
    """`masked_whiten` in plain torch."""
    kept, out = x[mask != 0], torch.zeros_like(x)
    if kept.numel() > 0:
        equal = kept.max() == kept.min()
        mean = torch.where(equal, kept.max(), kept.mean())
        var = kept.var(correction=correction) if kept.numel() > 1 else 0 * mean
        factor = torch.where(equal, 0.0, torch.rsqrt(var + eps))
        out[mask != 0] = (kept - mean) * factor + (0 if shift_mean else mean)
    return out


@_op.fake("masked_moments")
def _(x, mask, skip_nan, correction):
    return x.new_empty(4, dtype=torch.float64)


def masked_moments(x: Tensor, mask: Tensor | None = None, *, skip_nan: bool = False, correction: int = 1) -> Tensor:
    """(count, mean, variance, 1 where all are equal) of what the mask keeps, and is not NaN with `skip_nan`: (4,)
    float64. For other operators of the family."""
    return _op.ops.masked_moments(x.contiguous(), mask, skip_nan, correction)


@_op.fake("masked_whiten")
def _(x, mask, shift_mean, correction, eps):
    return x.new_empty(x.shape)


@explained
def masked_whiten(
    x: Tensor, mask: Tensor, *, shift_mean: bool = True, correction: int = 1, eps: float = 1e-8
) -> Tensor:
    """Shift and scale `x` to mean 0 and variance 1 over the mask: `(x - mean) / sqrt(variance + eps)`.

    Two-pass moments over fixed chunks: the same bits for any number of threads. Equal values give exactly 0.

    Args:
        x: any shape, any floating dtype.
        mask: the shape of x, bool or number; nonzero counts. What it leaves out is not read into anything.
        shift_mean: False adds the mean again.
        correction: 1 divides squared deviations by n - 1 (Bessel), 0 by n.
        eps: added to the variance.

    Returns:
        The shape of x, float32 (float64 for float64), 0 outside the mask (TRL 1.16 and verl 0.9.1 leave others there).

    Raises:
        ValueError: a shape or dtype does not fit, correction is not 0 or 1.

    Source: TRL 1.16 and verl 0.9.1, masked_whiten.
    """
    op = "masked_whiten"
    mask = mask_like(op, mask, x).contiguous()
    return _op.ops.masked_whiten(widened(op, "x", x).contiguous(), mask, shift_mean, correction, eps)
