"""What torch.func's transforms and forward-mode AD need of an operator: vmap's rule, and gradients that refuse to be
differentiated again. Neither asks `requires_grad`: who chooses a path by it must ask `transformed()` too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

functorch: Any = torch._C._functorch  # pyright: ignore[reportAttributeAccessIssue]  torch's stubs lack it


def transformed() -> bool:
    """Whether a transform (grad, vjp, jvp, vmap, ...) or a level of dual numbers is active."""
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def beyond_reverse_mode() -> bool:
    """Whether vmap or forward mode is active: a gradient that is made beforehand serves reverse mode alone."""
    if torch.compiler.is_compiling():  # which cannot trace the question
        return False
    levels = functorch.get_interpreter_stack() or ()
    return forward_ad._current_level >= 0 or any(x.key() != functorch.TransformType.Grad for x in levels)


def unwrapped(t: Tensor) -> Tensor:
    """The values that `t` has beneath all transforms, for checks that look at them."""
    t = t.detach()
    while functorch.is_functorch_wrapped_tensor(t):
        t = functorch.get_unwrapped(t)
    return t


def vmap_rule(function: Callable, shared: Sequence[int] | None = None) -> Callable:
    """`function` under vmap, as `torch.autograd.Function.vmap` and `torch.library.register_vmap` take it: one call on
    tensors with one more leading dimension, or else a call for each element.

    Args:
        function: gives a tensor or several.
        shared: positions of the tensors that have no leading dimensions, where all others and all results may have any
            number of them (a result that is None or of shape (0,) was not asked for). None: there is none such.
    """

    def rule(info, in_dims, *arguments):
        size = info.batch_size

        def batched(i: int) -> bool:
            return isinstance(arguments[i], Tensor) and in_dims[i] is not None

        front = [a.movedim(in_dims[i], 0).contiguous() if batched(i) else a for i, a in enumerate(arguments)]
        if shared is not None and not any(batched(i) for i in shared):
            found = function(
                *(
                    a.expand(size, *a.shape).contiguous()
                    if isinstance(a, Tensor) and not batched(i) and i not in shared
                    else a
                    for i, a in enumerate(front)
                )
            )
            if isinstance(found, Tensor):
                return found, 0
            return tuple(found), tuple(None if r is None or r.shape == (0,) else 0 for r in found)
        each = [function(*(a[b] if batched(i) else a for i, a in enumerate(front))) for b in range(size)]
        if isinstance(each[0], Tensor):
            return torch.stack(each), 0
        stacked = tuple(None if r[0] is None else torch.stack(r) for r in zip(*each, strict=True))
        return stacked, tuple(None if r is None else 0 for r in stacked)

    return rule


class _Once(torch.autograd.Function):
    """A copy of a gradient that depends on `sources`; its own derivative is an error."""

    generate_vmap_rule = True

    @staticmethod
    def forward(gradient, *sources):
        return gradient.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, *_):
        raise RuntimeError(
            "warpup's operators have no second derivative: their gradients were differentiated again "
            "(create_graph=True, hessian, jvp of grad). Where you need one, use its `reference_` function, beside it "
            "in its module"
        )

    jvp = backward  # torch gives the tangents one by one


def once(gradient: Tensor, sources: Sequence) -> Tensor:
    """The gradient, which raises where it is differentiated again, if it was made of `sources` that could ask it."""
    sources = [t for t in sources if isinstance(t, Tensor) and (t.requires_grad or transformed())]
    return _Once.apply(gradient, *sources) if sources else gradient


def once_differentiable(backward: Callable) -> Callable:
    """`backward(ctx, saved, *gradients)` as autograd takes it, with saved = ctx.saved_tensors, but its results raise
    where they are differentiated again, by what it saved or was given. torch's decorator of this name heeds only what
    was given; else the term would be missing without a word. Activation checkpointing lets saved tensors be read but
    once."""

    @wraps(backward)
    def guarded(ctx, *gradients):
        saved = ctx.saved_tensors
        if torch.compiler.is_compiling() or not (torch.is_grad_enabled() or transformed()):
            return backward(ctx, saved, *gradients)
        with torch.no_grad():
            found = backward(ctx, saved, *gradients)
        found = found if isinstance(found, tuple) else (found,)
        return tuple(once(g, (*saved, *gradients)) if isinstance(g, Tensor) else g for g in found)

    return guarded
