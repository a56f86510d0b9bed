"""Interval weights: every choice of weights is in the bounds, boxes nest, intersections are never empty."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from warpup.interval.weights.hyper_interval import HyperInterval, drift_loss, gamma_and_kappa, mlp
from warpup.interval.weights.interval_weights import (
    IntervalConv2d,
    IntervalLinear,
    IntervalSequential,
    NestedBox,
    certified,
    forward_boxes,
    worst_case_loss,
)

SLACK = 1e-12  # of float64 sums this short


def dense(radius=0.1):
    torch.manual_seed(0)
    return IntervalSequential(
        IntervalLinear(5, 7, max_radius=radius), nn.ReLU(), IntervalLinear(7, 6, bias=False, max_radius=radius),
        nn.ReLU(), IntervalLinear(6, 3, max_radius=radius),
    ).double()  # fmt: skip


def conv(radius=0.1):
    torch.manual_seed(0)
    return IntervalSequential(
        IntervalConv2d(2, 4, 3, stride=2, padding=1, max_radius=radius), nn.ReLU(),
        IntervalConv2d(4, 6, (2, 1), dilation=1, groups=2, max_radius=radius), nn.ReLU(), nn.Flatten(),
        IntervalLinear(36, 3, max_radius=radius),
    ).double()  # fmt: skip


CONV = nn.Sequential(
    nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(4, 6, (2, 1), groups=2), nn.ReLU(), nn.Flatten(),
    nn.Linear(36, 3),
)  # fmt: skip


def plain(name):
    """The ordinary network of the same layers."""
    layers = [nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6, bias=False), nn.ReLU(), nn.Linear(6, 3)]
    return (nn.Sequential(*layers) if name == "dense" else copy.deepcopy(CONV)).double()


def inputs(name, n=9):
    shape = (n, 5) if name == "dense" else (n, 2, 7, 3)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def boxes_of(net, outer=False):
    """(center, radius) of each parameter, in the order of the ordinary network's."""
    found = [box for box in net.modules() if isinstance(box, NestedBox)]
    return [tuple(end.detach() for end in (box.outer() if outer else box())) for box in found]


def choose(network, boxes, generator, corner):
    """The ordinary network with weights drawn from the boxes, or from their corners."""
    weights = {}
    for (name, _), (center, radius) in zip(network.named_parameters(), boxes, strict=True):
        draw = 2 * torch.rand(center.shape, generator=generator, dtype=center.dtype) - 1
        weights[name] = center + radius * (draw.sign() if corner else draw)
    return lambda x: functional_call(network, weights, x)


