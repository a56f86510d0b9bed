"""Bounds of whole modules: against an element-wise reference, by sampling, and what the walk refuses."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from tests.support.nets import chain, residual
from warpup.interval import (
    Box,
    Walk,
    bound,
    margin_loss,
    margins,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- the box


def by_element(layer, low, high):
    """Bounds of one layer by sums over the signs of each weight, in the lower-upper form."""
    if isinstance(layer, nn.Linear | nn.Conv2d):
        up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        if isinstance(layer, nn.Linear):
            product = F.linear
        else:
            product = lambda x, w: F.conv2d(x, w, None, layer.stride, layer.padding)  # noqa: E731
        bias = layer.bias if isinstance(layer, nn.Linear) else layer.bias.view(-1, 1, 1)
        return product(low, up) + product(high, down) + bias, product(high, up) + product(low, down) + bias
    if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
        ends = layer(low), layer(high)
        return torch.minimum(*ends), torch.maximum(*ends)
    return layer(low), layer(high)  # monotone


def test_a_chain_has_the_element_wise_bounds():
    module, x = chain()
    for norm in (module[1], module[7]):
        nn.init.uniform_(norm.weight, -1, 1)
    module, x = module.double().eval(), x.double()
    low, high = x - 0.07, x + 0.07
    for layer in module:
        low, high = by_element(layer, low, high)
    center, radius = bound(module, x, torch.full_like(x, 0.07))
    torch.testing.assert_close(center - radius, low, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(center + radius, high, rtol=1e-10, atol=1e-12)


def test_a_residual_net_has_the_bounds_of_its_parts():
    module, x = residual()
    module, x = module.double(), x.double()
    low, high = x - 0.05, x + 0.05
    low, high = (low - 0.4) / 0.3, (high - 0.4) / 0.3
    for layer in module.stem:
        low, high = by_element(layer, low, high)
    up, down = module.conv.weight.clamp(min=0), module.conv.weight.clamp(max=0)
    both = lambda a, b: F.conv2d(a, up, module.conv.bias, 1, 1, 1, 3) + F.conv2d(b, down, None, 1, 1, 1, 3)  # noqa: E731
    y = by_element(module.norm, both(low, high), both(high, low))
    short = by_element(module.short, low, high)
    total = (y[0] + short[0]).relu() - 0.5 * high, (y[1] + short[1]).relu() - 0.5 * low
    joined = [torch.cat([module.pool(total[i]), -module.pool(y[1 - i])], 1).flatten(1) for i in (0, 1)]
    low, high = by_element(module.last, *joined)
    center, radius = bound(module, x, torch.full_like(x, 0.05))
    torch.testing.assert_close(center - radius, low, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(center + radius, high, rtol=1e-10, atol=1e-12)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 99), size=st.integers(3, 9), channels=st.integers(1, 4), stride=st.integers(1, 2),
    eps=st.sampled_from([0.0, 1e-4, 0.01, 0.3]),
)  # fmt: skip
def test_outputs_of_the_box_are_in_its_bounds(seed, size, channels, stride, eps):
    module, x = residual(seed, size, channels=channels, stride=stride)
    with torch.no_grad():
        center, radius = bound(module, x, torch.full_like(x, eps))
        noise = torch.rand(60, *x.shape) * 2 - 1
        noise[:30] = noise[:30].sign()
        outputs = module((x + eps * noise).flatten(0, 1)).unflatten(0, (60, -1))
        slack = 1e-5 * (1 + center.abs() + radius)
        assert ((outputs - center).abs() <= radius + slack).all()
        wider = bound(module, x, torch.full_like(x, 1.5 * eps))  # a larger box has a larger box
        assert (wider[1] - radius + slack >= (wider[0] - center).abs()).all()


def test_a_box_without_extent_is_the_forward():
    module, x = residual()
    center, radius, clean = bound(module, x, torch.zeros_like(x), clean=x)
    torch.testing.assert_close(center, module(x))
    torch.testing.assert_close(clean, module(x))
    assert (radius == 0).all()
    for layer in (nn.Linear(6, 2), nn.Conv1d(3, 2, 3, padding_mode="zeros"), nn.BatchNorm1d(3).eval()):
        x = torch.randn(2, 3, 6)
        torch.testing.assert_close(bound(layer, x, torch.zeros_like(x))[0], layer(x))


@pytest.mark.parametrize("statistics", ["clean", "midpoint", "frozen"])
def test_batch_statistics(statistics):
    module, x = chain(training=True)
    fresh, other = chain(training=statistics != "frozen")[0], x + 0.1
    out = bound(module, x, torch.full_like(x, 0.02), clean=other, statistics=statistics)
    torch.testing.assert_close(out[2 if statistics == "clean" else 0].shape, (5, 4))
    if statistics == "midpoint":  # of the box's center, which the ReLU makes another point than a forward's
        assert not torch.equal(module[1].running_mean, fresh[1].running_mean)
        center = bound(module.eval(), x, torch.full_like(x, 0.02))[0]
        assert torch.isfinite(center).all()
    else:
        torch.testing.assert_close(out[2], fresh(other))
    if statistics == "clean":
        for name, value in fresh.state_dict().items():
            torch.testing.assert_close(module.state_dict()[name], value)
    if statistics == "frozen":
        assert torch.equal(module[1].running_mean, fresh[1].running_mean)


def test_statistics_differentiate():
    module, x = chain(training=True)
    module, x = module.double(), x.double()
    weight = module[0].weight
    loss = lambda: margin_loss(module, x, torch.full_like(x, 0.05), torch.arange(5) % 4, clean=x, kappa=0.3)  # noqa: E731
    loss().backward()
    step = 1e-6 * torch.randn_like(weight)
    with torch.no_grad():
        weight += step
        after = loss()
        weight -= 2 * step
        slope = (after - loss()) / 2
    torch.testing.assert_close(slope, (weight.grad * step).sum(), rtol=1e-5, atol=1e-12)


def test_fused_normalisation_is_the_layers_one_by_one():
    module, x = residual()
    fused, apart = bound(module, x, torch.full_like(x, 0.1)), {}
    box = Walk(kept=apart).run(module, Box(x, torch.full_like(x, 0.1)))
    assert len(apart) > 10
    torch.testing.assert_close(fused, tuple(box[:2]))


def test_sums_are_those_in_front_of_each_relu():
    module, x = chain()
    kept, radius = {}, torch.full_like(x, 0.1)
    *_, sums = bound(module, x, radius, sums=True)
    Walk(kept=kept).run(module, Box(x, radius))
    boxes = [kept[node.args[0]] for node in kept if node.op == "call_module" and node.target in ("2", "4", "8")]
    assert len(sums) == len(boxes) == 3
    for found, box in zip(sums, boxes, strict=True):
        torch.testing.assert_close(found.radius, box.radius.sum())
        torch.testing.assert_close(found.active.float(), (box.center > box.radius).sum().float())
        torch.testing.assert_close(found.inactive_center, box.center[box.center < -box.radius].sum())


def test_what_is_changed_in_place_is_read_changed():
    class InPlace(nn.Module):
        def forward(self, x):
            y = F.relu(x, inplace=True)
            y.add_(1)
            return x + y

    x = torch.randn(4, 3)
    torch.testing.assert_close(bound(InPlace(), x, torch.zeros_like(x))[0], InPlace()(x.clone()))


def test_functions_and_methods_are_the_layers():
    class Functional(nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.conv, self.linear = layers[0], layers[3]

        def forward(self, x):
            x = F.conv2d(x, self.conv.weight, self.conv.bias, stride=2, padding=1).relu().flatten(1)
            return F.linear(F.dropout(x, training=self.training), self.linear.weight, bias=self.linear.bias)

    layers = nn.Sequential(nn.Conv2d(1, 2, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(18, 3)).eval()
    x, labels = torch.rand(2, 1, 6, 6), torch.tensor([0, 2])
    radius = torch.full_like(x, 0.1)
    for function in (lambda m: bound(m, x, radius), lambda m: margins(m, x, radius, labels)):
        torch.testing.assert_close(function(Functional(layers).eval()), function(layers))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.heads, self.scores = nn.Linear(6, 18), nn.Linear(6, 6)

    def forward(self, x):
        query, key, value = (self.heads(x)[..., 6 * i : 6 * i + 6] for i in range(3))
        x = F.scaled_dot_product_attention(query, key, value)
        return torch.matmul(F.softmax(self.scores(x), dim=-1), x) + F.silu(x)


SMOOTH = [
    nn.Sigmoid(), nn.Tanh(), nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Hardswish(), nn.LeakyReLU(0.2), nn.ELU(0.5),
    nn.Softplus(), nn.Softplus(3.0, 30.0), nn.LogSigmoid(), nn.SELU(), nn.CELU(0.5),
    nn.Softmax(-1), nn.LayerNorm(6), nn.RMSNorm(6), Attention(),
]  # fmt: skip
RISING = [
    nn.MaxPool2d(2, 1, 1, ceil_mode=True), nn.ReLU6(), nn.Hardtanh(-0.1, 0.3), nn.Hardsigmoid(),
    nn.AvgPool2d(3, 2, 1, True, False), nn.AdaptiveAvgPool2d((2, 3)),
]  # fmt: skip


@pytest.mark.parametrize("layer", RISING + SMOOTH, ids=lambda layer: type(layer).__name__)
def test_activations_and_pooling(layer):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), layer, nn.Flatten(), nn.LazyLinear(3))
    x = torch.randn(4, 1, 6, 6)
    module(x)
    for eps in (0.0, 0.01, 0.3):
        with torch.no_grad():
            center, radius, clean = bound(module, x, torch.full_like(x, eps), clean=x)
            noise = torch.rand(100, *x.shape) * 2 - 1
            outputs = module((x + eps * noise).flatten(0, 1)).unflatten(0, (100, -1))
        assert ((outputs - center).abs() <= radius + 1e-5 * (1 + center.abs() + radius)).all()
        torch.testing.assert_close(clean, module(x))
        if eps == 0:
            torch.testing.assert_close(center, module(x), rtol=1e-4, atol=1e-5)
            assert (radius < 1e-4).all()


@pytest.mark.parametrize("radius", [0.0, 1e-12, 1e-7])
def test_tiny_boxes_stay_boxes(radius):
    """Through what rounds, into a ReLU, which takes no negative radius."""
    torch.manual_seed(0)
    for layer in (nn.Softmax(-1), nn.LayerNorm(16), nn.GELU(), nn.Softplus(3.0), nn.SELU(), nn.Hardsigmoid()):
        x = torch.randn(3000, 16)
        center, extent = bound(nn.Sequential(layer, nn.ReLU()), x, torch.full_like(x, radius))
        assert extent.min() >= 0
        torch.testing.assert_close(center, layer(x).relu(), rtol=1e-4, atol=1e-5)


MASK, LOW = torch.ones(4, 4, dtype=torch.bool).tril(), torch.tensor([0.0, -0.2, 0.1, 0.0, -9.0, 9.0])
CALLS = [  # with options by place and by name
    lambda x: F.relu(input=x) + F.elu(x, 0.3) + F.leaky_relu(x, negative_slope=0.2, inplace=False),
    lambda x: torch.add(x, torch.sub(input=x, other=-x, alpha=3), alpha=-2) + torch.sub(1.0, x),
    lambda x: x.sub(2.0, alpha=0.5).add(x, alpha=0.1),
    lambda x: torch.cat(tensors=[x, torch.exp(x)], dim=-1).mul(other=0.5),
    lambda x: F.scaled_dot_product_attention(x, x, x, MASK) + F.scaled_dot_product_attention(x, x, x, None, 0.0, True),
    lambda x: F.softplus(x, 2.0, threshold=25.0) + torch.softmax(x, -1) + F.softmax(x, dim=1),
    lambda x: x.clamp(max=0.3) + torch.clamp(x, -0.1) + x.clamp_min(0.2) + torch.clamp_max(x, 0.1),
    lambda x: torch.clamp(x, min=LOW),
    lambda x: F.max_pool1d(x, 2, 2) + F.max_pool2d(x, (1, 2), ceil_mode=True) + F.avg_pool1d(x, 2, padding=0),
    lambda x: F.avg_pool2d(x, 2, 1, 1, False, count_include_pad=False) + torch.max_pool2d(x, 2, 1, 1),
    lambda x: F.layer_norm(x, (6,), eps=1e-3) + F.rms_norm(x, [6]) + F.gelu(x, approximate="tanh"),
    lambda x: F.relu(x, True) + x,  # changed in place, by place
    lambda x: F.elu(x, 0.5, True) + x,
]


@pytest.mark.parametrize("number", range(len(CALLS)))
def test_options_of_functions(number):
    class Calls(nn.Module):
        def forward(self, x):
            return CALLS[number](x)

    torch.manual_seed(0)
    x = torch.randn(2, 4, 6)
    for eps in (0.0, 0.2):
        center, radius, clean = bound(Calls(), x, torch.full_like(x, eps), clean=x)
        torch.testing.assert_close(clean, Calls()(x.clone()))
        for _ in range(50):
            y = Calls()(x + eps * (2 * torch.rand_like(x) - 1))
            assert ((y - center).abs() <= radius + 1e-5 * (1 + center.abs())).all()
    assert (radius > 0).any()


def test_a_layers_name_means_nothing():
    layers = {"relu": nn.Identity(), "add": nn.Linear(3, 3), "mul_": nn.BatchNorm1d(3).eval(), "flatten": nn.ReLU()}
    module, x = nn.Sequential(), torch.randn(4, 3)
    for name, layer in layers.items():
        module.add_module(name, layer)
    torch.testing.assert_close(bound(module, x, torch.zeros_like(x))[0], module(x))
