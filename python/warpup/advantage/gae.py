"""`gae` and `reward_to_go`: what each token of a response is worth, from the rewards that follow it.

Contract, numerics and bytes moved: csrc/advantage/gae.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup import _op
from warpup._arguments import explained
from warpup.advantage._inputs import check_shape, fail, mask_like, widened


def _rows(x: Tensor) -> Tensor:
    """Rows may be strided (a slice of a longer batch is not copied), tokens may not."""
    return x if x.stride(-1) == 1 else x.contiguous()


def reference_gae(rewards, values, mask, *, gamma, lam, bootstrap=None):
    """`gae` as a loop over tokens in plain torch."""
    next_value = torch.zeros_like(values[:, 0]) if bootstrap is None else bootstrap
    running, advantages = torch.zeros_like(next_value), torch.zeros_like(values)
    for t in reversed(range(values.shape[1])):
        live = mask[:, t] != 0
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        running = torch.where(live, delta + gamma * lam * running, running)
        next_value = torch.where(live, values[:, t], next_value)
        advantages[:, t] = torch.where(live, running, 0.0)
    return advantages, torch.where(mask != 0, advantages + values, 0.0)


def reference_reward_to_go(rewards, mask, gamma=1.0, *, carry=True):
    """`reward_to_go` as a loop over tokens in plain torch."""
    running, out = torch.zeros_like(rewards[:, 0]), torch.zeros_like(rewards)
    for t in reversed(range(rewards.shape[1])):
        live = mask[:, t] != 0
        running = torch.where(live, rewards[:, t] + gamma * running, running if carry else 0.0)
        out[:, t] = torch.where(live, running, 0.0)
    return out


@_op.fake("gae")
def _(rewards, values, mask, bootstrap, gamma, decay, cut):
    return rewards.new_empty(rewards.shape), rewards.new_empty(0 if values is None else rewards.shape)


@explained
def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, *, gamma: float, lam: float, bootstrap: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation over the tokens of a batch.

    `delta[t] = r[t] + gamma V[t+1] - V[t]` and `A[t] = delta[t] + gamma lam A[t+1]`, where t+1 is the next token inside
    the mask: observation tokens (tool output, the other player's turn) and padding neither add nor decay, so the value
    is carried through them as if they were not there.

    Args:
        rewards: (B, T), any floating dtype, a reward for each token (an outcome stands at the last one).
        values: (B, T), any floating dtype, the critic's value before each token.
        mask: (B, T) bool or number, nonzero where the policy chose the token. Nothing is read outside of it, NaN
            included.
        gamma: discount, in [0, 1].
        lam: GAE's lambda, in [0, 1].
        bootstrap: (B,) value after the last token, of responses that were cut off; None: 0, the responses have ended.

    Returns:
        Advantages and returns (advantage + value), both (B, T) in float32 (float64 if an input is), 0 outside the mask.
        Not whitened; see `masked_whiten`.

    Raises:
        ValueError: a shape or dtype does not fit, gamma or lam outside [0, 1].

    Source: Schulman et al. 2016 (arXiv 1506.02438); masked as in verl 0.9.1's compute_gae_advantage_return.
    """
    op = "gae"
    if rewards.dim() != 2:
        fail(op, f"rewards must have shape (B, T), got {tuple(rewards.shape)}")
    check_shape(op, "values", values, rewards.shape)
    mask = mask_like(op, mask, rewards)
    if not 0 <= lam <= 1:
        fail(op, f"lam must be in [0, 1], got {lam}")
    r, v = widened(op, "rewards", rewards, values, bootstrap), widened(op, "values", values, rewards, bootstrap)
    if bootstrap is not None:
        check_shape(op, "bootstrap", bootstrap, rewards.shape[:1])
        bootstrap = bootstrap.detach().to(r.dtype).contiguous()
    return _op.ops.gae(_rows(r), _rows(v), _rows(mask), bootstrap, gamma, gamma * lam, False)


@explained
def reward_to_go(rewards: Tensor, mask: Tensor, gamma: float = 1.0, *, carry: bool = True) -> Tensor:
    """Discounted sum of the rewards from each token on: `R[t] = r[t] + gamma R[t+1]`, R = 0 past the last token.

    Args:
        rewards: (B, T), any floating dtype.
        mask: (B, T) bool or number, nonzero where the policy chose the token. Other tokens' rewards do not count.
        gamma: discount, in [0, 1].
        carry: tokens outside the mask neither add nor decay, so R is carried through observation tokens. False: such a
            token sets R to 0, as verl's REINFORCE++ did up to 0.7; the same where a response has no hole.

    Returns:
        (B, T) in float32 (float64 for float64), 0 outside the mask.

    Raises:
        ValueError: a shape or dtype does not fit, gamma outside [0, 1].
    """
    op = "reward_to_go"
    if rewards.dim() != 2:
        fail(op, f"rewards must have shape (B, T), got {tuple(rewards.shape)}")
    mask = mask_like(op, mask, rewards)
    return _op.ops.gae(_rows(widened(op, "rewards", rewards)), None, _rows(mask), None, gamma, gamma, not carry)[0]
