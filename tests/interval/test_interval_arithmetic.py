"""Products, quotients, powers, roots, logarithms and extremes of boxes: tight, and loud outside of their domain."""

import re

import pytest
import torch

import warpup

DOUBLE = torch.float64


def box(low, high, count=50):
    ends = low + (high - low) * torch.rand(2, count, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    return (ends[0] + ends[1]) / 2, (ends[0] - ends[1]).abs() / 2


def line(b):
    """Points of each box from end to end, 0 among them where it is inside."""
    points = b[0] + torch.linspace(-1, 1, 201, dtype=DOUBLE).view(-1, 1) * b[1]
    zero = torch.zeros_like(b[0])
    return torch.cat([points, torch.where((b[0] - b[1] < 0) & (b[0] + b[1] > 0), zero, points[0]).unsqueeze(0)])


ONE = {  # name: (of a box, of numbers, from, to)
    "pow2": (lambda c, r: warpup.interval_pow(c, r, 2), lambda x: x**2, -2, 2),
    "pow3": (lambda c, r: warpup.interval_pow(c, r, 3), lambda x: x**3, -2, 2),
    "pow0": (lambda c, r: warpup.interval_pow(c, r, 0), lambda x: x**0, -2, 2),
    "pow1.5": (lambda c, r: warpup.interval_pow(c, r, 1.5), lambda x: x**1.5, 0, 2),
    "pow-1": (lambda c, r: warpup.interval_pow(c, r, -1), lambda x: 1 / x, -2, -0.1),
    "pow-2": (lambda c, r: warpup.interval_pow(c, r, -2), lambda x: x**-2, -2, -0.1),
    "pow-.5": (lambda c, r: warpup.interval_pow(c, r, -0.5), lambda x: x**-0.5, 0.1, 2),
    "sqrt": (warpup.interval_sqrt, torch.sqrt, 0, 2),
    "log": (warpup.interval_log, torch.log, 0.1, 2),
    "abs": (warpup.interval_abs, torch.abs, -2, 2),
}


@pytest.mark.parametrize("name", ONE)
def test_functions_of_one_box_are_tight(name):
    of_box, function, low, high = ONE[name]
    b = box(low, high)
    center, radius = of_box(*b)
    values = function(line(b))
    torch.testing.assert_close(center - radius, values.amin(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(center + radius, values.amax(0), rtol=1e-12, atol=1e-12)
    alone, nothing = of_box(b[0], torch.zeros_like(b[0]))
    torch.testing.assert_close(alone, function(b[0]))
    assert not nothing.any()
    inputs = [(b[0] + 0.01 * b[0].sign()).requires_grad_(), (0.9 * b[1]).requires_grad_()]
    assert torch.autograd.gradcheck(of_box, inputs)


TWO = {
    "mul": (warpup.interval_mul, torch.mul, -2),
    "div": (warpup.interval_div, torch.div, 0.1),
    "maximum": (warpup.interval_maximum, torch.maximum, -2),
    "minimum": (warpup.interval_minimum, torch.minimum, -2),
}


@pytest.mark.parametrize("name", TWO)
def test_functions_of_two_boxes_are_tight(name):
    of_boxes, function, low = TWO[name]
    x, y = box(-2, 2), tuple(t.flip(0) for t in box(low, 2))
    center, radius = of_boxes(x, y)
    values = function(line(x).unsqueeze(1), line(y))
    torch.testing.assert_close(center - radius, values.amin((0, 1)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(center + radius, values.amax((0, 1)), rtol=1e-12, atol=1e-12)


C, R = torch.tensor([1.0, 0.5]), torch.tensor([0.25, 0.75])
OUTSIDE = [
    (
        lambda: warpup.interval_log(C, R),
        "interval_log: a logarithm needs numbers above 0, got a box from -0.25 to 1.25",
    ),
    (lambda: warpup.interval_log(C, C), "a logarithm needs numbers above 0, got a box from 0 to 2"),
    (lambda: warpup.interval_sqrt(C, R), "interval_sqrt: a square root needs numbers of at least 0"),
    (lambda: warpup.interval_div((C, R), (C, R)), "interval_div: a divisor must not reach 0, got a box from -0.25"),
    (lambda: warpup.interval_div((C, R), (C, C)), "a divisor must not reach 0, got a box from 0 to 2"),
    (lambda: warpup.interval_pow(C, R, -2), "interval_pow: a divisor must not reach 0"),
    (lambda: warpup.interval_pow(C, R, 0.5), "the base of a power 0.5 must be at least 0"),
    (lambda: warpup.interval_pow(C, C, -0.5), "the base of a power -0.5 must be above 0"),
    (lambda: warpup.interval_abs(C, R[:1]), "interval_abs: radius must have its center's shape (2,), got (1,)"),
    (lambda: warpup.interval_mul((C, R), (C, R[:1])), "interval_mul: radius of b must have its center's shape (2,)"),
]


@pytest.mark.parametrize(("call", "message"), OUTSIDE)
def test_messages(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_a_box_without_extent_is_a_number():
    center, _ = warpup.interval_log(torch.tensor([-1.0, 0.0]), torch.zeros(2))
    assert center[0].isnan()
    assert center[1] == -torch.inf
