"""The tightest box of each softmax probability over a box of logits.

Contract, numerics and bytes moved: csrc/interval/interval_softmax.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup import _autograd, _op
from warpup._arguments import explained


def reference_interval_softmax(center, radius, dim=-1):
    """`interval_softmax` in plain torch, with all sums of all but one: O(n^2) memory."""
    low, high = (end.movedim(dim, -1) for end in (center - radius, center + radius))
    n = low.shape[-1]
    own = torch.eye(n, dtype=torch.bool, device=low.device)

    def share(mine, theirs):
        competing = torch.where(own, mine.unsqueeze(-1), theirs.unsqueeze(-2))
        possible = (competing != -torch.inf).any(-1, keepdim=True)
        found = competing.masked_fill(~possible, 0.0).softmax(-1) * possible
        return found.diagonal(dim1=-2, dim2=-1).movedim(-1, dim)

    lower, upper = share(low, high), share(high, low)
    return (lower + upper) / 2, (upper - lower) / 2


@_op.fake("interval_softmax")
def _(center, radius):
    return center.new_empty(center.shape), center.new_empty(center.shape)


_interval_softmax = _autograd.differentiable("interval_softmax", leading=True)


@explained
def interval_softmax(center: Tensor, radius: Tensor, dim: int = -1) -> tuple[Tensor, Tensor]:
    """The tightest box of each `softmax(x, dim)[i]` over all x with |x - center| <= radius.

    `lower[i] = e^l[i] / (e^l[i] + sum_{j != i} e^u[j])` and upper[i] with l and u exchanged, in one pass of O(n) memory
    whose sums without i do not cancel, however much one logit dominates.

    Args:
        center, radius: as in `interval_sigmoid`, of one dimension at least. A center of -inf (a mask) with a finite
            radius has the box 0 +- 0, exactly; where all are, so do all, without gradient. One center of inf has the
            limit, 1 +- 0 and 0 +- 0 beside it, where plain softmax is NaN; two make the row NaN. A radius of inf gives
            0 to 1, two give NaN.
        dim: the dimension that sums to 1; another than the last is copied to be last.

    Returns:
        (center, radius). The probabilities sum to 1, which their boxes do not say.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    if center.dim() and dim not in (-1, center.dim() - 1):
        center, radius = interval_softmax(center.movedim(dim, -1), radius.movedim(dim, -1))
        return center.movedim(-1, dim), radius.movedim(-1, dim)
    return _interval_softmax(center.contiguous(), radius.contiguous())
