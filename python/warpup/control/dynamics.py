"""Models of an environment: how they are fitted, and how far a simulator is from what is real."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence
from torch.nn import functional as F

from warpup._arguments import check_above_0, explained, same_shape


@explained
def elbo(log_likelihood: Tensor, posterior: Distribution, prior: Distribution, free_nats: float = 0.0) -> Tensor:
    """Evidence lower bound, mean over sequences of `sum over t of log p(o_t | s_t) - KL(posterior_t || prior_t)`; 0-d.

    AIME (arXiv 2312.02019) maximises it twice: for a world model, and then, with the model frozen and its actions drawn
    from the policy (`rsample`), for the policy alone, which so imitates observations without actions.

    Args:
        log_likelihood: (B, T).
        posterior, prior: q(s_t | s_(t-1), a_(t-1), o_t) and p(s_t | s_(t-1), a_(t-1)), of batch shape (B, T) or
            (B, T, D) such as `Normal`; the KL is summed over D.
        free_nats: a step's KL counts at least so much. Straight through, as in the authors' code: it moves the value,
            the gradient is that of the KL itself.
    """
    if not free_nats >= 0:
        raise ValueError(f"elbo: free_nats must be at least 0, got {free_nats}")
    kl = kl_divergence(posterior, prior)
    kl = kl.sum(-1) if kl.dim() > log_likelihood.dim() else kl
    same_shape("elbo", log_likelihood=log_likelihood, **{"the KL of posterior and prior": kl})
    kl = kl + (kl.clamp_min(free_nats) - kl).detach()
    return (log_likelihood - kl).sum(-1).mean()


@explained
def trajectory_weights(inputs: Tensor, expert: Tensor, scale: float) -> Tensor:
    """(N,) weights of transitions in a model's likelihood, `exp(-d / scale)` with sum 1, d the distance to the nearest
    point of an expert's trajectory: a model that is right where the task is solved (arXiv 2002.04523).

    The loss is `-(trajectory_weights(...) * logp).sum()`.

    Args:
        inputs: (N, D) states and actions.
        expert: (M, D) those of the trajectory.
        scale: above 0.
    """
    check_above_0("trajectory_weights", scale=scale)
    if not len(expert):
        raise ValueError("trajectory_weights: expert must have at least one point")
    return (-torch.cdist(inputs, expert).amin(-1) / scale).softmax(0)


@explained
def gap_weights(log_ratio: Tensor) -> Tensor:
    """(N,) weights of simulated states and actions by how wrong their dynamics are: u / sum u, u the mean over samples
    of `log_ratio`, held in [1e-45, 10].

    log_ratio is log p_sim(s' | s, a) / p_real(s' | s, a). Of two discriminators, each with the logit of "simulated",
    it is `logit(s, a, s') - logit(s, a)`.

    Args:
        log_ratio: (N, M) at M next states that the simulator may have drawn, or (N,).

    Source: H2O (arXiv 2206.13464) and its authors' code.
    """
    u = log_ratio.detach().double()
    u = (u.mean(-1) if u.dim() > 1 else u).clamp(1e-45, 10.0)  # float32 has no number as small as that on all devices
    return (u / u.sum()).to(log_ratio.dtype)


@explained
def gap_loss(
    real: Tensor,
    real_target: Tensor,
    simulated: Tensor,
    simulated_target: Tensor,
    log_ratio: Tensor,
    weights: Tensor,
    beta: float = 0.01,
) -> Tensor:
    """Loss of a critic on real and simulated transitions; 0-d. Its three terms:

    - real: mean of (Q - target)^2
    - simulated: mean of `c (Q - target)^2`, c = p_real / p_sim = exp(-log_ratio), held in [1e-5, 1]
    - beta times `logsumexp over simulated of (Q + log w) - mean of Q over real`: values fall where the simulator errs

    Args:
        real, simulated: (N,) and (M,) values Q(s, a), with gradient.
        real_target, simulated_target: r + gamma Q'(s', a'), constants.
        log_ratio: (M,) of the simulated transitions.
        weights: (M,) `gap_weights` of them.
        beta: of the third term.

    Source: H2O (arXiv 2206.13464) and its authors' code.
    """
    same_shape("gap_loss", real=real, real_target=real_target)
    same_shape("gap_loss", simulated=simulated, simulated_target=simulated_target, log_ratio=log_ratio, weights=weights)
    importance = (-log_ratio.detach()).exp().clamp(1e-5, 1.0)
    fit = F.mse_loss(real, real_target.detach())
    fit = fit + (importance * (simulated - simulated_target.detach()).square()).mean()
    penalty = (simulated + weights.detach().log()).logsumexp(0)
    return fit + beta * (penalty - real.mean())
