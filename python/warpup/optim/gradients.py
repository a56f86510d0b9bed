"""What is done to gradients between the backward pass and the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from warpup._arguments import explained, same_shape, same_shapes


@explained
def project_conflict(gradients: Sequence[Tensor], against: Sequence[Tensor]) -> list[Tensor]:
    """The gradients g without what works against others, h: `g - <g, h> / <h, h> h` where <g, h> < 0, else g.

    The product is over all tensors together. One-sided: h stays as it is, as in dual-head distillation (arXiv
    2411.08937), where the main head's gradient wins; PCGrad (arXiv 2001.06782) projects both.

    Args:
        gradients, against: equally many tensors of equal shapes, such as `torch.autograd.grad` gives.
    """
    same_shapes("project_conflict", gradients=gradients, against=against)
    inner = torch.stack([(g * h).sum() for g, h in zip(gradients, against, strict=True)]).sum()
    square = torch.stack([h.square().sum() for h in against]).sum()
    share = torch.where(inner < 0, inner / square, 0.0)
    return [g - share * h for g, h in zip(gradients, against, strict=True)]


@explained
def block_gradients_(pairs: Iterable[tuple[Tensor, Sequence[Tensor]]]) -> None:
    """Gives each block of parameters the gradient of its own loss alone, in `.grad`; then each block's optimizer steps.

    A game of two players (FairBiNN, arXiv 2410.16432, after distraction for fairness): the accuracy block minimises
    cross-entropy, the fairness block eta times `warpup.losses.parity_loss`, and neither sees the other's gradient.

    Args:
        pairs: (loss, parameters), the parameters of two pairs disjoint. Losses may share one forward pass.

    Raises:
        ValueError: a parameter in two blocks.
    """
    pairs = [(loss, list(parameters)) for loss, parameters in pairs]
    ids = [id(p) for _, parameters in pairs for p in parameters]
    if len(set(ids)) != len(ids):
        raise ValueError("block_gradients_: a parameter must be in one block only")
    for i, (loss, parameters) in enumerate(pairs):
        gradients = torch.autograd.grad(loss, parameters, retain_graph=i + 1 < len(pairs), allow_unused=True)
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient


@explained
def add_loss(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor], weight: float = 1.0):
    """Adds `weight * loss()` to whatever the optimizer's owner minimises: before each step its gradient is added.

    It needs no change of the trainer. Behaviour cloning beside stable-baselines3's PPO (arXiv 2304.09825):
    `add_loss(model.policy.optimizer, lambda: bc_loss(...), .1)`. What the trainer did to its own gradient before the
    step, such as clipping, does not reach this one.

    Args:
        optimizer: any of torch's.
        loss: called before each step, 0-d, on a batch of its own.
        weight: of the loss.

    Returns:
        A handle; its `remove()` ends it.

    Raises:
        ValueError, at the step: it is given a closure, which would compute the gradient anew and forget this one.
    """

    def before_step(optimizer: torch.optim.Optimizer, given: tuple, named: dict) -> None:
        if any(callable(x) for x in (*given, *named.values())):
            raise ValueError("add_loss: optimizer.step is given a closure; add the loss in there")
        with torch.enable_grad():
            (weight * loss()).backward()

    return optimizer.register_step_pre_hook(before_step)


@explained
def single_mode_logits(both: Tensor, first_only: Tensor, second_only: Tensor) -> tuple[Tensor, Tensor]:
    """What each of two inputs contributes to the logits (Shapley values of two players); their sum is `both`.

    phi_1 = (F(a, v) - F(0, v) + F(a, 0)) / 2, phi_2 = (F(a, v) - F(a, 0) + F(0, v)) / 2.

    Args:
        both: F(a, v), logits of any shape.
        first_only, second_only: F(a, 0) and F(0, v), with the other input 0, the network in eval mode.

    Source: adaptive gradient modulation (AGM, arXiv 2308.07686).
    """
    same_shape("single_mode_logits", both=both, first_only=first_only, second_only=second_only)
    return 0.5 * (both - second_only + first_only), 0.5 * (both - first_only + second_only)


class GradientModulation:
    """Slows the input that learns faster than it did so far, and speeds up the other (AGM, arXiv 2308.07686).

    With s_1, s_2 the cross-entropies of `single_mode_logits` and means of them over all calls before, r_1 =
    exp(s_2 - s_1) and rbar_1 = exp(mean s_2 - mean s_1): the gradient into phi_1 is multiplied by exp(alpha *
    min(rbar_1 - r_1, 10)); the same of 2. In the first call the factors are 1, and where a cross-entropy is not finite:
    such a call is none of those before.

        phi = modulation(*single_mode_logits(both, first_only, second_only), targets)
        F.cross_entropy(phi[0] + phi[1], targets).backward()

    Args:
        alpha: how strongly; 1 as published, 0 not at all.
    """

    def __init__(self, alpha: float = 1.0):
        if not alpha >= 0:
            raise ValueError(f"GradientModulation: alpha must be at least 0, got {alpha}")
        self.alpha, self.calls, self.means = alpha, 0, [0.0, 0.0]
        self.factors = (1.0, 1.0)  # of the last call

    def __call__(self, first: Tensor, second: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """The two (B, C) contributions, whose gradients will be scaled; targets: (B,) int64."""
        s = [float(F.cross_entropy(phi.detach(), targets)) for phi in (first, second)]
        if not all(map(math.isfinite, s)):
            self.factors = (1.0, 1.0)
            return first, second
        if self.calls:
            gap, mean_gap = s[1] - s[0], self.means[1] - self.means[0]
            differences = tuple(_exp(sign * mean_gap) - _exp(sign * gap) for sign in (1, -1))
            self.factors = tuple(math.exp(self.alpha * min(d, 10.0)) for d in differences)
        self.calls += 1
        self.means = [m + (x - m) / self.calls for m, x in zip(self.means, s, strict=True)]
        return _scaled(first, self.factors[0]), _scaled(second, self.factors[1])

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; JSON can hold it."""
        return {"calls": self.calls, "means": list(self.means)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.calls, self.means = state["calls"], list(state["means"])


def _exp(x: float) -> float:
    return math.exp(min(x, 700.0))  # a float64


def _scaled(x: Tensor, factor: float) -> Tensor:
    """x, with its gradient multiplied on the way back."""
    x = x.view_as(x)  # a tensor of our own: the hook is not put on the caller's
    if x.requires_grad:
        x.register_hook(lambda gradient: gradient * factor)
    return x


class SyntheticGradient(nn.Module):
    """Predicts the gradient of a state before it is known, so that what made the state need not wait (arXiv 1608.05343;
    for memory controllers arXiv 2011.05438).

        state.backward(predictor(state.detach()).detach())        # the controller learns at once
        ...
        predictor.loss(state.detach(), true_gradient).backward()  # the predictor, when the gradient has arrived

    Args:
        width: of the state; (..., width) goes in, as much comes out.
        hidden: width of the one hidden layer; 0: linear. The last layer begins with 0, so no gradient is made up.
    """

    def __init__(self, width: int, hidden: int = 0):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(width, hidden), nn.ReLU()) if hidden else nn.Identity()
        self.out = nn.Linear(hidden or width, width)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, state: Tensor) -> Tensor:
        return self.out(self.hidden(state))

    def loss(self, state: Tensor, gradient: Tensor) -> Tensor:
        """`||prediction - gradient||^2`, summed over the state, mean over the rest; the gradient is a constant."""
        return (self(state) - gradient.detach()).square().sum(-1).mean()
