"""Linear specifications: bounds of C f(x) + d, with the last layer elided, by boxes and by CROWN-IBP."""

import re

import pytest
import torch
from torch import nn

from tests.support.nets import chain
from warpup.interval import bound, crown_margins, margins
from warpup.interval.margin_bounds import others

pytestmark = pytest.mark.usefixtures("one_thread")


def rows_of(labels, classes):
    eye = torch.eye(classes)
    return eye[labels].unsqueeze(1) - eye[others(labels, classes)]


@torch.no_grad()
def test_the_margins_are_a_specification():
    module, x = chain(0, 6)
    labels, radius = torch.arange(5) % 4, torch.full_like(x, 0.05)
    given = (rows_of(labels, 4), None)
    for sound in (False, True):
        center, width = bound(module, x, radius, specification=given, sound=sound)
        torch.testing.assert_close(
            center - width, margins(module, x, radius, labels, sound=sound), rtol=1e-4, atol=1e-4
        )
    for got, want in zip(
        crown_margins(module, x, radius, specification=given), crown_margins(module, x, radius, labels), strict=True
    ):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_rows_for_all_samples_with_a_shift_hold_and_are_elided():
    module, x = chain(1, 5)
    radius, c, d = torch.full_like(x, 0.05), torch.randn(3, 4), torch.randn(3)
    center, width, clean = bound(module, x, radius, clean=x, specification=(c, d))
    points = x + radius * (2 * torch.rand(100, *x.shape) - 1).sign()
    values = torch.stack([module(point) @ c.t() + d for point in points])
    assert ((values - center).abs() <= width + 1e-5).all()
    torch.testing.assert_close(clean, module(x) @ c.t() + d, rtol=1e-4, atol=1e-5)
    of_outputs = bound(module, x, radius)[1] @ c.abs().t()
    assert (width < 0.95 * of_outputs).any()
    assert (width <= of_outputs + 1e-6).all()
    crown, ibp = crown_margins(module, x, radius, specification=(c, d))
    torch.testing.assert_close(ibp, center - width)
    assert (crown <= values.amin(0) + 1e-5).all()
    each = bound(module, x, radius, specification=(c.expand(5, 3, 4), d.expand(5, 3)))
    torch.testing.assert_close(each[1], width)


@torch.no_grad()
def test_a_module_that_ends_elsewhere_and_sound_boxes_in_float64():
    torch.manual_seed(0)
    module, c = nn.Sequential(nn.Linear(40, 30), nn.ReLU()), torch.randn(7, 30)
    deep = nn.Sequential(*module, nn.Linear(30, 30))
    for net in (module, deep):
        x = torch.randn(60, 40)
        missed = []
        for sound in (False, True):
            center, width = (t.double() for t in bound(net, x, 0 * x, specification=(c, None), sound=sound))
            net.double()
            exact = net(x.double()) @ c.double().t()
            net.float()
            missed.append(int(((exact - center).abs() > width).sum()))
        assert missed[1] == 0 < missed[0]


BAD = [
    (lambda c: c, "specification must be a pair (C, d)"),
    (lambda c: (c[:, :3], None), "C must be (M, 4) or (5, M, 4), got (2, 3)"),
    (lambda c: (c.expand(3, 2, 4), None), "C must be (M, 4) or (5, M, 4), got (3, 2, 4)"),
    (lambda c: ([1.0], None), "C must be (M, 4) or (5, M, 4), got list"),
    (lambda c: (c, torch.zeros(3)), "d must be (2,), (5, 2) or None, got (3,)"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_messages(change, message):
    module, x = chain(0, 4)
    for function in (bound, crown_margins):
        with pytest.raises(ValueError, match=re.escape(message)):
            function(module, x, x.abs(), specification=change(torch.zeros(2, 4)))


def test_labels_or_a_specification():
    module, x = chain(0, 4)
    with pytest.raises(ValueError, match="needs labels or a specification, and not both"):
        crown_margins(module, x, x.abs())
    with pytest.raises(ValueError, match=re.escape("a specification is of outputs (B, K); the module's are (2, 3, 4)")):
        bound(nn.Conv1d(3, 3, 1), torch.zeros(2, 3, 4), torch.zeros(2, 3, 4), specification=(torch.eye(3), None))
