"""The short warm-up of certified training: initialisation, regularisers and schedules.

Shi et al., "Fast Certified Robust Training with Short Warmup", 2021 (arXiv 2103.17268). Bounds of a net with the usual
initialisation grow by an order of magnitude a layer, which is why certified training needed hundreds of epochs of
slowly growing epsilon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from warpup.interval.box_sums import BoxSums

from .graph import Plan, named_modules
from .layers import add, relu
from .nodes import layer_of
from .rules import RULES

WEIGHTED = nn.Linear | nn.Conv1d | nn.Conv2d


@torch.no_grad()
def ibp_init_(module: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Draw every weight anew from N(0, 2 pi / fan_in^2), in place, so that |W| r keeps the mean radius; returns module.

    E|w| = 2 / fan_in then, and half of the ReLUs cut a box. The last weighted layer, biases and normalisations stay as
    they are; weights that read a ReLU of a sum are halved, since the sum's radius is that of both its operands.
    """
    plan, modules = Plan(module, RULES), named_modules(module)
    called = [(node, layer_of(node, modules)) for node in plan.nodes if node.op == "call_module"]
    for node, layer in [(node, layer) for node, layer in called if isinstance(layer, WEIGHTED)][:-1]:
        weight, source = layer.weight, node.all_input_nodes[0]
        halved = plan.kinds.get(source) is relu and plan.kinds.get(source.all_input_nodes[0]) is add
        std = math.sqrt(2 * math.pi) / weight[0].numel()
        weight.normal_(0, std / 2 if halved else std, generator=generator)
    return module


def tightness_loss(sums: Sequence[BoxSums], input_radius_mean: Tensor | float, tau: float = 0.5) -> Tensor:
    """mean over the ReLUs of relu(tau - E[D_0] / E[D_i]) / tau: 0 while no layer's mean radius is over 1/tau inputs'.

    sums: what `bound(..., sums=True)` returns. input_radius_mean: E[D_0], mean radius of the input box; a tensor is
    better than a float on a GPU, where the float had to be waited for.
    """
    width = _stack(sums, "radius") / _stack(sums, "count")
    wide = tau * width > input_radius_mean
    ratio = input_radius_mean / torch.where(wide, width, 1)  # widths of 0 would make the gradient NaN
    return torch.where(wide, tau - ratio, 0).mean() / tau


def relu_balance_loss(sums: Sequence[BoxSums], tau: float = 0.5) -> Tensor:
    """mean over the ReLUs of [relu(tau - min(a, 1/a)) + relu(tau - min(b, 1/b))] / tau.

    a: mean of the active centers (lower bound > 0) over minus that of the inactive ones (upper bound < 0), both as
    shares of all elements. b: the same ratio of their squared distances to the mean center. A ratio without active
    and without inactive elements is not finite and is left out.
    """
    pairs = [
        (_stack(sums, "active_center"), -_stack(sums, "inactive_center")),
        (_stack(sums, "active_center2"), _stack(sums, "inactive_center2")),
    ]
    losses = []
    for active, inactive in pairs:
        high = torch.maximum(active, inactive)
        some = high > 0
        ratio = torch.minimum(active, inactive) / torch.where(some, high, 1)
        losses.append(torch.where(some, (tau - ratio).relu(), 0).mean())
    return torch.stack(losses).sum() / tau


def _stack(sums: Sequence[BoxSums], field: str) -> Tensor:
    return torch.stack([getattr(s, field) for s in sums])


class epsilon_schedule:
    """Smoothed growth of epsilon: step -> epsilon, 0 before `start`, `eps` from `start + length` on.

    alpha (s - start)^exponent up to the step `mid` of the way, linear after it with the slope there, where
    t = (mid - start)^(exponent - 1) and alpha = eps / ((end - mid) exponent t + (mid - start) t), as in auto_LiRPA's
    SmoothedScheduler. Steps count from 0.
    """

    def __init__(self, eps: float, start: float, length: float, exponent: float = 4.0, mid: float = 0.25):
        if not (eps >= 0 and length >= 0 and exponent >= 1 and 0 < mid <= 1):
            raise ValueError(
                f"expected eps >= 0, length >= 0, exponent >= 1 and 0 < mid <= 1, got eps={eps}, length={length}, "
                f"exponent={exponent}, mid={mid}"
            )
        self.eps, self.start, self.length, self.exponent, self.mid = eps, start, length, exponent, mid

    def __call__(self, step: float) -> float:
        done, before = step - self.start, self.mid * self.length
        if done >= self.length:
            return self.eps
        if done <= 0:
            return 0.0
        # In units of t: alpha t = eps / ((end - mid) exponent + (mid - start)).
        alpha_t = self.eps / ((self.length - before) * self.exponent + before)
        if done < before:
            return alpha_t * done * (done / before) ** (self.exponent - 1)
        return alpha_t * (before + self.exponent * (done - before))


def kappa_schedule(eps: float, eps_max: float, final: float = 0.0) -> float:
    """(eps_max - eps (1 - final)) / eps_max: from 1 at eps 0 to `final` at eps_max.

    kappa of `margin_loss` (Gowal et al.), and beta of `crown_ibp_loss`.
    """
    return (eps_max - eps * (1 - final)) / eps_max
