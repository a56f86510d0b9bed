"""What the autograd functions of all families share."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps

import torch
from torch import Tensor


class _Twice(torch.autograd.Function):
    """A copy of a gradient that depends on `sources`; its own backward is an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient, *sources):
        return gradient.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, _):
        raise RuntimeError(
            "warpup's operators have no second derivative: their gradients were differentiated again "
            "(create_graph=True). Where you need one, use its `reference_` function in warpup.ops"
        )


def once_differentiable(backward: Callable) -> Callable:
    """A `backward` whose results raise where they are differentiated again, by what it saved or was given. torch's
    decorator of this name heeds only what was given; else the term would be missing without a word."""

    @wraps(backward)
    def once(ctx, *gradients):
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return backward(ctx, *gradients)
        sources = [t for t in (*ctx.saved_tensors, *gradients) if isinstance(t, Tensor) and t.requires_grad]
        with torch.no_grad():
            found = backward(ctx, *gradients)
        found = found if isinstance(found, tuple) else (found,)
        return tuple(_Twice.apply(g, *sources) if isinstance(g, Tensor) else g for g in found)

    return once
