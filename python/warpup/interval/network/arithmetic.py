"""Rules of powers, roots and logarithms. Sums, products, quotients and extremes: `layers`."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Callable

import torch

from warpup.interval.interval_arithmetic import Ends, absolute, logarithm, power, require, root

from .layers import point, through_ends
from .rules import Box, Refusal, rule


def _of_one(plain: Callable, of_ends: Callable, *targets) -> None:
    @rule(plain, *targets)
    def _(walk, x):
        return through_ends(walk, of_ends, x, clean=None if x.clean is None else plain(x.clean))


def _logarithm1p(x: Ends) -> Ends:
    lower, upper = x
    require("log1p needs numbers above -1", lower <= -1, lower, upper, "clamp its input, as at 0")
    return lower.log1p(), upper.log1p()


_of_one(torch.abs, absolute, operator.abs, builtins.abs, "abs", "abs_")
_of_one(torch.sqrt, root, "sqrt", "sqrt_")
_of_one(torch.log, logarithm, "log", "log_")
_of_one(torch.log1p, _logarithm1p, "log1p", "log1p_")
_of_one(torch.square, lambda x: power(x, 2), "square", "square_")
_of_one(torch.reciprocal, lambda x: power(x, -1), "reciprocal", "reciprocal_")
_of_one(torch.rsqrt, lambda x: power(x, -0.5), "rsqrt", "rsqrt_")


@rule(operator.pow, operator.ipow, torch.pow, "pow", "pow_")
def _(walk, x, exponent):
    if isinstance(exponent, Box):
        return _exponential(walk, x, exponent)
    if not isinstance(exponent, int | float):
        raise Refusal("its exponent must be a number or, of a number above 0, what comes from the input")
    clean = None if x.clean is None else x.clean**exponent

    def ends(x: Ends) -> Ends:
        if not walk.sound:
            return power(x, exponent)
        lower, upper = power((x[0].double(), x[1].double()), exponent)  # torch rounds an exponent to its base's dtype
        return lower.to(x[0].dtype), upper.to(x[0].dtype)

    return through_ends(walk, ends, x, clean=clean)


def _exponential(walk, base, exponent: Box) -> Box:
    """base ** exponent rises with the exponent, or falls where base < 1."""
    if not isinstance(base, int | float) or base <= 0:
        raise Refusal("its base must be a number above 0 where the exponent comes from the input")

    def ends(base: Ends, exponent: Ends) -> Ends:
        corners = [b**e for b in base for e in exponent]
        return torch.stack(corners).amin(0), torch.stack(corners).amax(0)

    clean = None if exponent.clean is None else base**exponent.clean
    return through_ends(walk, ends, point(base, exponent, walk.sound), exponent, clean=clean)
