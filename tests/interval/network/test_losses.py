"""Margins, sound bounds, the warm-up's initialisation, regularisers and schedules."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.support.nets import Residual, chain, residual
from warpup.interval import (
    BoxSums,
    UnsupportedLayer,
    bound,
    cnn7,
    epsilon_schedule,
    ibp_init_,
    kappa_schedule,
    margin_loss,
    margins,
    relu_balance_loss,
    tightness_loss,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# ---- margins


def test_margins_are_at_least_the_difference_of_bounds():
    module, x = chain(classes=4)
    radius, labels = torch.full_like(x, 0.05), torch.tensor([0, 1, 2, 3, 0])
    center, extent = bound(module, x, radius)
    low, high = center - extent, center + extent
    found = margins(module, x, radius, labels)
    with torch.no_grad():
        noise = torch.rand(200, *x.shape) * 2 - 1
        logits = module((x + radius * noise).flatten(0, 1)).unflatten(0, (200, -1))
    for row, label in enumerate(labels):
        rest = [k for k in range(4) if k != label]
        assert (found[row] >= low[row, label] - high[row, rest] - 1e-5).all()
        assert (found[row] <= (logits[:, row, label, None] - logits[:, row, rest]).amin(0) + 1e-5).all()
    loss = margin_loss(module, x, radius, labels, clean=x, kappa=0.25)
    robust = F.cross_entropy(torch.cat([torch.zeros(5, 1), -found], 1), torch.zeros(5, dtype=torch.int64))
    torch.testing.assert_close(loss, 0.25 * F.cross_entropy(module(x), labels) + 0.75 * robust)


# ---- rounding


@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_sound_bounds_hold_the_exact_outputs(eps):
    outside = {}
    for sound in (False, True):
        outside[sound] = 0
        for seed in range(4):
            module, x = residual(seed, 8)
            radius = torch.full_like(x, eps)
            exact = Residual()
            exact(x)
            exact.load_state_dict(module.state_dict())
            with torch.no_grad():
                center, extent = bound(module, x, radius, sound=sound)
                true = exact.double().eval()(x.double())
                outside[sound] += int(((true - center.double()).abs() > extent.double()).sum())
    assert outside[True] == 0
    if eps == 0:
        assert outside[False] > 0  # plain bounds hold up to rounding only


AVERAGES = [nn.AvgPool2d(7), nn.AvgPool1d(15), nn.AdaptiveAvgPool2d(2), nn.AdaptiveAvgPool1d(3)]


@pytest.mark.parametrize("layer", AVERAGES, ids=lambda layer: type(layer).__name__)
def test_sound_averages_cover_their_own_rounding(layer):
    shape = (64, 3, 14, 14) if type(layer).__name__.endswith("2d") else (64, 3, 45)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = layer(x.double())
    for sound in (True, False):
        center, radius = (t.double() for t in bound(nn.Sequential(layer), x, torch.zeros_like(x), sound=sound))
        assert ((exact - center).abs() <= radius).all() == sound


def test_sound_margins_are_below_the_plain_ones():
    module, x = chain()
    labels, radius = torch.arange(5) % 4, torch.full_like(x, 0.01)
    plain, sound = (margins(module, x, radius, labels, sound=s) for s in (False, True))
    assert (sound < plain).all()
    torch.testing.assert_close(sound, plain, rtol=1e-3, atol=1e-3)
    with pytest.raises(UnsupportedLayer, match="sound bounds need frozen statistics"):
        bound(module.train(), x, radius, clean=x, sound=True)


def test_sound_margins_are_below_the_exact_ones():
    """Of the last layer alone, at points: nothing but its own rounding is there to be covered."""
    generator = torch.Generator().manual_seed(0)
    module = nn.Linear(400, 6).requires_grad_(False)
    module.weight.normal_(generator=generator), module.bias.normal_(generator=generator)
    x, labels = torch.randn(200, 400, generator=generator), torch.arange(200) % 6
    plain, sound = (margins(module, x, torch.zeros_like(x), labels, sound=s).double() for s in (False, True))
    z = F.linear(x.double(), module.weight.double(), module.bias.double())
    rest = torch.arange(5) + (torch.arange(5) >= labels.unsqueeze(1))
    exact = z.gather(1, labels.unsqueeze(1)) - z.gather(1, rest)
    assert (sound <= exact).all()
    assert (plain > exact).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sound_margins_do_not_follow_autocast(dtype):
    """Products in 16 bits would be wrong by far more than what the margins are lowered by."""
    module, x = chain()
    labels, radius = torch.arange(5) % 4, torch.full_like(x, 1e-3)
    want, usual = (margins(module, x, radius, labels, sound=sound) for sound in (True, False))
    with torch.autocast("cpu", dtype):
        found, plain = (margins(module, x, radius, labels, sound=sound) for sound in (True, False))
        center, extent = bound(module, x, radius, sound=True)
    assert found.dtype == torch.float32
    assert torch.equal(found, want)
    assert (plain - usual).abs().max() > 1e-5  # autocast does something
    assert all(torch.equal(g, w) for g, w in zip((center, extent), bound(module, x, radius, sound=True), strict=True))


# ---- the initialisation: widths by layer


def widths(module, x, eps=0.05):
    with torch.no_grad():
        sums = bound(module, x, torch.full_like(x, eps), sums=True)[-1]
    return [float(s.radius / s.count) / eps for s in sums]


def test_ibp_initialisation_keeps_the_width():
    torch.manual_seed(0)
    module, x = cnn7(1, 8, batch_norm=False), torch.rand(4, 1, 8, 8)
    usual = widths(module, x)
    last = module[-1].weight.clone()
    found = widths(ibp_init_(module), x)
    assert torch.equal(module[-1].weight, last)
    for layer in module:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
    nn.init.kaiming_normal_(module[-3].weight)
    kaiming = widths(module, x)
    for value, expected in zip(found, (1.8, 1.4, 1.3, 0.95, 0.71, 0.69), strict=True):
        assert expected / 1.5 < value < expected * 1.5
    assert 1e4 < usual[-1] < 3e4
    assert 1e6 < kaiming[-1] < 4e6
    assert all(b > 3 * a for a, b in pairwise(usual))


def test_weights_that_read_a_relu_of_a_sum_are_halved():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm, self.after, self.last = (
                nn.Linear(400, 400),
                nn.LayerNorm(3),
                nn.Linear(400, 400),
                None,
            )
            self.plain, self.last = nn.Linear(400, 400), nn.Linear(400, 2)

        def forward(self, x):
            y = self.first(x)
            return self.last(self.plain(F.relu(self.after(F.relu(y + x)))))

    module = ibp_init_(Sum(), torch.Generator().manual_seed(0))
    expected = (2 * torch.pi) ** 0.5 / 400
    for layer, scale in ((module.first, 1), (module.after, 0.5), (module.plain, 1)):
        torch.testing.assert_close(float(layer.weight.detach().std()), scale * expected, rtol=0.01, atol=0)
        assert abs(float(layer.weight.detach().mean())) < 0.01 * expected


# ---- the regularisers


def sums_of(center, radius):
    module = nn.Sequential(nn.ReLU())
    return bound(module, center, radius, sums=True)[-1]


def test_tightness_by_hand():
    boxes = [*sums_of(torch.zeros(1, 4), torch.full((1, 4), 0.4)), *sums_of(torch.zeros(1, 2), torch.full((1, 2), 0.1))]
    # E[D_0] / E[D_i] is .25 and 1: (.5 - .25) / .5 and nothing.
    assert float(tightness_loss(boxes, 0.1)) == pytest.approx((0.25 / 0.5) / 2)
    assert float(tightness_loss(boxes, torch.tensor(0.1), tau=1)) == pytest.approx(0.75 / 2)
    assert float(tightness_loss(boxes, 1.0)) == 0


def test_balance_by_hand():
    center = torch.tensor([[3.0, 1.0, -2.0, 0.1]])
    [box] = sums_of(center, torch.full_like(center, 0.5))  # 3 and 1 active, -2 inactive
    mean = float(center.mean())
    a, b = 2 / 4, ((3 - mean) ** 2 + (1 - mean) ** 2) / (2 + mean) ** 2
    expected = [max(0, tau - min(a, 1 / a)) / tau + max(0, tau - min(b, 1 / b)) / tau for tau in (0.5, 0.9)]
    assert [float(relu_balance_loss([box], tau)) for tau in (0.5, 0.9)] == pytest.approx(expected)
    [neither] = sums_of(torch.zeros(1, 3), torch.ones(1, 3))
    assert float(relu_balance_loss([neither])) == 0
    assert float(relu_balance_loss([box, neither], 0.9)) == pytest.approx(expected[1] / 2)


@pytest.mark.parametrize("radius", [0.0, 1e-30, 1e-12, 1.0])
def test_regularisers_have_finite_gradients(radius):
    center = torch.zeros(2, 3, requires_grad=True)
    sums = bound(nn.Sequential(nn.ReLU()), center * 2, center.detach() + radius, sums=True)[-1]
    loss = tightness_loss(sums, radius) + relu_balance_loss(sums)
    if loss.requires_grad:
        loss.backward()
        assert torch.isfinite(center.grad).all()
    leaves = [torch.zeros((), requires_grad=True) for _ in BoxSums._fields]
    tightness_loss([BoxSums(torch.tensor(4), *leaves[1:])], 0.0).backward()
    assert all(leaf.grad is None or torch.isfinite(leaf.grad) for leaf in leaves)


def test_regularisers_narrow_the_boxes():
    torch.manual_seed(0)
    module, x = cnn7(1, 8, width=4, hidden=16, batch_norm=False), torch.rand(4, 1, 8, 8)
    before, optimizer = widths(module, x), torch.optim.Adam(module.parameters(), 1e-2)
    for _ in range(8):
        sums = bound(module, x, torch.full_like(x, 0.05), sums=True)[-1]
        (tightness_loss(sums, 0.05) + relu_balance_loss(sums)).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert widths(module, x)[-1] < 0.5 * before[-1]


# ---- the schedules


def test_epsilon_schedule():
    grow = epsilon_schedule(0.8, 100, 40)
    t = 10**3
    alpha = 0.8 / (30 * 4 * t + 10 * t)
    assert [grow(step) for step in (0, 100, 140, 1000)] == [0, 0, 0.8, 0.8]
    assert [grow(100 + s) for s in (1, 5, 9.999)] == pytest.approx([alpha * s**4 for s in (1, 5, 9.999)])
    assert grow(110) == pytest.approx(alpha * 10**4)
    assert grow(120) == pytest.approx(alpha * 10**4 + 4 * alpha * t * 10)
    values = [grow(100 + s / 10) for s in range(401)]
    assert all(a <= b for a, b in pairwise(values))
    assert epsilon_schedule(0.3, 5, 0)(5) == 0.3  # no growth: at once
    assert epsilon_schedule(0.3, 0, 10, exponent=1)(5) == pytest.approx(0.15)
    with pytest.raises(ValueError, match=r"expected eps >= 0, .* mid=0"):
        epsilon_schedule(0.1, 0, 10, mid=0)


def test_kappa_schedule():
    assert [kappa_schedule(eps, 0.2) for eps in (0, 0.1, 0.2)] == [1, 0.5, 0]
    assert [kappa_schedule(eps, 0.2, 0.5) for eps in (0, 0.1, 0.2)] == pytest.approx([1, 0.75, 0.5])
