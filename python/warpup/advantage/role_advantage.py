"""`role_advantage`: rewards against a running mean of their role's (SPIRAL).

Contract, numerics and bytes moved: csrc/advantage/role_advantage.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup import _op
from warpup._arguments import explained
from warpup.advantage._inputs import check_shape, fail, widened


def reference_role_advantage(rewards, roles, baseline_state, decay=0.95):
    """`role_advantage` as a loop in plain torch."""
    state = baseline_state.to(rewards.dtype).clone()
    advantages = torch.zeros_like(rewards)
    for i, role in enumerate(roles.tolist()):
        if not rewards[i].isnan():
            advantages[i] = rewards[i] - state[role]
            state[role] = decay * state[role] + (1 - decay) * rewards[i]
    return advantages, state


@_op.fake("role_advantage")
def _(rewards, roles, state, decay):
    return rewards.new_empty(rewards.shape), rewards.new_empty(state.shape)


@explained
def role_advantage(
    rewards: Tensor, roles: Tensor, baseline_state: Tensor, decay: float = 0.95
) -> tuple[Tensor, Tensor]:
    """Advantage over a running mean of each role's rewards; rows count in their order.

    For each row i in turn: `A[i] = r[i] - b[role]`, then `b[role] <- decay b[role] + (1 - decay) r[i]`.

    Args:
        rewards: (N,), any floating dtype. NaN means "no reward": advantage 0, the baseline stays.
        roles: (N,) int64 in [0, K). For a baseline per game and role, number the pairs: `game * roles_per_game + role`.
        baseline_state: (K,) floating, the baselines before these rows (begin with zeros). It is not changed.
        decay: in [0, 1].

    Returns:
        Advantages (N,) and the baselines after these rows (K,), in float32 (float64 if an input is). No gradient.

    Raises:
        ValueError: a shape or dtype does not fit, decay outside [0, 1], (CPU only) a role outside [0, K). On CUDA,
            where checking would synchronize, such a row gives NaN and changes no baseline.

    Source: role-conditioned advantage estimation, SPIRAL (arXiv 2506.24119); its released code keys by player only.
    """
    op = "role_advantage"
    if rewards.dim() != 1:
        fail(op, f"rewards must have shape (N,), got {tuple(rewards.shape)}")
    check_shape(op, "roles", roles, rewards.shape)
    if roles.dtype not in (torch.int64, torch.int32):
        fail(op, f"roles must be int64, got {roles.dtype}")
    wide = widened(op, "rewards", rewards, baseline_state).contiguous()
    state = widened(op, "baseline_state", baseline_state, rewards).contiguous()
    return _op.ops.role_advantage(wide, roles.long().contiguous(), state, decay)
