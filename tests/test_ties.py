"""At a tie of a minimum, maximum, clip, top-k or absolute value there is no gradient, but a set of them: the hull of
the gradients close by (Clarke's subdifferential). Whichever element an operator gives, it is one of that set.

Inputs are small whole numbers, so ties abound. Held is a necessary condition: each element of a gradient lies between
the smallest and the largest that it has at many points close by. Which element each operator gives stands below, too.
"""

import math

import pytest
import torch
from torch import Tensor

import warpup
from tests.support.cases import leaves

CLOSE, POINTS = 1e-7, 300
LOG2 = math.log(2)


def whole(*shape, low=-1, high=1, seed=0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).double()


def ones(*shape, value=1.0) -> Tensor:
    return torch.full(shape, value, dtype=torch.float64)


def box(*shape, seed=0) -> dict[str, Tensor]:
    return {"center": whole(*shape, seed=seed), "radius": ones(*shape)}


def exact(op, shape, kernel):
    """A product of boxes whose ends are -2 to 2."""
    inputs = box(*shape) | {"weight": whole(*kernel, seed=1), "weight_radius": ones(*kernel)}
    return lambda **x: op(**x, mode="exact"), inputs


def loss_of(kind, **options):
    """Ratios of exactly 1/2, 1, 2 and 4 beside a clip at 1/2 and 2; advantages of either sign."""
    ratios = whole(4, 4, low=-1, high=2) * LOG2
    advantages = torch.tensor([1.0, -1.0, 2.0, -0.5], dtype=torch.float64)

    def call(logp):
        return warpup.policy_loss(
            logp, torch.zeros_like(logp), advantages, torch.ones_like(logp, dtype=torch.bool), kind=kind, **options
        )[0]

    return call, {"logp": ratios}


LABELS = torch.tensor([0, 1])
CASES = {
    "interval_linear": (warpup.interval_linear, box(2, 3) | {"weight": whole(2, 3, seed=1)}),
    "interval_linear, exact": exact(warpup.interval_linear, (2, 2), (2, 2)),
    "interval_conv2d, exact": exact(warpup.interval_conv2d, (1, 1, 2, 2), (1, 1, 2, 2)),
    "interval_matmul": (
        lambda center, radius, a, b: warpup.interval_matmul((center, radius), (a, b)),
        box(1, 2, 2) | {"a": whole(1, 2, 2, seed=1), "b": ones(1, 2, 2)},
    ),
    "interval_relu": (warpup.interval_relu, box(4, 4)),
    "interval_leaky_relu": (warpup.interval_leaky_relu, box(4, 4)),
    "interval_clamp": (lambda **x: warpup.interval_clamp(**x, min=-1.0, max=1.0), box(4, 4)),
    "interval_hardswish": (warpup.interval_hardswish, box(4, 4) | {"center": whole(4, 4, low=-4, high=4)}),
    "interval_max_pool2d": (lambda **x: warpup.interval_max_pool2d(**x, kernel_size=2), box(1, 1, 4, 4)),
    "margin_bounds": (
        lambda **x: warpup.margin_bounds(**x, bias=None, labels=LABELS), box(2, 3) | {"weight": whole(3, 3, seed=1)}
    ),
    "policy_loss, ppo": loss_of("ppo", clip=(0.5, 1.0)),
    "policy_loss, ppo, dual clip": loss_of("ppo", clip=(0.5, 1.0), dual_clip=4.0),
    "preference_loss, hinge": (
        lambda chosen, rejected: warpup.preference_loss(chosen, rejected, kind="hinge", beta=1.0)[0],
        {"chosen": whole(6, low=0, high=2), "rejected": whole(6, low=0, high=1, seed=1)},
    ),
    "glu, swiglu_oai": (lambda h: warpup.glu(h, activation="swiglu_oai"), {"h": 7 * whole(4, 6)}),
    "moe_route": (
        lambda logits: warpup.moe_route(logits, 2).weights, {"logits": whole(4, 4)}
    ),
}  # fmt: skip


