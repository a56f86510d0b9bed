"""Boxes through element-wise functions and softmax, with the tightest bounds.

Contracts, numerics and bytes moved: csrc/interval/interval_activation.h, csrc/interval/interval_softmax.h.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from warpup import _op
from warpup._op import once_differentiable

_op.raw(
    "interval_activation", "interval_activation_backward", "interval_softmax", "interval_softmax_backward"
)  # fmt: skip

FUNCTIONS = {  # of x and the two numbers that some of them take
    "sigmoid": lambda x, a, b: x.sigmoid(),
    "tanh": lambda x, a, b: x.tanh(),
    "gelu": lambda x, a, b: F.gelu(x),
    "gelu_tanh": lambda x, a, b: F.gelu(x, approximate="tanh"),
    "silu": lambda x, a, b: F.silu(x),
    "hardswish": lambda x, a, b: F.hardswish(x),
    "leaky_relu": lambda x, a, b: F.leaky_relu(x, a),
    "elu": lambda x, a, b: F.elu(x, a),
    "softplus": lambda x, a, b: F.softplus(x),
    "exp": lambda x, a, b: x.exp(),
    "clamp": lambda x, a, b: x.clamp(a, b),
}
MINIMA = {  # (where, how low) of those that fall before and rise after
    "gelu": (-0.7517915246935644, -0.16997120747990369),
    "gelu_tanh": (-0.7524614220710162, -0.17004075057125412),
    "silu": (-1.2784645427610735, -0.27846454276107385),
    "hardswish": (-1.5, -0.375),
}


def reference_interval_activation(center, radius, *, kind, a=0.0, b=0.0, clean=None):
    """All of the element-wise functions below in plain torch."""
    low, high = center - radius, center + radius
    lower, upper = (FUNCTIONS[kind](end, a, b) for end in (low, high))
    if kind in MINIMA:
        at, least = MINIMA[kind]
        falls, inside = high <= at, (low < at) & (high > at)
        at_low, at_high = lower, upper
        lower = torch.where(inside, least, torch.where(falls, at_high, at_low))
        upper = torch.where(inside, at_low.where(at_low > at_high, at_high), torch.where(falls, at_low, at_high))
    lower = (
        lower - torch.where(radius >= 0, (lower - upper).clamp_min(0), 0).detach()
    )  # they change places by roundings
    box = ((lower + upper) / 2, (upper - lower) / 2)
    return box if clean is None else (*box, FUNCTIONS[kind](clean, a, b))


@torch.library.register_fake("warpup::interval_activation")
@torch.library.register_fake("warpup::interval_activation_backward")
def _(center, radius, clean, *rest):
    last = center.new_empty(0 if clean is None else center.shape)
    return center.new_empty(center.shape), center.new_empty(center.shape), last


class IntervalActivation(torch.autograd.Function):
    @staticmethod
    def forward(center, radius, clean, kind, a, b):
        return _op.ops.interval_activation(center, radius, clean, kind, a, b)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *given, kind, a, b = inputs
        ctx.options = (kind, a, b)
        if given[2] is None:
            ctx.mark_non_differentiable(output[2])
        ctx.save_for_backward(*given)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_center, grad_radius, grad_clean):
        center, radius, clean = ctx.saved_tensors
        grads = [g.contiguous() for g in (grad_center, grad_radius, grad_clean)]
        if clean is None:
            grads[2] = None
        *box, of_clean = _op.ops.interval_activation_backward(center, radius, clean, *ctx.options, *grads)
        return *box, None if clean is None else of_clean, None, None, None


def _activation(kind: str, center: Tensor, radius: Tensor, clean: Tensor | None, a: float = 0.0, b: float = 0.0):
    given = [None if t is None else t.contiguous() for t in (center, radius, clean)]
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        *box, of_clean = IntervalActivation.apply(*given, kind, float(a), float(b))
    else:
        *box, of_clean = _op.ops.interval_activation(*given, kind, float(a), float(b))
    return tuple(box) if clean is None else (*box, of_clean)


def interval_sigmoid(center: Tensor, radius: Tensor, *, clean: Tensor | None = None) -> tuple[Tensor, ...]:
    """The tightest box of `sigmoid(x)` over all x with |x - center| <= radius.

    All the element-wise functions of this module take and give the same:

    Args:
        center, radius: any shape, float32, bfloat16, float16 or float64, radius >= 0. Signs are not checked: a
            negative radius stays negative, or becomes NaN where the function is not monotone (GELU, SiLU, hardswish);
            never is it taken for a box. NaN spreads.
        clean: a plain tensor of the same shape and dtype, which goes through the function in the same pass.

    Returns:
        (center, radius), or (center, radius, f(clean)), of the inputs' dtype, in which they are rounded to nearest.
        Gradients are exact; a lower bound that is the function's own minimum has none.

    Raises:
        ValueError: a shape, dtype or device does not fit.
    """
    return _activation("sigmoid", center, radius, clean)


def interval_tanh(center: Tensor, radius: Tensor, *, clean: Tensor | None = None) -> tuple[Tensor, ...]:
    """The tightest box of `tanh(x)`; see `interval_sigmoid`."""
    return _activation("tanh", center, radius, clean)


def interval_gelu(
    center: Tensor, radius: Tensor, *, approximate: str = "none", clean: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The tightest box of `gelu(x)`; see `interval_sigmoid`. approximate: "none" or "tanh", as in torch.

    Its minimum, -.17 at -.7518, is the lower bound only of a box that holds it: of [5, 6] it is gelu(5), not -.17.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"interval_gelu: approximate must be none or tanh, got {approximate!r}")
    return _activation("gelu" if approximate == "none" else "gelu_tanh", center, radius, clean)


def interval_silu(center: Tensor, radius: Tensor, *, clean: Tensor | None = None) -> tuple[Tensor, ...]:
    """The tightest box of `x sigmoid(x)`, whose minimum is -.2785 at -1.2785; see `interval_sigmoid`."""
    return _activation("silu", center, radius, clean)


def interval_hardswish(center: Tensor, radius: Tensor, *, clean: Tensor | None = None) -> tuple[Tensor, ...]:
    """The tightest box of `x relu6(x + 3) / 6`, whose minimum is -.375 at -1.5; see `interval_sigmoid`."""
    return _activation("hardswish", center, radius, clean)


def interval_leaky_relu(
    center: Tensor, radius: Tensor, negative_slope: float = 0.01, *, clean: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The tightest box of `x if x > 0 else negative_slope x`; see `interval_sigmoid`. negative_slope >= 0."""
    return _activation("leaky_relu", center, radius, clean, negative_slope)


