"""Margins beyond the contract: soundness, hand values, layouts, special values, messages."""

import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cases import OPS
from warpup import margin_bounds, margin_cross_entropy
from warpup.interval.margin_bounds import others, reference_margin_bounds

CASE, LOSS = OPS["margin_bounds"], OPS["margin_cross_entropy"]
FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


@st.composite
def problems(draw):
    size = (
        draw(st.sampled_from([1, 2, 5, 9])),
        draw(st.sampled_from([1, 2, 15, 16, 31, 32, 33, 129, 200])),
        draw(st.sampled_from([1, 2, 3, 4, 5, 31, 33, 70])),
    )
    inputs = CASE.inputs(size, draw(st.sampled_from(FLOATS)), "cpu", draw(st.integers(0, 1000)), "plain")
    if draw(st.booleans()):  # rows with gaps
        for name in ("center", "radius", "weight"):
            wide = torch.full((inputs[name].shape[0], size[1] + 3), math.nan, dtype=inputs[name].dtype)
            wide[:, 2:-1] = inputs[name]
            inputs[name] = wide[:, 2:-1]
    return inputs


def on(device, inputs):
    return {k: v if v is None else v.to(device) for k, v in inputs.items()}


@given(inputs=problems())
@settings(max_examples=30)
def test_shapes_and_layouts(backend, inputs):
    CASE.check(on(backend.device, inputs))
    LOSS.check(on(backend.device, inputs))


@pytest.mark.parametrize(("batch", "width"), [(0, 3), (3, 0), (0, 0)])
def test_nothing(backend, batch, width):
    center = torch.zeros(batch, width, device=backend.device, requires_grad=True)
    weight = torch.ones(4, width, device=backend.device, requires_grad=True)
    bias = torch.tensor([3.0, 1, 0, 2], device=backend.device, requires_grad=True)
    labels = torch.ones(batch, dtype=torch.int64, device=backend.device)
    bounds = margin_bounds(center, center.detach(), weight, bias, labels)
    assert bounds.tolist() == [[-2, 1, -1]] * batch
    bounds.sum().backward()
    assert center.grad.shape == (batch, width)
    assert weight.grad.tolist() == torch.zeros(4, width).tolist()
    assert bias.grad.tolist() == [-batch, 3 * batch, -batch, -batch]


def test_hand_values(backend):
    """W = [[1, 2], [3, -1], [0, 0]], box [0, 2] x [-1, 1], label 0: x_0 2 at worst 4 below, 3 x_1 3 below."""
    weight = torch.tensor([[1.0, 2], [3, -1], [0, 0]], device=backend.device)
    center, radius = torch.tensor([[1.0, 0]], device=backend.device), torch.ones(1, 2, device=backend.device)
    bias = torch.tensor([0.5, 0, 0], device=backend.device)
    labels = torch.zeros(1, dtype=torch.int64, device=backend.device)
    want = [[-2.0 - 2 - 3 + 0.5, 1.0 - 1 - 2 + 0.5]]
    assert margin_bounds(center, radius, weight, bias, labels).tolist() == want
    loss = margin_cross_entropy(center, radius, weight, bias, labels)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(6.5) + math.exp(1.5)), rel=1e-6)


def test_sound_and_tight(backend):
    """No point of the box has a smaller margin, and one corner for each class has that very margin."""
    x = CASE.make("small", torch.float64, backend.device)
    bounds = margin_bounds(**x)
    generator = torch.Generator().manual_seed(0)
    batch, width = x["center"].shape

    def margins(points):  # (n, B, H) -> (n, B, K - 1)
        z = points @ x["weight"].t() + x["bias"]
        rest = others(x["labels"], len(x["weight"])).expand(len(z), -1, -1)
        return z.gather(-1, x["labels"].view(1, -1, 1).expand(len(z), -1, 1)) - z.gather(-1, rest)

    inside = (2 * torch.rand(500, batch, width, generator=generator, dtype=torch.float64) - 1).to(backend.device)
    for offsets in (inside, inside.sign()):
        assert (margins(x["center"] + offsets * x["radius"]) >= bounds - 1e-12).all()
    rest = others(x["labels"], len(x["weight"]))
    worst = x["center"] - (x["weight"][x["labels"]].unsqueeze(1) - x["weight"][rest]).sign().movedim(1, 0) * x["radius"]
    torch.testing.assert_close(margins(worst).diagonal(dim1=0, dim2=2), bounds, rtol=0, atol=1e-12)
    assert (margin_bounds(**{**x, "radius": 1.1 * x["radius"]}) < bounds).all()  # a larger box


def test_no_box_is_the_plain_loss(backend):
    x = CASE.make("small", torch.float64, backend.device)
    x["radius"] = torch.zeros_like(x["radius"])
    logits = x["center"] @ x["weight"].t() + x["bias"]
    torch.testing.assert_close(margin_cross_entropy(**x), torch.nn.functional.cross_entropy(logits, x["labels"]))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reductions_and_bounds(backend, reduction):
    x = CASE.make("small", torch.float32, backend.device, variant="plain")
    each, bounds = margin_cross_entropy(**x, reduction="none", bounds=True)
    assert bounds.tolist() == margin_bounds(**x).tolist()
    want = {"mean": each.mean(), "sum": each.sum(), "none": each}[reduction]
    assert margin_cross_entropy(**x, reduction=reduction).tolist() == want.tolist()