def disturb(module, size=1.0):
    """Other values than those of the start in every parameter."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return module


NETS = {"dense": dense, "conv": conv}


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("width", [None, 0.0, 0.3])
@pytest.mark.parametrize("name", NETS)
def test_every_network_of_the_box_is_in_the_bounds(name, width, outer):
    net, x = disturb(NETS[name]()), inputs(name)
    radius = None if width is None else torch.full_like(x, width)
    center, spread, clean = (end.detach() for end in net(x, radius, clean=x, outer=outer))
    boxes, generator = boxes_of(net, outer), torch.Generator().manual_seed(3)
    low, high = torch.full_like(center, torch.inf), torch.full_like(center, -torch.inf)
    for i in range(300):
        shift = (width or 0.0) * (2 * torch.rand(x.shape, generator=generator, dtype=x.dtype) - 1)
        y = choose(plain(name), boxes, generator, corner=i % 2)(x + shift).detach()
        assert ((y - center).abs() <= spread + SLACK).all()
        low, high = torch.minimum(low, y), torch.maximum(high, y)
    assert (high - low).mean() > 0.1 * spread.mean()  # the bounds say something
    assert ((clean - center).abs() <= spread + SLACK).all()
    middle = [(c, torch.zeros_like(r)) for c, r in boxes]
    torch.testing.assert_close(clean, choose(plain(name), middle, generator, corner=False)(x).detach())


def test_one_layer_on_a_point_is_exact():
    layer = disturb(IntervalLinear(4, 3, max_radius=0.5).double())
    x = torch.randn(6, 4, dtype=torch.float64)
    center, radius = layer(x)
    (weight, wr), (bias, br) = layer.weight(), layer.bias()
    upper = torch.einsum("bk,nk->bn", x, weight) + bias + torch.einsum("bk,nk->bn", x.abs(), wr) + br
    torch.testing.assert_close(center + radius, upper)
    corner = F.linear(x[:1], weight + wr * x[0].sign(), bias + br)  # the weights that reach it
    torch.testing.assert_close(upper[:1], corner)


@pytest.mark.parametrize("name", NETS)
def test_radius_zero_is_the_ordinary_network(name):
    net, x = disturb(NETS[name](radius=0.0)), inputs(name)
    center, radius = net(x)
    assert not radius.any()
    weights = dict(zip(dict(plain(name).named_parameters()), (c for c, _ in boxes_of(net)), strict=True))
    torch.testing.assert_close(center, functional_call(plain(name), weights, x))
    boxed = net(x, torch.zeros_like(x))
    torch.testing.assert_close(boxed[0], center)
    assert not boxed[1].any()


@pytest.mark.parametrize("name", NETS)
def test_gradients_reach_every_parameter_and_are_right(name):
    net, x = disturb(NETS[name](), 0.3), inputs(name, 4)
    center, radius, clean = net(x, clean=x)
    worst_case_loss(center, radius, torch.tensor([0, 1, 2, 0]), 0.5, clean=clean).backward()
    for key, parameter in net.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key
    names, values = zip(*net.named_parameters(), strict=True)

    def outputs(*values):
        return functional_call(net, dict(zip(names, values, strict=True)), x[:1])

    if name == "dense":
        assert torch.autograd.gradcheck(outputs, tuple(value.detach().requires_grad_() for value in values))


@given(
    st.integers(0, 2**31), st.sampled_from([torch.float32, torch.float64]), st.sampled_from([1e-3, 1.0, 1e4]),
    st.floats(-30, 30), st.floats(-30, 30),
)  # fmt: skip
def test_boxes_nest_bit_for_bit(seed, dtype, radius, shift, scale):
    generator = torch.Generator().manual_seed(seed)
    box = NestedBox(torch.randn(40, generator=generator, dtype=dtype), radius)
    for _ in range(5):
        lower, upper = box.lower.clone(), box.upper.clone()
        with torch.no_grad():
            box.shift.copy_(shift * torch.randn(40, generator=generator, dtype=dtype))
            box.scale.copy_(scale * torch.randn(40, generator=generator, dtype=dtype))
        box.contract()
        assert (lower <= box.lower).all()
        assert (box.lower <= box.upper).all()
        assert (box.upper <= upper).all()
        center, _ = box()
        assert ((box.lower <= center) & (center <= box.upper)).all()  # the network in use


def test_contract_keeps_the_trained_box_and_starts_in_its_middle():
    box = disturb(NestedBox(torch.zeros(30, dtype=torch.float64), 2.0))
    center, radius = (end.detach() for end in box())
    expected = 2 * box.shift.detach().tanh(), 2 * box.scale.detach().sigmoid() * (1 - box.shift.detach().tanh().abs())
    torch.testing.assert_close((center, radius), expected)
    box.contract()
    torch.testing.assert_close(box.outer(), (center, radius))
    torch.testing.assert_close(box()[0].detach(), center)
    torch.testing.assert_close(box()[1].detach(), radius * torch.sigmoid(torch.tensor(5.0)).double())


@pytest.mark.parametrize("name", NETS)
def test_what_is_certified_stays_certified(name):
    net, x = NETS[name](radius=0.02), inputs(name, 200)
    labels = net(x, clean=x)[2].argmax(1)
    before = torch.zeros(len(x), dtype=torch.bool)
    for _ in range(4):
        disturb(net, 0.7)
        net.contract()
        center, radius, clean = net(x, clean=x, outer=True)
        now = certified(center, radius, labels)
        assert (now | ~before).all()
        assert (clean.argmax(1) == labels)[now].all()
        before = now
    assert before.sum() > 20


def test_state_goes_through_state_dict():
    net, other, x = disturb(dense()), dense(radius=3.0), inputs("dense")
    net.contract()
    disturb(net)
    other.load_state_dict(net.state_dict())
    for outer in (False, True):
        for mine, theirs in zip(net(x, outer=outer), other(x, outer=outer), strict=True):
            assert torch.equal(mine, theirs)


def test_worst_case_loss_against_a_loop():
    torch.manual_seed(0)
    center, radius, clean = torch.randn(6, 4), torch.rand(6, 4), torch.randn(6, 4)
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    expected = 0.0
    for i, label in enumerate(labels):
        worst = [center[i, k] + (-1 if k == label else 1) * radius[i, k] for k in range(4)]
        for weight, row in ((0.3, clean[i]), (0.7, torch.stack(worst))):
            expected -= weight * row.log_softmax(0)[label] / 6
    torch.testing.assert_close(worst_case_loss(center, radius, labels, 0.3, clean=clean), expected)
    torch.testing.assert_close(worst_case_loss(center, radius, labels, 1.0), F.cross_entropy(center, labels))
    tie = torch.tensor([[1.0, 1.0], [2.0, 0.0], [2.0, 0.0]])
    found = certified(tie, torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.9, 0.9]]), torch.tensor([0, 0, 0]))
    assert found.tolist() == [False, False, True]
    for nan in ((torch.tensor([[torch.nan, 0.0]]), 0), (torch.tensor([[9.0, torch.nan]]), 0)):
        assert not certified(nan[0], torch.zeros(1, 2), torch.tensor([nan[1]])).any()


# The hypernetwork


def hyper(target=(5, 6, 3), tasks=3, **options):
    torch.manual_seed(0)
    return HyperInterval(target, tasks, **{"embedding": 4, "hidden": (8,)} | options).double()


@given(st.integers(0, 2**31), st.integers(1, 6), st.floats(0, 10), st.floats(0, 5))
def test_intersections_are_never_empty(seed, tasks, gamma, size):
    torch.manual_seed(seed)
    net = HyperInterval([2, 2], tasks, embedding=5, hidden=(3,), gamma=gamma).double()
    with torch.no_grad():
        for spread in net.spreads:
            spread += size * torch.randn(5)
    boxes = [net.embedding_box(task) for task in range(tasks)]
    center, radius = net.intersection()
    assert (radius >= 0).all()
    for c, r in boxes:
        assert (c.abs() <= r / 2).all()
        assert ((center - c).abs() + radius <= r + 1e-12 * (1 + gamma)).all()
        torch.testing.assert_close(r.sum(), torch.tensor(gamma, dtype=torch.float64))


def test_embedding_box_at_the_start_is_the_papers():
    net = hyper(gamma=2.0)
    center, radius = net.embedding_box(1)
    torch.testing.assert_close(radius, torch.full((4,), 2.0 / 4, dtype=torch.float64))
    torch.testing.assert_close(center, 2.0 / (2 * 4) * net.embeddings[1].cos())


@pytest.mark.parametrize("target", ["dense", "conv"])
def test_every_embedding_of_the_box_gives_a_network_in_the_bounds(target):
    x = inputs(target)
    net = disturb(hyper(plain(target), gamma=0.5, hidden=(8, 7)), 0.2)
    generator = torch.Generator().manual_seed(0)
    for task in range(3):
        lower, _, upper = net.targets(3)[task]
        center, radius, clean = net(x, task)
        c, r = net.embedding_box(task)
        for i in range(50):
            draw = 2 * torch.rand(4, generator=generator, dtype=torch.float64) - 1
            weights = net.hyper((c + r * (draw.sign() if i % 2 else draw))[None])[0]
            assert ((lower - SLACK <= weights) & (weights <= upper + SLACK)).all()
            network = plain(target)
            nn.utils.vector_to_parameters(weights, network.parameters())
            assert ((network(x) - center).abs() <= radius + SLACK).all()
        universal = net.universal()
        assert ((universal(x) - center).abs() <= radius + SLACK).all()
        boxes = [(c, torch.zeros_like(r)) for c, r in net.weights(*net.embedding_box(task))]
        torch.testing.assert_close(clean, forward_boxes(plain(target), boxes, x)[0])


def test_degenerate_boxes_give_the_generated_network():
    net, x = disturb(hyper(gamma=0.0)), inputs("dense")
    center, radius, clean = net(x, 1)
    assert not radius.any()
    torch.testing.assert_close(center, net.universal()(x))
    torch.testing.assert_close(center, clean)


def test_the_target_starts_at_its_own_weights_and_is_left_alone():
    target = plain("dense")
    before, x = copy.deepcopy(target.state_dict()), inputs("dense")
    net = hyper(target, gamma=0.0)
    with torch.no_grad():
        net.hyper[-1].weight.zero_()
    torch.testing.assert_close(net.universal()(x), target(x))
    assert all(torch.equal(before[key], value) for key, value in target.state_dict().items())
    one = net.universal()
    again = net.universal()
    assert next(one.parameters()).data_ptr() != next(again.parameters()).data_ptr()
    assert {name.split(".")[0] for name in net.state_dict()} == {"embeddings", "spreads", "hyper"}


def test_drift_is_counted_on_both_ends_and_the_center():
    net = hyper(gamma=0.7)
    before = net.targets(2).detach()
    assert drift_loss(net, before) == 0
    assert drift_loss(net, net.targets(0)) == 0
    with torch.no_grad():
        net.hyper[-1].bias += 0.5  # moves lower, center and upper of each weight
    parameters = len(net.hyper[-1].bias)
    torch.testing.assert_close(drift_loss(net, before).item(), 3 * parameters * 0.25)
    drift_loss(net, before).backward()
    assert all(parameter.grad is not None for parameter in net.hyper.parameters())
    assert all(parameter.grad is None for parameter in [*net.embeddings, *net.spreads])


def test_ramps_end_at_half_the_steps():
    found = [gamma_and_kappa(step, 100, 0.4, 0.5) for step in (0, 25, 50, 99)]
    assert found == [(0.0, 1.0), (0.2, 0.75), (0.4, 0.5), (0.4, 0.5)]


def test_gradients_of_a_task_reach_its_embedding_and_the_hypernetwork():
    net, x = disturb(hyper(gamma=1.0), 0.2), inputs("dense", 4)
    center, radius, clean = net(x, 1)
    worst_case_loss(center, radius, torch.tensor([0, 1, 2, 0]), 0.5, clean=clean).backward()
    for parameter in (*net.hyper.parameters(), net.embeddings[1], net.spreads[1]):
        assert parameter.grad.abs().sum() > 0
    assert net.embeddings[0].grad is None
    assert torch.autograd.gradcheck(
        lambda e, s: functional_call(net, {"embeddings.1": e, "spreads.1": s}, (x, 1)),
        (net.embeddings[1].detach().requires_grad_(), net.spreads[1].detach().requires_grad_()),
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: NestedBox(torch.zeros(2), -1.0), "radius: expected a finite number of at least 0, got -1.0"),
        (lambda: IntervalLinear(2, 2, max_radius=float("nan")), "radius: expected a finite number"),
        (lambda: IntervalSequential(nn.Linear(2, 2)), "layers: expected IntervalLinear.*got Linear"),
        (lambda: forward_boxes([nn.Linear(2, 2)], [], torch.zeros(1, 2)), "boxes: expected one for each of 2.*got 0"),
        (lambda: forward_boxes([nn.Tanh()], [], torch.zeros(1, 2)), "layers: expected.*got Tanh"),
        (lambda: HyperInterval(nn.Sequential(nn.Tanh()), 2), "target: expected.*got Tanh"),
        (lambda: HyperInterval([2, 2], 0), "tasks: expected at least 1, got 0"),
        (lambda: HyperInterval([2, 2], 1, embedding=0), "embedding: expected at least 1, got 0"),
        (lambda: HyperInterval([2, 2], 1, gamma=-0.1), "gamma: expected a finite number of at least 0, got -0.1"),
        (lambda: IntervalLinear(2, 2, mode="exakt"), "mode: expected one of midpoint, exact, got 'exakt'"),
        (lambda: forward_boxes([], [], torch.zeros(1, 2), mode="hull"), "mode: expected one of.*got 'hull'"),
        (lambda: mlp([3]), r"sizes: expected two or more sizes of at least 1, got \[3\]"),
        (
            lambda: worst_case_loss(torch.zeros(1, 2), torch.zeros(1, 2), torch.tensor([0]), 1.5),
            "kappa: expected a number from 0 to 1, got 1.5",
        ),
        (
            lambda: forward_boxes([nn.Conv2d(1, 1, 3, padding_mode="circular")], [(0, 0)] * 2, torch.zeros(1, 1, 3, 3)),
            "padding_mode: expected 'zeros', got 'circular'",
        ),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