def interval_elu(
    center: Tensor, radius: Tensor, alpha: float = 1.0, *, clean: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The tightest box of `x if x > 0 else alpha (e^x - 1)`; see `interval_sigmoid`. alpha >= 0."""
    return _activation("elu", center, radius, clean, alpha)


def interval_softplus(center: Tensor, radius: Tensor, *, clean: Tensor | None = None) -> tuple[Tensor, ...]:
    """The tightest box of `log(1 + e^x)`; see `interval_sigmoid`."""
    return _activation("softplus", center, radius, clean)


def interval_exp(center: Tensor, radius: Tensor, *, clean: Tensor | None = None) -> tuple[Tensor, ...]:
    """The tightest box of `e^x`; see `interval_sigmoid`."""
    return _activation("exp", center, radius, clean)


def interval_clamp(
    center: Tensor,
    radius: Tensor,
    min: float = -math.inf,
    max: float = math.inf,
    *,
    clean: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """The tightest box of `clamp(x, min, max)`, so of hardtanh and ReLU6 too; see `interval_sigmoid`. min <= max."""
    return _activation("clamp", center, radius, clean, min, max)


# ---- softmax --------------------------------------------------------------------------------------------------------


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


@torch.library.register_fake("warpup::interval_softmax")
@torch.library.register_fake("warpup::interval_softmax_backward")
def _(center, radius, *rest):
    return center.new_empty(center.shape), center.new_empty(center.shape)


class IntervalSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(center, radius):
        return _op.ops.interval_softmax(center, radius)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        return _op.ops.interval_softmax_backward(*ctx.saved_tensors, *(g.contiguous() for g in grads))


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
        found = interval_softmax(center.movedim(dim, -1), radius.movedim(dim, -1))
        return tuple(t.movedim(-1, dim) for t in found)
    given = (center.contiguous(), radius.contiguous())
    if torch.is_grad_enabled() and any(t.requires_grad for t in given):
        return IntervalSoftmax.apply(*given)
    return _op.ops.interval_softmax(*given)
