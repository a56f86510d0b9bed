"""Behaviour cloning: of one policy, and of several that should differ."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from warpup._arguments import explained, same_shape


@explained
def bc_loss(logp: Tensor, weights: Tensor | None = None) -> Tensor:
    """`-mean of weight * log pi(a | s)` over offline transitions; 0-d.

    Beside PPO's loss, .1 times this or so, on a batch of demonstrations (arXiv 2304.09825): in one's own loop as a
    sum, in stable-baselines3 by `warpup.optim.add_loss`:

        def cloning():
            _, logp, _ = model.policy.evaluate_actions(observations, actions)
            return bc_loss(logp)

        add_loss(model.policy.optimizer, cloning, weight=.1)

    Args:
        logp: (N,) with gradient.
        weights: (N,); None: 1.
    """
    if weights is None:
        return -logp.mean()
    same_shape("bc_loss", logp=logp, weights=weights)
    return -(weights.detach() * logp).mean()


@explained
def diverse_bc_loss(
    logp: Tensor, policy: Distribution, others: list[Distribution], actions: Tensor, alpha: float = 0.1
) -> Tensor:
    """Behaviour cloning of one policy of an ensemble that is pushed away from the likeliest one: mean of `-log pi_i(a |
    s) - alpha KL(pi_i || pi_j)`, j of all policies the one that gives a the largest log-prob; 0-d.

    This is the "distribution" form of Uni-O4 (arXiv 2311.03351). Its default, "heuristic", has log pi_i - max_j log
    pi_j in place of the KL, with the maximum a constant: its gradient is (1 + alpha) times that of plain cloning, with
    no pressure to differ, so it is not offered.

    Args:
        logp: (N,) of `actions` under `policy`, with gradient.
        policy: its distribution at the N states, of batch shape (N,) or (N, A).
        others: the ensemble's other distributions, constants.
        actions: (N, A) or, of discrete actions, (N,).
        alpha: weight of the push.
    """
    every = [policy, *others]

    def per_state(x: Tensor) -> Tensor:
        return x.flatten(1).sum(-1) if x.dim() > 1 else x

    with torch.no_grad():
        likeliest = torch.stack([per_state(p.log_prob(actions)) for p in every]).argmax(0)
    kl = torch.stack([per_state(kl_divergence(policy, p)) for p in every])  # to itself: 0
    away = kl.gather(0, likeliest[None])[0]
    same_shape("diverse_bc_loss", **{"the KL to others": away}, logp=logp)
    return (-logp - alpha * away).mean()
