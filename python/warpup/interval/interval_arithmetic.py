"""Arithmetic on boxes: products, quotients, powers, roots, logarithms and extremes, element by element.

Each gives the tightest box of its function, by the function's values at a few places: the ends, and 0 where it turns
there. Compositions of torch's own functions, differentiated by autograd.

A function that ends somewhere, as the logarithm does at 0, has no bound on a box that reaches there: that is an error
on a CPU, and NaN or infinity on a GPU, where looking would wait for it. A box of radius 0 is a number, and gets what
torch gives.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from warpup._arguments import explained
from warpup.interval.interval_box import CenterRadius, checked_box

Ends = tuple[Tensor, Tensor]  # lower, upper


class OutsideDomain(ValueError):
    """A box that reaches to where a function has no value."""


def ends_of(box: CenterRadius) -> Ends:
    center, radius = box
    return center - radius, center + radius


def box_of(ends: Ends) -> CenterRadius:
    lower, upper = ends
    return (lower + upper) / 2, (upper - lower) / 2


def require(what: str, wrong: Tensor, lower: Tensor, upper: Tensor, remedy: str) -> None:
    """OutsideDomain if any box with an extent is wrong; see the module's text for where this is not looked at."""
    if lower.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = wrong & (upper > lower)
    if wrong.any():
        l, u = (end.detach()[wrong].flatten()[0].item() for end in (lower, upper))
        raise OutsideDomain(f"{what}, got a box from {l:.6g} to {u:.6g}: {remedy}")


# ---- On ends


def product(x: Ends, y: Ends) -> Ends:
    """One of the four products of ends is the least, one the greatest."""
    corners = [a * b for a in x for b in y]
    return reduce(torch.minimum, corners), reduce(torch.maximum, corners)


def inverse(x: Ends) -> Ends:
    lower, upper = x
    require(
        "a divisor must not reach 0", (lower <= 0) & (upper >= 0), lower, upper,
        "keep it away from 0, as by a clamp or by adding a constant to what is positive",
    )  # fmt: skip
    return 1 / upper, 1 / lower


def quotient(x: Ends, y: Ends) -> Ends:
    """x / y, not x (1 / y): a division is rounded once."""
    inverse(y)
    corners = [a / b for a in x for b in y]
    return reduce(torch.minimum, corners), reduce(torch.maximum, corners)


def absolute(x: Ends) -> Ends:
    lower, upper = x
    inside = (lower < 0) & (upper > 0)
    return torch.minimum(lower.abs(), upper.abs()).masked_fill(inside, 0), torch.maximum(lower.abs(), upper.abs())


def power(x: Ends, exponent: float) -> Ends:
    whole = float(exponent).is_integer()
    if not whole:
        lower, upper = x
        least = "above" if exponent < 0 else "at least"
        wrong = lower <= 0 if exponent < 0 else lower < 0
        require(f"the base of a power {exponent:g} must be {least} 0", wrong, lower, upper, "clamp it there")
    if whole and exponent % 2 == 0:
        x = absolute(x)
    if exponent < 0 and whole:
        inverse(x)  # its domain
    at = [end**exponent for end in x]
    # Of bases of at least 0, and for odd exponents of any, x^n rises where n > 0 and falls where n < 0.
    return (at[1], at[0]) if exponent < 0 else (at[0], at[1])


def root(x: Ends) -> Ends:
    lower, upper = x
    require("a square root needs numbers of at least 0", lower < 0, lower, upper, "clamp its input at 0")
    return lower.sqrt(), upper.sqrt()


def logarithm(x: Ends) -> Ends:
    lower, upper = x
    require(
        "a logarithm needs numbers above 0", lower <= 0, lower, upper,
        "make its input positive, as by a clamp at a small number or by softplus",
    )  # fmt: skip
    return lower.log(), upper.log()


# ---- On boxes


def _named(op: str, function, *boxes, **options) -> CenterRadius:
    for name, box in zip("ab", boxes, strict=False):
        checked_box(op, box, "" if len(boxes) == 1 else f" of {name}")
    try:
        return box_of(function(*(ends_of(box) for box in boxes), **options))
    except OutsideDomain as error:
        raise OutsideDomain(f"{op}: {error}") from None


def interval_mul(a: CenterRadius, b: CenterRadius) -> CenterRadius:
    """The box of `x * y`, element by element, over x in `a` and y in `b`: exact where they are independent, else sound.

    Args:
        a, b: (center, radius) of shapes that broadcast, radius >= 0. As in all functions of this module a radius is not
            checked: a negative one gives what is no box, a NaN spreads.

    Returns:
        (center, radius) of the broadcast shape.

    Raises:
        ValueError: a radius has another shape than its center.
    """
    return _named("interval_mul", product, a, b)


def interval_div(a: CenterRadius, b: CenterRadius) -> CenterRadius:
    """The box of `x / y`; see `interval_mul`. Raises ValueError also where `b` reaches 0 (on a CPU; a GPU gives inf or
    NaN)."""
    return _named("interval_div", quotient, a, b)


@explained
def interval_pow(center: Tensor, radius: Tensor, exponent: float) -> CenterRadius:
    """The tightest box of `x ** exponent` over all x with |x - center| <= radius; see `interval_mul`.

    exponent: a number. Whole ones take any base (below 0: one that keeps off 0), others a base of at least 0 (below 0:
    above 0); else ValueError on a CPU, NaN or inf on a GPU.
    """
    return _named("interval_pow", power, (center, radius), exponent=exponent)


@explained
def interval_sqrt(center: Tensor, radius: Tensor) -> CenterRadius:
    """The tightest box of `sqrt(x)`; see `interval_mul`. ValueError where it reaches below 0 (on a CPU; a GPU gives
    NaN). At a lower end of 0 the slope is infinite, as torch's."""
    return _named("interval_sqrt", root, (center, radius))


@explained
def interval_log(center: Tensor, radius: Tensor) -> CenterRadius:
    """The tightest box of `log(x)`; see `interval_mul`. ValueError where it reaches 0 (on a CPU; a GPU gives inf or
    NaN)."""
    return _named("interval_log", logarithm, (center, radius))


@explained
def interval_abs(center: Tensor, radius: Tensor) -> CenterRadius:
    """The tightest box of `abs(x)`; see `interval_mul`."""
    return _named("interval_abs", absolute, (center, radius))


def interval_maximum(a: CenterRadius, b: CenterRadius) -> CenterRadius:
    """The exact box of the larger of x and y; see `interval_mul`."""
    return _named("interval_maximum", lambda x, y: tuple(map(torch.maximum, x, y)), a, b)


def interval_minimum(a: CenterRadius, b: CenterRadius) -> CenterRadius:
    """The exact box of the smaller of x and y; see `interval_mul`."""
    return _named("interval_minimum", lambda x, y: tuple(map(torch.minimum, x, y)), a, b)
