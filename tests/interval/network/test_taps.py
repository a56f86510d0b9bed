"""TAPS: the loss by hand, its gradient connector, and its limits."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.support.nets import chain
from warpup.interval import Box, margin_loss, pgd, taps_loss
from warpup.interval.network.taps import connected

pytestmark = pytest.mark.usefixtures("one_thread")


def by_hand():
    """Logits (0, 2 relu(2 - z) - relu(-z) - 5) of z = x in [-1, 1]: the second falls, so it is largest at z = -1."""
    first, rest = nn.Sequential(nn.Linear(1, 1)), nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 2))
    values = ([[1.0]], [0.0]), ([[-1.0], [-1.0]], [2.0, 0.0]), ([[0.0, 0.0], [2.0, -1.0]], [0.0, -5.0])
    with torch.no_grad():
        for layer, (weight, bias) in zip((first[0], rest[0], rest[2]), values, strict=True):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.copy_(torch.tensor(bias))
    return first, rest


@pytest.mark.parametrize("weight", [0.0, 1.0, 5.0])
def test_loss_and_gradients_by_hand(weight):
    """At z = -1 the margin is 5 - 6 + 1 = 0. Boxes put relu(2 - z) at 3 and relu(-z) at 0, though z is one number: -1.
    The attacked margin falls by 1 a unit of z, the boxes' by 2 a unit of the lower end."""
    center, radius = torch.zeros(1, 1, requires_grad=True), torch.ones(1, 1, requires_grad=True)
    loss = taps_loss(*by_hand(), center, radius, torch.tensor([0]), weight=weight)
    attacked, ibp, sigmoid = math.log(2), math.log(1 + math.e), 1 / (1 + math.exp(-1))
    assert loss.item() == pytest.approx(attacked * ibp)
    loss.backward()
    slope = attacked * 2 * sigmoid + weight * ibp * 0.5
    assert center.grad.item() == pytest.approx(-slope)
    assert radius.grad.item() == pytest.approx(slope)


@pytest.mark.parametrize("shrinkage", [1.0, 0.7])
def test_one_search_for_each_class_is_exact_before_a_linear_layer(shrinkage):
    """The worst corner of each class is another one. PGD finds all, so that both factors are `margin_loss`."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5))
    x, radius, labels = torch.randn(4, 6), torch.full((4, 6), 0.3), torch.tensor([0, 1, 4, 2])
    ibp = margin_loss(net, x, radius, labels, shrinkage=shrinkage)
    wanted = torch.autograd.grad(ibp, net.parameters())
    loss = taps_loss(net[:2], net[2:], x, radius, labels, weight=3.0, shrinkage=shrinkage)
    torch.testing.assert_close(loss, ibp**2)
    for found, gradient in zip(torch.autograd.grad(loss, net.parameters()), wanted, strict=True):
        torch.testing.assert_close(found, (1 + 3) * ibp.detach() * gradient)


def test_all_layers_behind_the_split_is_adversarial_training():
    torch.manual_seed(1)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    x, radius, labels = torch.randn(4, 6), torch.full((4, 6), 0.3), torch.tensor([0, 1, 1, 0])
    generator = torch.Generator()
    loss = taps_loss(nn.Sequential(), net, x, radius, labels, generator=generator.manual_seed(0))
    points = pgd(net, x, radius, labels, steps=8, step_size=0.5, generator=generator.manual_seed(0))
    attacked, ibp = F.cross_entropy(net(points), labels), margin_loss(net, x, radius, labels)
    assert F.cross_entropy(net(x), labels) < attacked < 0.99 * ibp
    torch.testing.assert_close(loss, attacked * ibp)


def test_gradients_are_those_of_the_worst_corner():
    """Where no ReLU of the attacked part crosses 0 it is linear in the box, and finite differences see the corner."""
    torch.manual_seed(2)
    first, rest = chain_of(nn.Linear(3, 4), nn.ReLU()), chain_of(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    x, radius = torch.randn(2, 3).double(), torch.rand(2, 3).double() * 0.02 + 0.01

    def loss(center, radius):
        generator = torch.Generator().manual_seed(0)
        return taps_loss(first, rest, center, radius, torch.tensor([0, 2]), weight=1.0, generator=generator)

    assert torch.autograd.gradcheck(loss, (x.requires_grad_(), radius.requires_grad_()))


def chain_of(*layers):
    return nn.Sequential(*layers).double()


def test_the_connector_goes_by_the_place_in_the_box():
    center = torch.tensor([[0.0, 1.0, 2.0, 5.0]], requires_grad=True)
    radius = torch.tensor([[2.0, 2.0, 4.0, 0.0]], requires_grad=True)
    points = torch.tensor([[[2.0, 0.0, 2.0, 5.0], [-2.0, 2.5, 3.0, 5.0]]])
    found = connected(points, Box(center, radius))
    assert torch.equal(found, points)
    found[:, 0].sum().backward(retain_graph=True)
    assert center.grad.tolist() == [[1, 0.5, 0, 1]]
    assert radius.grad.tolist() == [[1, -0.5, 0, 0]]
    found[:, 1].sum().backward()
    assert center.grad.tolist() == [[2, 1.25, 0.25, 2]]
    assert radius.grad.tolist() == [[0, 0.25, 0.25, 0]]


def test_attacks_leave_the_statistics_to_the_clean_images():
    one, x = chain(training=True)
    two, _ = chain(training=True)
    two.load_state_dict(one.state_dict())
    labels, radius = torch.arange(5) % 4, torch.full_like(x, 0.1)
    margin_loss(one, x, radius, labels, clean=x)
    assert torch.isfinite(taps_loss(two[:3], two[3:], x, radius, labels, clean=x))
    buffers = dict(one.named_buffers())
    assert buffers
    for name, value in two.named_buffers():
        torch.testing.assert_close(value, buffers[name])
    assert all(m.training for m in two.modules())


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="weight must be at least 0, got -1"):
        taps_loss(*by_hand(), torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([0]), weight=-1)
