"""interval_sigmoid, interval_tanh, interval_gelu and the other element-wise functions: the tightest box of f(x).

One kernel serves them all; contract, numerics and bytes moved: csrc/interval/interval_activation.h.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from warpup import _autograd, _op
from warpup._arguments import explained

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


@_op.fake("interval_activation")
def _(center, radius, clean, kind, a, b):
    box = (center.new_empty(center.shape) for _ in range(2))
    return *box, center.new_empty(0 if clean is None else center.shape)


_interval_activation = _autograd.differentiable(
    "interval_activation", when={"out_clean": "clean"}, leading=True, own_row=True
)


def _activation(kind: str, center: Tensor, radius: Tensor, clean: Tensor | None, a: float = 0.0, b: float = 0.0):
    given = (None if t is None else t.contiguous() for t in (center, radius, clean))
    *box, of_clean = _interval_activation(*given, kind, float(a), float(b))
    return tuple(box) if clean is None else (*box, of_clean)


@explained
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


@explained
def interval_tanh(center: Tensor, radius: Tensor, *, clean: Tensor | None = None) -> tuple[Tensor, ...]:
    """The tightest box of `tanh(x)`; see `interval_sigmoid`."""
    return _activation("tanh", center, radius, clean)


@explained
def interval_gelu(
    center: Tensor, radius: Tensor, *, approximate: str = "none", clean: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The tightest box of `gelu(x)`; see `interval_sigmoid`. approximate: "none" or "tanh", as in torch.

    Its minimum, -.17 at -.7518, is the lower bound only of a box that holds it: of [5, 6] it is gelu(5), not -.17.
    """
    if approximate not in ("none", "tanh"):
        raise ValueError(f"interval_gelu: approximate must be none or tanh, got {approximate!r}")
    return _activation("gelu" if approximate == "none" else "gelu_tanh", center, radius, clean)


@explained
def interval_silu(center: Tensor, radius: Tensor, *, clean: Tensor | None = None) -> tuple[Tensor, ...]:
    """The tightest box of `x sigmoid(x)`, whose minimum is -.2785 at -1.2785; see `interval_sigmoid`."""
    return _activation("silu", center, radius, clean)


@explained
def interval_hardswish(center: Tensor, radius: Tensor, *, clean: Tensor | None = None) -> tuple[Tensor, ...]:
    """The tightest box of `x relu6(x + 3) / 6`, whose minimum is -.375 at -1.5; see `interval_sigmoid`."""
    return _activation("hardswish", center, radius, clean)


@explained
def interval_leaky_relu(
    center: Tensor, radius: Tensor, negative_slope: float = 0.01, *, clean: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The tightest box of `x if x > 0 else negative_slope x`; see `interval_sigmoid`. negative_slope >= 0."""
    return _activation("leaky_relu", center, radius, clean, negative_slope)


@explained
def interval_elu(
    center: Tensor, radius: Tensor, alpha: float = 1.0, *, clean: Tensor | None = None
) -> tuple[Tensor, ...]:
    """The tightest box of `x if x > 0 else alpha (e^x - 1)`; see `interval_sigmoid`. alpha >= 0."""
    return _activation("elu", center, radius, clean, alpha)


@explained
def interval_softplus(center: Tensor, radius: Tensor, *, clean: Tensor | None = None) -> tuple[Tensor, ...]:
    """The tightest box of `log(1 + e^x)`; see `interval_sigmoid`."""
    return _activation("softplus", center, radius, clean)


@explained
def interval_exp(center: Tensor, radius: Tensor, *, clean: Tensor | None = None) -> tuple[Tensor, ...]:
    """The tightest box of `e^x`; see `interval_sigmoid`."""
    return _activation("exp", center, radius, clean)


@explained
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
