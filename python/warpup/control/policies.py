"""Critics, policy steps and choices of actions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from warpup._arguments import explained, same_shape


@explained
def ensemble_target(values: Tensor, subset: int = 2, generator: torch.Generator | None = None) -> Tensor:
    """(N,): the smallest value of `subset` critics drawn at random from an ensemble (REDQ, arXiv 2101.05982).

    With 10 critics, layer normalisation in all networks and four updates a step it is what warm-start reinforcement
    learning (arXiv 2412.07762) fine-tunes with.

    Args:
        values: (E, N) of the target critics.
        subset: in [1, E].
        generator: on the CPU; draws the critics.
    """
    if not 1 <= subset <= len(values):
        raise ValueError(f"ensemble_target: subset must be from 1 to {len(values)} critics, got {subset}")
    return values[torch.randperm(len(values), generator=generator)[:subset].to(values.device)].amin(0)


@explained
def hybrid_critic_loss(
    on_policy: Tensor,
    returns: Tensor,
    off_policy: Tensor,
    targets: Tensor,
    parameters: Iterable[Tensor] = (),
    decay: float = 0.0,
) -> Tensor:
    """`mean (Q - return)^2 + mean (Q - target)^2 + decay * sum of squares of the parameters`; 0-d.

    Returns of the policy's own rollouts, and one-step targets r + Q(s', a') with a' drawn from the policy on offline
    data. All parameters are in the penalty (in the released code the last one alone). The actor takes
    `natural_step` on states of both, with advantages `warpup.gae` on policy, Q(s, a) - V(s) off policy.

    Args:
        on_policy, off_policy: (N,) and (M,) values Q(s, a), with gradient.
        returns, targets: constants.
        parameters, decay: of the penalty.

    Source: HNPG (arXiv 2311.08384).
    """
    same_shape("hybrid_critic_loss", on_policy=on_policy, returns=returns)
    same_shape("hybrid_critic_loss", off_policy=off_policy, targets=targets)
    loss = (on_policy - returns.detach()).square().mean() + (off_policy - targets.detach()).square().mean()
    return loss + decay * sum(p.square().sum() for p in parameters)


@explained
def natural_step(
    objective: Tensor,
    kl: Tensor,
    parameters: Sequence[Tensor],
    *,
    delta: float = 0.01,
    iterations: int = 10,
    damping: float = 0.0,
) -> list[Tensor]:
    """Step that raises the objective by its natural gradient as far as a KL of `delta`, to second order, allows:
    `sqrt(2 delta / s^T F s) s`, `s = F^-1 g`.

    F, the Hessian of the KL, is never made: conjugate gradients need its products with vectors alone.

    Args:
        objective: 0-d, such as the mean of ratio * advantage.
        kl: 0-d, KL of the policy from itself as a constant, so 0, but twice differentiable.
        parameters: of the policy.
        delta: of the KL.
        iterations: of conjugate gradients.
        damping: added to F's diagonal; TRPO's code has .1.

    Returns:
        What to add to each parameter; zeros where the gradient is 0.

    Source: TRPO (arXiv 1502.05477); HNPG (arXiv 2311.08384) on states of both kinds.
    """

    def flat(gradients: Sequence[Tensor]) -> Tensor:
        return torch.cat([x.flatten() for x in gradients])

    g = flat(torch.autograd.grad(objective, list(parameters), retain_graph=True))
    slope = flat(torch.autograd.grad(kl, list(parameters), create_graph=True))

    def fisher(v: Tensor) -> Tensor:
        return flat(torch.autograd.grad(slope @ v, list(parameters), retain_graph=True)) + damping * v

    s, residual = torch.zeros_like(g), g.clone()
    direction, square = residual.clone(), residual @ residual
    for _ in range(iterations):
        if square <= 1e-20 * (g @ g):
            break
        product = fisher(direction)
        step = square / (direction @ product)
        s, residual = s + step * direction, residual - step * product
        square, before = residual @ residual, square
        direction = residual + square / before * direction
    curvature = s @ fisher(s)
    step = (2 * delta / curvature).sqrt() * s if curvature > 0 else torch.zeros_like(s)
    sizes = [p.numel() for p in parameters]
    return [x.view_as(p) for x, p in zip(step.split(sizes), parameters, strict=True)]


@explained
@torch.no_grad()
def rollout_value(
    states: Tensor,
    policy: Callable[[Tensor], Tensor],
    model: Callable[[Tensor, Tensor], Tensor],
    critic: Callable[[Tensor, Tensor], Tensor],
    steps: int,
) -> float:
    """Offline estimate of a policy: mean of Q(s, a) along its rollouts of so many steps in a model (Uni-O4, arXiv
    2311.03351).

    Args:
        states: (N, S) to begin at.
        policy: actions of states.
        model: next states of states and actions.
        critic: (N,) values of states and actions.
        steps: at least 1.
    """
    if steps < 1:
        raise ValueError(f"rollout_value: steps must be at least 1, got {steps}")
    total = 0.0
    for _ in range(steps):
        actions = policy(states)
        total += float(critic(states, actions).mean())
        states = model(states, actions)
    return total / steps


class PolicyGate:
    """Lets a policy that was improved offline replace the one it came from only if its estimated value is the best so
    far (Uni-O4, arXiv 2311.03351). In between: `warpup.policy_loss(kind="ppo")` on the data's states and the old
    policy's actions, with normalised advantages Q - V and a clip that decays.

    Args:
        value: of the policy at the start, such as `rollout_value(...)`.
    """

    def __init__(self, value: float):
        if math.isnan(value):
            raise ValueError("PolicyGate: value must be a number, got NaN, which nothing is above")
        self.value = value

    def accepts(self, value: float) -> bool:
        """Whether this value is above the best one, which it then becomes."""
        better = value > self.value
        self.value = max(self.value, value)
        return better


@explained
def puct(values: Tensor, priors: Tensor, visits: Tensor, c: float = 1.0) -> Tensor:
    """`Q + c P sqrt(sum of N) / (1 + N)` of each child of a node; the search goes on at its argmax.

    Args:
        values, priors, visits: (..., children): mean value Q, prior P, visits N.
        c: how much is explored.

    Source: PUCT as of AlphaZero (arXiv 1712.01815), which WebPilot (2408.15978) uses with priors of a language model.
    """
    same_shape("puct", values=values, priors=priors, visits=visits)
    return values + c * priors * visits.sum(-1, keepdim=True).sqrt() / (1 + visits)