def test_without_a_bias(backend):
    x = CASE.make("small", torch.float32, backend.device, variant="no_bias")
    tensors = [x[k].requires_grad_() for k in ("center", "radius", "weight")]
    got = torch.autograd.grad(margin_cross_entropy(**x), tensors)
    zero = torch.zeros(len(x["weight"]), device=backend.device)
    want = torch.autograd.grad(margin_cross_entropy(**{**x, "bias": zero}), tensors)
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)


def test_equal_weights_have_no_sign(backend):
    """dW of |W_y - W_k| is 0 where they are equal, so only the center's part is left."""
    weight = torch.ones(3, 2, device=backend.device, requires_grad=True)
    center = torch.tensor([[2.0, 3]], device=backend.device)
    labels = torch.tensor([1], device=backend.device)
    margin_bounds(center, torch.ones(1, 2, device=backend.device), weight, None, labels).sum().backward()
    assert weight.grad.tolist() == [[-2, -3], [4, 6], [-2, -3]]


def test_far_margins(backend):
    """Losses and shares where exp would overflow or vanish."""
    weight = torch.eye(3, device=backend.device)
    center = torch.tensor([[1e4, 0, 0], [0, 1e4, 0], [-1e4, -1e4, -1e4]], device=backend.device, requires_grad=True)
    labels = torch.zeros(3, dtype=torch.int64, device=backend.device)
    loss = margin_cross_entropy(
        center, torch.zeros(3, 3, device=backend.device), weight, None, labels, reduction="none"
    )
    torch.testing.assert_close(loss.cpu(), torch.tensor([0, 1e4, math.log(3)]))
    loss.sum().backward()
    third = 1 / 3
    want = torch.tensor([[0, 0, 0], [-1, 1, 0], [-2 * third, third, third]])
    torch.testing.assert_close(center.grad.cpu(), want)


def test_special_values(backend):
    x = CASE.make("small", torch.float32, backend.device)
    x["center"][1, 3] = math.nan
    x["radius"][2, 0] = math.inf
    bounds = margin_bounds(**x)
    assert bounds[1].isnan().all()
    assert (bounds[2] == -math.inf).all()
    assert bounds[[0, 3, 4, 5]].isfinite().all()
    loss = margin_cross_entropy(**x, reduction="none")
    assert loss[1].isnan()
    assert loss[2] == math.inf
    negative = margin_bounds(**{**CASE.make("small", device=backend.device), "radius": -x["radius"].abs()})
    assert (negative[0] >= margin_bounds(**{**x, "radius": 0 * x["radius"]})[0]).all()  # of an empty box


@pytest.mark.parametrize("label", [-1, 7])
def test_labels_out_of_range(backend, label):
    x = CASE.make("small", device=backend.device)
    x["labels"][4] = label
    if backend.device == "cpu":
        for call in (margin_bounds, margin_cross_entropy):
            with pytest.raises(ValueError, match=rf"labels\[4\] = {label} is outside \[0, 7\)"):
                call(**x)
        return
    x["weight"].requires_grad_()
    loss, bounds = margin_cross_entropy(**x, reduction="none", bounds=True)
    assert loss.isnan().tolist() == [False] * 4 + [True, False]
    assert bounds.isnan().all(1).tolist() == loss.isnan().tolist()
    loss.sum().backward()
    assert x["weight"].grad.isfinite().all()  # the row adds nothing to what all share


def test_expanded_gradients(backend):
    x = CASE.make("small", device=backend.device)
    center = x["center"].requires_grad_()
    margin_bounds(**x).sum().backward()
    got, center.grad = center.grad, None
    reference_margin_bounds(**x).sum().backward()
    torch.testing.assert_close(got, center.grad)


def test_autocast():
    x = CASE.make("small")
    with torch.autocast("cpu", torch.bfloat16):
        got = margin_bounds(**x)
    cast = {k: v if k == "labels" else v.bfloat16() for k, v in x.items()}
    assert got.dtype == torch.float32
    assert torch.equal(got, margin_bounds(**cast))


BAD = [
    ({"center": torch.zeros(3)}, "center must have 2 dimensions, got shape (3,)"),
    ({"weight": torch.zeros(3)}, "weight must have 2 dimensions"),
    ({"weight": torch.zeros(0, 37)}, "weight must have at least 1 row"),
    ({"weight": torch.zeros(7, 36)}, "weight must have shape (7, 37), got (7, 36)"),
    ({"radius": torch.zeros(6, 36)}, "radius must have shape (6, 37), got (6, 36)"),
    ({"radius": torch.zeros(6, 37).double()}, "radius must be float32, got float64"),
    ({"bias": torch.zeros(6)}, "bias must have shape (7), got (6)"),
    ({"labels": torch.zeros(5, dtype=torch.int64)}, "labels must be int64 of shape (6,)"),
    ({"labels": torch.zeros(6)}, "labels must be int64 of shape (6,), got torch.float32"),
    ({"center": torch.zeros(6, 37, dtype=torch.int64)}, "center must be float32, float64, bfloat16 or float16"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_messages(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        margin_bounds(**{**CASE.make("small"), **change})


def test_unknown_reduction():
    with pytest.raises(ValueError, match="reduction must be one of mean, sum, none, got 'total'"):
        margin_cross_entropy(**CASE.make("small"), reduction="total")
