"""CROWN-IBP's bounds, PGD and SABR's boxes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tests.support.nets import chain, residual
from warpup.interval import (
    UnsupportedLayer,
    bound,
    crown_ibp_loss,
    crown_margins,
    margin_loss,
    margins,
    pgd,
    sabr_box,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- CROWN-IBP


@settings(max_examples=15)
@given(seed=st.integers(0, 99), size=st.integers(4, 8), eps=st.sampled_from([0.0, 1e-3, 0.02, 0.2]))
def test_crown_holds_and_is_tighter_than_ibp_in_small_boxes(seed, size, eps):
    module, x = chain(seed, size)
    labels, radius = torch.arange(5) % 4, torch.full_like(x, eps)
    with torch.no_grad():
        crown, ibp = crown_margins(module, x, radius, labels)
        torch.testing.assert_close(ibp, margins(module, x, radius, labels), rtol=1e-4, atol=1e-5)
        noise = (torch.rand(200, *x.shape) * 2 - 1) * torch.tensor([1.0, 1e6]).repeat_interleave(100).view(
            -1, 1, 1, 1, 1
        )
        logits = module((x + radius * noise.clamp(-1, 1)).flatten(0, 1)).unflatten(0, (200, -1))
    for row, label in enumerate(labels):
        rest = [k for k in range(4) if k != label]
        assert (crown[row] <= (logits[:, row, label, None] - logits[:, row, rest]).amin(0) + 1e-5).all()
    if eps <= 1e-3:
        assert (crown >= ibp - 1e-5).all()
    if eps == 0:
        torch.testing.assert_close(crown, ibp, rtol=1e-4, atol=1e-5)


class Branches(nn.Module):
    """Sums, differences, multiples, pooling, padding and slices: all linear."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3, padding=1), nn.BatchNorm2d(2).eval()
        self.pool, self.pad, self.last = nn.AvgPool2d(2), nn.ZeroPad2d((1, 0, 0, 1)), nn.Linear(20, 4)
        self.register_buffer("shift", torch.randn(2, 6, 1))

    def forward(self, x):
        y = torch.sub(self.conv(x) / 0.7, x, alpha=1.5) + self.shift
        y = 1 - self.norm(torch.add(y * self.shift, -x)) + y
        y = torch.cat([self.pool(y), F.avg_pool2d(y + y, 3, 2, 1)[:, :1]], dim=1)
        y = self.pad(y).permute(0, 2, 3, 1).mean(3)
        return self.last(y.view(x.size(0), -1))


LINEAR = [
    lambda: nn.Sequential(nn.Conv2d(2, 3, (3, 2), (2, 1), (1, 0), (1, 2)), nn.Flatten(), nn.Linear(54, 4)),
    Branches,
]


@pytest.mark.parametrize("make", LINEAR)
def test_crown_of_a_linear_net_is_exact(make):
    torch.manual_seed(0)
    module = make().double()
    x, labels = torch.randn(3, 2, 6, 8).double(), torch.tensor([0, 3, 1])
    radius = torch.rand_like(x)
    crown, ibp = crown_margins(module, x, radius, labels)
    jacobian = torch.stack([torch.autograd.functional.jacobian(module, row[None])[0, :, 0].flatten(1) for row in x])
    for row, label in enumerate(labels):
        rest = [k for k in range(4) if k != label]
        a = jacobian[row, label] - jacobian[row, rest]
        logits = module(x[row : row + 1])[0]
        exact = logits[label] - logits[rest] - (a.abs() * radius[row].flatten()).sum(1)
        torch.testing.assert_close(crown[row], exact, rtol=1e-9, atol=1e-9)
    assert (ibp < crown).all()


def test_crown_with_batch_statistics_and_its_loss():
    module, x = chain(training=True)
    labels, radius = torch.arange(5) % 4, torch.full_like(x, 1e-3)
    crown, ibp = crown_margins(module, x, radius, labels, clean=x)
    assert (crown >= ibp - 1e-5).all()
    with torch.no_grad():
        logits = module(x)
    for row, label in enumerate(labels):
        rest = [k for k in range(4) if k != label]
        assert (crown[row] <= logits[row, label] - logits[row, rest] + 1e-5).all()
    loss = crown_ibp_loss(module, x, radius, labels, beta=0.3, clean=x)
    mixed = torch.cat([torch.zeros(5, 1), -(0.3 * crown + 0.7 * ibp)], 1)
    torch.testing.assert_close(loss, F.cross_entropy(mixed, torch.zeros(5, dtype=torch.int64)), rtol=1e-4, atol=1e-5)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in module.parameters())


@settings(max_examples=10)
@given(seed=st.integers(0, 99), size=st.integers(4, 8), eps=st.sampled_from([0.0, 1e-3, 0.02, 0.2]))
def test_crown_of_a_residual_net_holds(seed, size, eps):
    module, x = residual(seed, size)
    labels, radius = torch.tensor([0, 1, 4]), torch.full_like(x, eps)
    with torch.no_grad():
        crown, ibp = crown_margins(module, x, radius, labels)
        torch.testing.assert_close(ibp, margins(module, x, radius, labels), rtol=1e-4, atol=1e-5)
        noise = torch.rand(200, *x.shape) * 2 - 1
        noise[100:] = noise[100:].sign()
        logits = module((x + radius * noise).flatten(0, 1)).unflatten(0, (200, -1))
    for row, label in enumerate(labels):
        rest = [k for k in range(5) if k != label]
        assert (crown[row] <= (logits[:, row, label, None] - logits[:, row, rest]).amin(0) + 1e-5).all()
    if eps <= 1e-3:
        assert (crown >= ibp - 1e-5).all()


