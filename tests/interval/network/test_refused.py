"""What bounds of modules refuse, and the trace that they keep."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.support.nets import chain
from warpup.interval import Box, UnsupportedLayer, bound, crown_ibp_loss, margin_loss, margins, pgd, rule

pytestmark = pytest.mark.usefixtures("one_thread")


class Chooses(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Sorts(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), Halves())

    def forward(self, x):
        return self.inner(x)


class Halves(nn.Module):
    def forward(self, x):
        return torch.cumprod(x, 1)


def hooked():
    layer = nn.Linear(3, 3)
    layer.register_forward_hook(lambda *_: None)
    return nn.Sequential(layer)


def hooked_root(register="register_forward_hook"):
    module = nn.Sequential(nn.Linear(3, 3))
    getattr(module, register)(lambda *_: None)
    return module


REFUSED = [
    (lambda: nn.Sequential(nn.Linear(3, 3), nn.LSTM(3, 3)), r"layer '1' \(LSTM\): boxes cannot go .*; build it"),
    (Chooses, "Chooses: torch.fx cannot trace its forward .*control flow"),
    (Sorts, r"cumprod in layer 'inner.1' \(Halves\): boxes cannot"),
    (hooked, r"layer '0' \(Linear\): it has forward hooks"),
    (hooked_root, "Sequential has forward hooks, which bounds would leave out"),
    (lambda: hooked_root("register_forward_pre_hook"), "Sequential has forward hooks"),
    (lambda: nn.Sequential(nn.Dropout(0.3)), r"layer '0' \(Dropout\): dropout is random in training mode"),
    (lambda: nn.BatchNorm1d(3), r"layer '0' \(BatchNorm1d\): .* pass clean=, or statistics='midpoint'"),
    (lambda: nn.Bilinear(3, 3, 3), "Bilinear"),
    (lambda: nn.Conv1d(4, 1, 2, padding="same"), r"padding='same' of an even kernel \(2,\)"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_refused_layers_are_named(make, message):
    x = torch.randn(4, 3)
    with pytest.raises((UnsupportedLayer, TypeError), match=message):
        bound(make(), x, torch.zeros_like(x))


OPTIONS = [
    (lambda x: torch.div(x, 2, rounding_mode="floor"), "div in .*unexpected keyword argument 'rounding_mode'.*leave"),
    (lambda x: torch.exp(x, out=None), "exp in .*unexpected keyword argument 'out'"),
    (lambda x: x**x, "pow in .*: its base must be a number above 0"),
    (lambda x: x ** torch.ones(1), "pow in .*: its exponent must be a number"),
    (lambda x: torch.max(x, 1)[0], "max in .*: only the larger or smaller of two tensors has a rule; .* take amax"),
    (lambda x: F.interpolate(x[None, None], size=5, mode="bicubic"), "interpolate in .*: mode 'bicubic' has no rule"),
    (lambda x: x.to(torch.int64) + x, "to in .*: it makes torch.int64 of a box, and bounds need floating point"),
    (lambda x: F.linear(x, x), "linear in .*: its weight must not come from the input"),
    (lambda x: F.scaled_dot_product_attention(x, x, x, None, 0.3), "attention in .*: dropout_p is 0.3, .*: pass 0"),
    (
        lambda x: F.scaled_dot_product_attention(*[x[None, None]] * 3, enable_gqa=True),
        "option enable_gqa has no rule: repeat",
    ),
    (
        lambda x: F.scaled_dot_product_attention(x, x, x, x @ x.transpose(0, 1)),
        "attn_mask must not come from the input",
    ),
    (lambda x: F.scaled_dot_product_attention(x, x, torch.ones(4, 3)), "every operand must come from the input"),
    (lambda x: torch.softmax(x, -1, torch.float64), "softmax in .*: option dtype has no rule: leave it out"),
    (lambda x: F.softmax(x), "softmax in .*: its dim is not given"),
    (lambda x: F.softplus(x, 1, 5), "softplus in .*: threshold must be at least 20.*got 5"),
    (lambda x: F.softplus(x, beta=-1), "softplus in .*: beta must be above 0, got -1"),
    (lambda x: F.avg_pool2d(x[None], 2, divisor_override=3), "avg_pool2d in .*: divisor_override has no rule"),
    (nn.Sequential(nn.Softplus(2.0, 3.0)), r"layer '0' \(Softplus\): threshold must be at least 20"),
    (nn.Sequential(nn.CELU(-1.0)), r"layer '0' \(CELU\): alpha must be above 0"),
    (nn.Sequential(nn.MaxPool1d(2, return_indices=True)), r"layer '0' \(MaxPool1d\): return_indices has no rule"),
]


@pytest.mark.parametrize(("call", "message"), OPTIONS, ids=[message[:30] for _, message in OPTIONS])
def test_refused_options_are_named(call, message):
    class Calls(nn.Module):
        def forward(self, x):
            return call(x)

    x = torch.randn(4, 3)
    with pytest.raises(UnsupportedLayer, match=message):
        bound(call if isinstance(call, nn.Module) else Calls(), x, torch.zeros_like(x))


OUTSIDE = [
    (lambda x: 1 / x, "truediv in .*: a divisor must not reach 0, got a box from -1 to 1: keep it away from 0"),
    (lambda x: torch.log(x + 1), "log in .*: a logarithm needs numbers above 0, got a box from .* to 2: make its"),
    (lambda x: (x + 0.5).sqrt(), "sqrt in .*: a square root needs numbers of at least 0, got a box from -0.5.* to 1.5"),
    (lambda x: x.log1p(), "log1p in .*: log1p needs numbers above -1, got a box from -1 to 1"),
]


@pytest.mark.parametrize("sound", [False, True])
@pytest.mark.parametrize(("call", "message"), OUTSIDE, ids=[message[:8] for _, message in OUTSIDE])
def test_boxes_that_reach_outside_of_a_domain_are_named(call, message, sound):
    class Calls(nn.Module):
        def forward(self, x):
            return call(x)

    with pytest.raises(UnsupportedLayer, match=message):
        bound(Calls(), torch.zeros(2, 3), torch.ones(2, 3), sound=sound)
    center, radius = bound(Calls(), torch.full((2, 3), 2.0), torch.ones(2, 3), sound=sound)  # the same plan
    assert (center.isfinite() & (radius > 0)).all()


def test_a_wrong_rule_is_seen_where_far_inputs_give_nan():
    """A fresh plan is held against the module near the center, where a logarithm far from it says nothing."""

    class Twice(nn.Module):
        def forward(self, x):
            return 2 * x

    rule(Twice, affine=True)(lambda walk, layer, x: x.each(torch.mul, 3.0))

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.twice = Twice()

        def forward(self, x):
            return self.twice(x.log()).sum(1)

    x = torch.full((1, 400), 0.5)
    with pytest.raises(UnsupportedLayer, match=r"layer 'twice' \(Twice\): its rule is not what it computes"):
        bound(Net(), x, 0.1 * x)


def test_no_sound_bounds():
    x = torch.randn(4, 3)
    with pytest.raises(UnsupportedLayer, match=r"layer '1' \(Softplus\): it has no sound bounds: leave sound=True out"):
        bound(nn.Sequential(nn.ReLU(), nn.Softplus()), x, torch.zeros_like(x), sound=True)


def test_an_error_within_a_rule_stays_one():
    class Odd(nn.Module):
        def forward(self, x):
            return x

    @rule(Odd)
    def _(walk, layer, x):
        return len(0)

    x = torch.randn(4, 3)
    with pytest.raises(TypeError, match="object of type 'int' has no len"):
        bound(nn.Sequential(Odd()), x, torch.zeros_like(x))


WRONG = [
    ({"radius": torch.full((4, 3), -0.1)}, "radius must be at least 0, got -0.1"),
    ({"radius": torch.full((4, 3), torch.nan)}, "radius must be at least 0, got nan"),
    ({"radius": torch.zeros(3)}, r"radius must have center's shape and dtype \(4, 3\) torch.float32, got \(3,\)"),
    ({"radius": torch.zeros(4, 3).double()}, "got .* torch.float64"),
    ({"radius": 0.1}, "radius must be a floating-point tensor, got float"),
    ({"center": torch.zeros(4, 3, dtype=torch.int64)}, "center must be a floating-point tensor, got torch.int64"),
    ({"clean": torch.zeros(4)}, "clean must have center's shape"),
    ({"statistics": "batch"}, "statistics must be 'clean', 'midpoint' or 'frozen', got 'batch'"),
    ({"shrinkage": 0.0}, "shrinkage must be above 0 and at most 1, got 0"),
    ({"shrinkage": 0.5, "sound": True}, "gives up soundness"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_wrong_boxes(change, message):
    arguments = {"center": torch.zeros(4, 3), "radius": torch.zeros(4, 3)} | change
    with pytest.raises(ValueError, match=message):
        bound(nn.Linear(3, 2), **arguments)


def test_nan_in_the_center_comes_out():
    x = torch.tensor([[0.0, torch.nan], [1.0, 2.0]])
    center, _ = bound(nn.Linear(2, 2), x, torch.zeros_like(x))
    assert center.isnan().tolist() == [[True, True], [False, False]]


def test_margins_need_a_linear_end():
    x = torch.zeros(2, 3)
    with pytest.raises(UnsupportedLayer, match="Sequential does not end in a linear layer"):
        margins(nn.Sequential(nn.Linear(3, 3), nn.ReLU()), x, x, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="weighs the clean loss: pass clean="):
        margin_loss(nn.Linear(3, 3), x, x, torch.tensor([0, 1]), kappa=0.5)


def test_wrong_options_of_losses_and_attacks():
    module, x, labels = nn.Linear(3, 3), torch.zeros(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="kappa must be from 0 to 1"):
        margin_loss(module, x, x, labels, clean=x, kappa=1.5)
    with pytest.raises(ValueError, match="beta must be from 0 to 1, got -1"):
        crown_ibp_loss(module, x, x, labels, beta=-1)
    with pytest.raises(ValueError, match="restarts must be at least 1 and steps at least 0, got 0 and 20"):
        pgd(module, x, x, labels, restarts=0)


def test_a_rule_of_ones_own():
    class Arctan(nn.Module):
        def forward(self, x):
            return torch.atan(x)

    x, module = torch.randn(4, 3), nn.Sequential(Arctan())
    with pytest.raises(UnsupportedLayer, match="atan in"):
        bound(module, x, torch.ones_like(x))

    @rule(Arctan)
    def _(walk, layer, x):
        low, high = (x.center - x.radius).atan(), (x.center + x.radius).atan()
        return Box((low + high) / 2, (high - low) / 2)

    center, radius = bound(module, x, torch.ones_like(x))
    torch.testing.assert_close(center + radius, (x + 1).atan())


def test_the_trace_is_kept_until_the_module_changes_and_keeps_no_module():
    module, x = chain()
    radius = torch.full_like(x, 0.1)
    before = bound(module, x, radius)
    module[10] = nn.Linear(7, 4)  # same type: read anew without a trace
    assert not torch.equal(bound(module, x, radius)[0], before[0])
    module[8] = nn.Identity()
    torch.testing.assert_close(bound(module, x, 0 * radius)[0], module(x))
    gone = weakref.ref(module)
    del module
    gc.collect()
    assert gone() is None