def gradients(function, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Of the outputs, each with a weight of its own."""
    inputs = {name: value.clone().requires_grad_() for name, value in inputs.items()}
    outputs = [o for o in leaves(function(**inputs)) if o.requires_grad]
    generator = torch.Generator().manual_seed(2)
    total = sum((o * torch.randn(o.shape, generator=generator, dtype=torch.float64)).sum() for o in outputs)
    return list(torch.autograd.grad(total, list(inputs.values()), allow_unused=True, materialize_grads=True))


def nearby(function, inputs: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The smallest and the largest of each element of the gradients at points close by, where there are no ties."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for _ in range(POINTS):
        moved = {
            name: value + CLOSE * torch.randn(value.shape, generator=generator, dtype=torch.float64)
            for name, value in inputs.items()
        }
        found.append(gradients(function, moved))
    stacked = [torch.stack(each) for each in zip(*found, strict=True)]
    return [each.amin(0) for each in stacked], [each.amax(0) for each in stacked]


@pytest.mark.parametrize("name", CASES)
def test_a_gradient_at_a_tie_is_one_of_the_gradients_close_by(name):
    function, inputs = CASES[name]
    low, high = nearby(function, inputs)
    assert any((most - least > 1e-2).any() for least, most in zip(low, high, strict=True)), "no ties: it tests nothing"
    for key, got, least, most in zip(inputs, gradients(function, inputs), low, high, strict=True):
        slack = 1e-5 * (1 + most.abs().maximum(least.abs()))
        outside = (got < least - slack) | (got > most + slack)
        assert not outside.any(), f"{key}: {got[outside]} outside of {least[outside]} to {most[outside]}"


def test_a_double_count_would_be_seen():
    """The check itself: a maximum whose gradient goes to both of two equal elements, or to neither."""
    both = {"a": whole(3, low=0, high=0), "b": whole(3, low=0, high=0)}

    def greater(a, b):
        return torch.where(a >= b, a, 0) + torch.where(b >= a, b, 0)

    low, high = nearby(lambda a, b: torch.maximum(a, b).exp(), both)
    one, other = gradients(lambda a, b: greater(2 * a, 2 * b).exp(), both)
    assert not ((one >= low[0]) & (one <= high[0])).all()
    one, other = gradients(lambda a, b: torch.maximum(a, b).exp(), both)
    assert all(((g >= l - 1e-5) & (g <= h + 1e-5)).all() for g, l, h in zip((one, other), low, high, strict=True))


# ---- Which element it is: docs/interval.md, docs/policy.md -----------------------------------------------------------


def slope(function, **inputs: float) -> list[float]:
    """Gradients of the sum of the outputs at one point of numbers."""
    tensors = {name: ones(1, 1, value=value).requires_grad_() for name, value in inputs.items()}
    outputs = leaves(function(**tensors))
    return [g.item() for g in torch.autograd.grad(outputs[0].sum(), list(tensors.values()), materialize_grads=True)]


def test_a_zero_beside_an_exact_box_has_its_slope():
    """Where a center is 0 the product of two boxes has no tie: its center moves with the largest weight's end, as a
    finite difference says. (`sign(0) = 0` there once took a weight's radius away.)"""

    def center(center, radius, weight, weight_radius):
        return warpup.interval_linear(center, radius, weight, weight_radius=weight_radius, mode="exact")

    assert slope(center, center=0.0, radius=1.0, weight=2.0, weight_radius=1.0) == [3.0, 0.0, 0.0, 0.0]
    assert slope(center, center=0.0, radius=1.0, weight=-2.0, weight_radius=1.0) == [-3.0, 0.0, 0.0, 0.0]
    assert slope(center, center=2.0, radius=1.0, weight=0.0, weight_radius=1.0) == [0.0, 0.0, 3.0, 0.0]
    # A tie: |center| weight_radius = radius weight_radius. The radius takes it.
    assert slope(center, center=1.0, radius=1.0, weight=2.0, weight_radius=1.0) == [2.0, 1.0, 1.0, 1.0]


@pytest.mark.parametrize(("ratio", "advantage", "dual"), [(2.0, 1.0, None), (0.5, -1.0, None), (4.0, -1.0, 4.0)])
def test_a_ratio_at_its_bound_still_learns(ratio, advantage, dual):
    logp = torch.tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    one = torch.full((1,), advantage, dtype=torch.float64)
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, _ = warpup.policy_loss(logp, torch.zeros_like(logp), one, mask, kind="ppo", clip=(0.5, 1.0), dual_clip=dual)
    assert torch.autograd.grad(loss, logp)[0].item() == pytest.approx(-ratio * advantage)


def test_an_activation_at_its_kink_does_not():
    assert slope(lambda center, radius: warpup.interval_relu(center, radius), center=0.0, radius=0.0) == [0.0, 0.0]