def test_crown_trains_a_residual_net():
    module, x = residual()
    labels, radius = torch.arange(3), torch.full_like(x, 1e-2)
    module.double()
    x, radius = x.double(), radius.double()
    loss = lambda: crown_ibp_loss(module, x, radius, labels, beta=0.7)  # noqa: E731
    loss().backward()
    for parameter in (module.stem[0].weight, module.short.weight, module.last.weight):
        step = 1e-6 * torch.randn_like(parameter)
        with torch.no_grad():
            parameter += step
            after = loss()
            parameter -= 2 * step
            slope = (after - loss()) / 2
            parameter += step
        torch.testing.assert_close(slope, (parameter.grad * step).sum(), rtol=1e-4, atol=1e-12)


REFUSED = [
    (lambda self, x: self.last(F.sigmoid(x)), "sigmoid in .*: CROWN-IBP has no rule for it; use IBP's `margins`"),
    (lambda self, x: self.last(self.smooth(x)), r"layer 'smooth' \(Tanh\): CROWN-IBP has no rule"),
    (lambda self, x: self.last(x @ (x - 1)), "matmul in .*: CROWN-IBP has no rule for it"),
    (lambda self, x: self.last(x + x[:1]), "getitem in .*: CROWN-IBP has no rule for what joins or splits the batch"),
    (lambda self, x: self.last(x * self.last(x)), "mul in .*: CROWN-IBP has no rule for a product of two boxes"),
    (lambda self, x: self.last(x.flip(0)), "margins at radius 0 are not the module's own, as when one sample's output"),
    (
        lambda self, x: self.last(torch.cat([x, x])),
        "cat in .*: CROWN-IBP has no rule for what joins or splits the batch",
    ),
]


@pytest.mark.parametrize(("forward", "message"), REFUSED, ids=[message[:20] for _, message in REFUSED])
def test_crown_names_what_it_has_no_rule_for(forward, message):
    class Refused(nn.Module):
        def __init__(self):
            super().__init__()
            self.smooth, self.last = nn.Tanh(), nn.Linear(3, 3)

        def forward(self, x):
            return forward(self, x)

    x = torch.randn(3, 3)
    with pytest.raises(UnsupportedLayer, match=message):
        crown_margins(Refused(), x, torch.zeros_like(x), torch.tensor([0, 1, 2]))


# ---- attacks and SABR


def test_pgd_finds_what_is_not_verified_and_nothing_else():
    module, x = chain()
    with torch.no_grad():
        labels = module(x).argmax(1)
    found = {}
    for eps in (1e-4, 3.0):
        radius = torch.full_like(x, eps)
        points = pgd(module, x, radius, labels, restarts=2, generator=torch.Generator().manual_seed(0))
        assert ((points - x).abs() <= radius + 2e-7).all()
        assert not points.requires_grad
        found[eps] = module(points).argmax(1) != labels
        assert not (found[eps] & (margins(module, x, radius, labels) > 0).all(1)).any()
    assert not found[1e-4].any()
    assert found[3.0].any()
    assert all(p.grad is None for p in module.parameters())


def test_sabr_boxes_are_inside_and_cost_no_statistics():
    module, x = chain(training=True)
    module[9].eval()
    state = {name: value.clone() for name, value in module.state_dict().items()}
    labels, radius = torch.arange(5) % 4, torch.rand_like(x) * 0.2
    center, small = sabr_box(module, x, radius, labels, ratio=0.25)
    torch.testing.assert_close(small, 0.25 * radius)
    assert ((center - x).abs() + small <= radius * (1 + 1e-5)).all()
    assert ((center - x).abs() > 0.5 * radius).float().mean() > 0.5  # adversarial points are at the box's faces
    assert all(torch.equal(value, state[name]) for name, value in module.state_dict().items())
    assert module[1].training
    assert not module[9].training
    assert margin_loss(module, center, small, labels, clean=x) < margin_loss(module, x, radius, labels, clean=x)
    with pytest.raises(ValueError, match="ratio must be above 0 and at most 1, got 0"):
        sabr_box(module, x, radius, labels, ratio=0)


def test_shrinkage_takes_from_crossing_relus_alone():
    center, radius = torch.tensor([[1.0, 3.0, -3.0]]), torch.tensor([[2.0, 1.0, 1.0]])
    shrunk = bound(nn.Sequential(nn.ReLU()), center, radius, shrinkage=0.5)
    torch.testing.assert_close(shrunk, (torch.tensor([[0.75, 3.0, 0.0]]), torch.tensor([[0.75, 1.0, 0.0]])))
    assert math.isclose(float(bound(nn.Sequential(nn.ReLU()), center, radius)[1][0, 0]), 1.5)
