"""What the autograd functions of all families share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor


class _Twice(torch.autograd.Function):
    """The identity; its own backward is an error."""

    @staticmethod
    def forward(ctx, gradient, _):
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "warpup's operators have no second derivative: their gradients were differentiated again "
            "(create_graph=True). Where you need one, use its `reference_` function in warpup.ops"
        )


def once_differentiable(backward: Callable) -> Callable:
    """A `backward` whose results raise where they are differentiated again. torch's decorator of this name does so only
    where the incoming gradient requires a gradient; else the term would be missing without a word."""

    @wraps(backward)
    def once(ctx, *gradients):
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return backward(ctx, *gradients)
        with torch.no_grad():
            found = backward(ctx, *gradients)
        tracked = torch.empty(0, requires_grad=True)
        found = found if isinstance(found, tuple) else (found,)
        return tuple(_Twice.apply(g, tracked) if isinstance(g, Tensor) else g for g in found)

    return once
