"""What is changed in place is read changed, through whatever alias; a plan that is not its module bounds nothing."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from warpup.interval import UnsupportedLayer, bound, crown_margins, margins, rule

pytestmark = pytest.mark.usefixtures("one_thread")


class Forward(nn.Module):
    """A module whose forward is the function; `layers` by name."""

    def __init__(self, function, **layers):
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, x):
        return self.function(self, x)


def test_a_relu_behind_an_identity_changes_what_it_is_of():
    """The network says 1, wherever in the box; taken apart from its alias, x would be certified as 0."""
    net = Forward(
        lambda m, x: (lambda h: (lambda y: m.out(h + 0 * y))(m.relu(m.identity(h))))(m.fc(x)),
        fc=nn.Linear(2, 2, bias=False), identity=nn.Identity(), relu=nn.ReLU(inplace=True),
        out=nn.Linear(2, 2, bias=False),
    )  # fmt: skip
    with torch.no_grad():
        net.fc.weight.copy_(torch.eye(2))
        net.out.weight.copy_(torch.tensor([[-1.0, 0.0], [0.0, 1.0]]))
    x, radius, label = torch.tensor([[-1.0, 0.5]]), torch.full((1, 2), 0.1), torch.tensor([0])
    assert net(x).argmax() == 1
    for sound in (False, True):
        torch.testing.assert_close(margins(net, x, radius, label, sound=sound), torch.tensor([[-0.6]]))
    torch.testing.assert_close(crown_margins(net, x, radius, label)[0], torch.tensor([[-0.6]]))
    torch.testing.assert_close(bound(net, x, 0 * radius)[0], net(x))


def iadd(m, x):
    x = m.fc(x)
    y = x
    y += 1
    return x * y


def pieces(m, x):
    x = m.fc(x)
    a, b = x.chunk(2, 1)
    a.sub_(b)
    return torch.stack(x.split([1, 3], 1)[1].unbind(1)[:2], 1) * a


def indexed(m, x):
    x = m.fc(x)
    x[:, 0] = x[:, 1] * 2
    x[:, 2:] = 0.5
    return x


def earlier(m, x):
    """The change is read by views that were made before it, and not by copies."""
    x = m.fc(x)
    row, copy, turned = x[:, 1:3], x.clone(), x.view(-1, 2, 2).transpose(1, 2)
    F.relu(turned, inplace=True)
    x[:, 2].mul_(-3)
    return torch.cat([row, copy, turned.flatten(1), x], 1)


def constant(m, x):
    total = torch.zeros(4)
    part = total[1:]
    total += m.fc(x).sum(0)
    part -= 1
    return x + total


def same_shape(m, x):
    """Views of one shape: of other elements, and of the same ones in another order."""
    x = m.fc(x)
    even, odd = x[:, ::2], x[:, 1::2]
    square = x.view(-1, 2, 2)
    square.transpose(1, 2).mul_(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    even.neg_()
    return torch.cat([even, odd, square[:, 0], square[:, 1], x], 1)


def made_before(m, x):
    total = torch.zeros(4)
    total.add_(m.fc(x)[0])
    return x + total


ALIASED = {
    "identity": lambda m, x: (lambda h: m.identity(h).relu_() + h)(m.fc(x)),
    "dropout": lambda m, x: (lambda h: F.relu(m.dropout(h), True) + h)(m.fc(x)),
    "view": lambda m, x: (lambda h: torch.relu_(h.view(-1, 2, 2)).flatten(1) + h)(m.fc(x)),
    "reshape": lambda m, x: (lambda h: h.reshape(-1, 2, 2).neg_().flatten(1) + h)(m.fc(x)),
    "reshape_copies": lambda m, x: (lambda h: h.transpose(0, 1).reshape(-1).neg_()[0] + h)(m.fc(x)),
    "slice": lambda m, x: (lambda h: h[:, ::2].mul_(3).sum(1, True) + h)(m.fc(x)),
    "own_input": lambda m, x: x.mul_(2).sum(1, keepdim=True) + x,
    "to_the_same_dtype": lambda m, x: (lambda h: h.float().clamp_(-0.1, 0.1) + h)(m.fc(x)),
    "copy": lambda m, x: (lambda h: h[:, :2].copy_(h[:, 2:]) + h[:, :2])(m.fc(x)),
    "iadd": iadd, "pieces": pieces, "indexed": indexed, "earlier": earlier, "constant": constant,
    "made_before": made_before, "same_shape": same_shape,
}  # fmt: skip


def holds(net, x, radius, center, width, slack=1e-5):
    noise = (2 * torch.rand(64, *x.shape, dtype=x.dtype) - 1) * 2
    points = x + radius * noise.clamp(-1, 1)
    with torch.no_grad():
        outputs = torch.stack([net(point.clone()) for point in points])
    return bool(((outputs - center).abs() <= width + slack * (1 + center.abs())).all())


@pytest.mark.parametrize("name", ALIASED)
def test_aliases(name):
    torch.manual_seed(0)
    net = Forward(ALIASED[name], fc=nn.Linear(4, 4), identity=nn.Identity(), dropout=nn.Dropout()).eval()
    x = torch.randn(3, 4)
    before = x.clone()
    for eps in (0.0, 0.3):
        radius = torch.full_like(x, eps)
        center, width, clean = bound(net, x, radius, clean=x.clone())
        with torch.no_grad():
            torch.testing.assert_close(clean, net(x.clone()))
        assert holds(net, x, radius, center, width)
        assert (width == 0).all() == (eps == 0)
    assert torch.equal(x, before)


def test_constants_that_change_on_the_way_are_what_they_were_on_the_way_back():
    def forward(m, x):
        shift = m.shift.clone()
        y = m.fc(x) * shift
        shift.add_(1)
        return m.out(y.relu() - shift * x)

    torch.manual_seed(0)
    net = Forward(forward, fc=nn.Linear(4, 4), out=nn.Linear(4, 3))
    net.register_buffer("shift", torch.randn(4))
    x, label = torch.randn(2, 4), torch.tensor([0, 2])
    for _ in range(2):
        crown, ibp = crown_margins(net, x, 0 * x, label)
        torch.testing.assert_close(crown, ibp)
        torch.testing.assert_close(ibp, margins(net, x, 0 * x, label))
    assert (net(x).gather(1, label[:, None])[:, 0] - net(x)[:, 1] - crown[:, [0, 1]].diagonal()).abs().max() < 1e-5


# ---- a plan is held against its module


def test_a_rule_that_is_wrong_is_named():
    class Triple(nn.Module):
        def forward(self, x):
            return 3 * x

    @rule(Triple)
    def _(walk, layer, x):
        return x.each(torch.mul, 2.0)

    x = torch.randn(2, 3)
    with pytest.raises(
        UnsupportedLayer, match=r"radius 0 does not hold .*first node that differs is layer '1' \(Triple\)"
    ):
        bound(nn.Sequential(nn.ReLU(), Triple(), nn.ReLU()), x, x.abs())

    @rule(Triple)
    def _(walk, layer, x):
        return x.each(torch.mul, 3.0)

    net = nn.Sequential(nn.ReLU(), Triple(), nn.ReLU())
    torch.testing.assert_close(bound(net, x, 0 * x)[0], net(x))

    @rule(Triple)  # again, on a plan that is there
    def _(walk, layer, x):
        return x.each(torch.mul, 4.0)

    with pytest.raises(UnsupportedLayer, match="first node that differs"):
        bound(net, x, x.abs())


def test_what_is_rounding_is_judged_in_float64():
    class Far(nn.Module):
        def forward(self, x):
            return (x + 1e6) - 1e6  # off by 0.03 in float32

    @rule(Far)
    def _(walk, layer, x):
        return x

    x = torch.randn(4, 3)
    assert torch.equal(bound(nn.Sequential(Far()), x, x.abs())[0], x)


def test_a_layer_that_changes_two_values_is_refused():
    class Both(nn.Module):
        def forward(self, x, y):
            y.neg_()
            return x.add_(1)

    @rule(Both)
    def _(walk, layer, x, y):
        return x._replace(center=x.center + 1)

    net = Forward(lambda m, x: (lambda h: m.both(m.fc(x), h) + h)(m.fc(x)), fc=nn.Linear(3, 3), both=Both())
    with pytest.raises(
        UnsupportedLayer, match=r"layer 'both' \(Both\): it changes 'fc', which is read again, in a way"
    ):
        bound(net, torch.zeros(2, 3), torch.zeros(2, 3))


class Counts(nn.Module):
    calls = 0

    def forward(self, x):
        Counts.calls += 1
        return x * Counts.calls


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Counts(), "no single node differs, so torch.fx's trace is not what forward does"),
        (Forward(lambda m, x: x + torch.rand(3)), "no single node differs"),
        (Forward(lambda m, x: (x[[0]].relu_(), x.__setitem__([0], -1.0), x)[2]), "no single node differs"),
        (Forward(lambda m, x: m.fc(m.fc.weight.relu_() + x), fc=nn.Linear(3, 3)), "relu_ in .*: it changes"),
        (Forward(lambda m, x: (lambda p: (x.neg_(), p[0])[1])(x.chunk(2, 0))), "it changes 'chunk', which"),
        (Forward(lambda m, x: x @ torch.ones(4, 4)), r"matmul in .*: it fails on an input of shape \(2, 3\)"),
    ],
)  # fmt: skip
def test_what_the_trace_cannot_hold_bounds_nothing(net, message):
    x = torch.randn(2, 3)
    with pytest.raises(UnsupportedLayer, match=message):
        bound(net, x, x.abs())


def test_a_forward_of_its_own_is_refused():
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: x
    with pytest.raises(UnsupportedLayer, match=r"layer '0' \(Linear\): it has a forward of its own"):
        bound(nn.Sequential(layer), torch.zeros(2, 3), torch.zeros(2, 3))

    class Standardised(nn.Conv1d):
        def _conv_forward(self, x, weight, bias):
            return super()._conv_forward(x, weight - weight.mean(), bias)

    with pytest.raises(UnsupportedLayer, match=r"first node that differs is layer '0' \(Standardised\)"):
        bound(nn.Sequential(Standardised(2, 2, 1)), torch.zeros(1, 2, 3), torch.zeros(1, 2, 3))


def test_what_changes_a_trace_makes_a_new_one():
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.factor, self.signs, self.act = 2.0, [1, -1], torch.relu
            self.fc, self.drop = nn.Linear(3, 3), nn.Dropout(0.0)

        def forward(self, x):
            x = self.drop(self.fc(x))
            x = self.act(x) if self.factor > 1 else x * self.factor
            return x * self.signs[1] if self.training else x

    torch.manual_seed(0)
    net, x = Chooses(), torch.randn(4, 3)
    hidden = nn.Sequential(net, nn.Identity())

    def one(m):
        m.fc = nn.Linear(3, 3)

    changes = (
        lambda m: m.eval(), lambda m: setattr(m, "factor", 0.5), lambda m: setattr(m, "factor", 0.25), one,
        lambda m: m.train(), lambda m: m.signs.append(m.signs.pop() * 3), lambda m: setattr(m, "factor", 3.0),
        lambda m: setattr(m, "act", lambda x: -x), lambda m: setattr(m, "act", lambda x: x + 5),
    )  # fmt: skip
    for change in changes:
        for module in (net, hidden):
            torch.testing.assert_close(bound(module, x, 0 * x)[0], module(x))
        change(net)
    torch.testing.assert_close(bound(net, x, 0 * x)[0], net(x))
    net.fc.register_forward_hook(lambda m, args, out: out + 1)
    with pytest.raises(UnsupportedLayer, match="has forward hooks"):
        bound(net, x, x.abs())


def test_what_forward_makes_of_tensors_is_made_anew():
    class Shifts(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 3)
            self.register_buffer("mean", torch.randn(3))
            self.plain = torch.randn(3)

        def forward(self, x):
            x = x[:, : self.mean.size(0)] if self.mean.shape[0] > 2 else -x
            return self.fc(x - self.mean.view(1, 3) * 2) + self.plain.exp() * self.fc.weight.sum()

    net, x = Shifts(), torch.randn(4, 3)
    changes = (
        lambda: net.load_state_dict({k: t + 1 for k, t in net.state_dict().items()}), lambda: net.plain.mul_(2),
        lambda: setattr(net, "mean", torch.randn(3)), lambda: setattr(net, "plain", torch.randn(3)), lambda: None,
    )  # fmt: skip
    for change in changes:
        torch.testing.assert_close(bound(net, x, 0 * x)[0], net(x))
        change()
    torch.testing.assert_close(bound(net, x, 0 * x)[0], net(x))


def test_the_check_leaves_the_module_as_it_was():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(inplace=True), nn.Linear(4, 2))
    state = {name: t.clone() for name, t in net.state_dict().items()}
    x, dropping = torch.randn(5, 3), nn.Sequential(nn.Linear(3, 3), nn.Dropout())
    random_state = torch.get_rng_state()
    bound(net, x, x.abs(), statistics="frozen")
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(t, state[name]) for name, t in net.state_dict().items())
    assert net[1].training
    assert set(vars(net)) == set(vars(nn.Sequential()))
    assert (bound(net, x[:1], x[:1].abs(), statistics="frozen")[1] > 0).any()  # of one, a batch has no statistics
    with pytest.raises(UnsupportedLayer, match="dropout is random in training mode"):
        bound(dropping, x, x.abs())
    assert torch.equal(torch.get_rng_state(), random_state)
    with torch.inference_mode():
        assert (bound(net.eval(), x * 1, x.abs())[1] > 0).any()


# ---- 2,000 random modules


def _assign(r, i, j):
    r[i][:, :2] = r[j][:, 2:] * 0.5


OPS = [  # (how often, what it does to the registers, each (B, 4))
    (2, lambda m, r, i, j: r.append(m.layers[j % 3](r[i]))),
    (1, lambda m, r, i, j: r.append(r[i].relu())),
    (1, lambda m, r, i, j: r.append(r[i] + r[j])),
    (1, lambda m, r, i, j: r.append(torch.sub(r[i], r[j], alpha=0.5))),
    (1, lambda m, r, i, j: r.append(r[i] * 0.7 - 0.2)),
    (1, lambda m, r, i, j: r.append(r[i].clone())),
    (1, lambda m, r, i, j: r.append(torch.cat([r[i][:, 2:], r[j][:, :2]], 1))),
    (1, lambda m, r, i, j: r.append(r[i] - r[j].mean(1, keepdim=True))),
    # aliases
    (1, lambda m, r, i, j: r.append(m.identity(r[i]))),
    (1, lambda m, r, i, j: r.append(m.dropout(r[i]))),
    (1, lambda m, r, i, j: r.append(r[i].view(r[i].size(0), 2, 2).flatten(1))),
    (1, lambda m, r, i, j: r.append(r[i].contiguous().reshape(-1, 4))),
    (1, lambda m, r, i, j: r.append(r[i].view(-1, 2, 2).transpose(1, 2).reshape(-1, 4))),
    # changes in place, through views of all kinds
    (2, lambda m, r, i, j: m.relu(r[i])),
    (1, lambda m, r, i, j: r.append(F.relu(r[i], inplace=True))),
    (1, lambda m, r, i, j: r[i].add_(r[j], alpha=0.3)),
    (1, lambda m, r, i, j: r[i].mul_(-0.8)),
    (1, lambda m, r, i, j: r.__setitem__(i, _iadd(r[i], 0.3))),
    (1, lambda m, r, i, j: r.__setitem__(i, _iadd(r[i], r[j]))),
    (1, lambda m, r, i, j: r[i].copy_(r[j])),
    (1, lambda m, r, i, j: r[i][:, ::2].neg_()),
    (1, lambda m, r, i, j: torch.relu_(r[i].chunk(2, 1)[j % 2])),
    (1, lambda m, r, i, j: r[i].view(-1, 2, 2)[:, 0].sub_(0.4)),
    (1, lambda m, r, i, j: _assign(r, i, j)),
    # what CROWN-IBP has no rule for, in every other program
    (2, lambda m, r, i, j: r.append(r[i] * r[j])),
    (2, lambda m, r, i, j: r.append(torch.maximum(r[i], r[j]))),
    (1, lambda m, r, i, j: r.append(r[i].transpose(0, 1).transpose(0, 1)[:, :])),
    (1, lambda m, r, i, j: r[i].abs_()),
    (2, lambda m, r, i, j: r[i].clamp_(-0.5, 0.5)),
]  # fmt: skip
CHOICES = [op for often, op in OPS for _ in range(often)]


def _iadd(x, y):
    x += y
    return x


class Program(nn.Module):
    """A random straight line of operations on registers that may share memory."""

    def __init__(self, seed):
        super().__init__()
        choose = random.Random(seed)
        choices = len(CHOICES) - 8 * (seed % 2)
        self.steps = [(choose.randrange(choices), choose.random(), choose.random()) for _ in range(6)]
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.identity, self.dropout, self.relu = nn.Identity(), nn.Dropout(), nn.ReLU(inplace=True)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        registers = [x, self.layers[0](x)]
        for number, i, j in self.steps:
            CHOICES[number](self, registers, int(i * len(registers)), int(j * len(registers)))
        first, *rest = registers
        for register in rest:
            first = first + register
        return self.out(first)


@pytest.mark.parametrize("part", range(4))
def test_random_modules_hold_their_outputs(part):
    """No sampled output of 2,000 modules is outside of any bound, with CROWN-IBP for half of them."""
    for seed in range(500 * part, 500 * part + 500):
        torch.manual_seed(seed)
        net = Program(seed).double().eval()
        x, label = torch.randn(2, 4, dtype=torch.float64), torch.tensor([0, 2])
        radius = torch.rand_like(x) * 0.3
        noise = (2 * torch.rand(40, *x.shape, dtype=torch.float64) - 1) * 2
        with torch.no_grad():
            outputs = net((x + radius * noise.clamp(-1, 1)).flatten(0, 1)).unflatten(0, (40, 2))
            known = outputs.gather(2, label.expand(40, 2).unsqueeze(2)) - outputs
            least = torch.stack([known[:, 0, [1, 2]], known[:, 1, [0, 1]]], 1).amin(0)
            for sound in (False, True):
                center, width = bound(net, x, radius, sound=sound)
                slack = 1e-9 * (1 + center.abs() + width)
                assert ((outputs - center).abs() <= width + slack).all(), seed
            for bounds in crown_margins(net, x, radius, label) if seed % 2 else ():
                assert (bounds <= least + 1e-9 * (1 + bounds.abs())).all(), seed
