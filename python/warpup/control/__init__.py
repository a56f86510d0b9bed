"""Control: what published methods add to reinforcement learning in environments, for users of gymnasium and
stable-baselines3 or of a loop of their own.

N transitions, actions (N, A), values and log-probs (N,). PPO's own loss for (N,) actions is `warpup.policy_loss` on
(N, 1), its advantages `warpup.gae`. `warpup.control.wrappers` needs gymnasium, the rest torch alone.
"""

from .dynamics import elbo, gap_loss, gap_weights, trajectory_weights
from .imitation import bc_loss, diverse_bc_loss
from .policies import (
    PolicyGate,
    ensemble_target,
    hybrid_critic_loss,
    natural_step,
    puct,
    rollout_value,
)
from .rewards import PenaltyCurriculum, tracking_reward
from .solvers import dual_surrogate, solve_least_squares, target_cost

__all__ = [
    "PenaltyCurriculum",
    "PolicyGate",
    "bc_loss",
    "diverse_bc_loss",
    "dual_surrogate",
    "elbo",
    "ensemble_target",
    "gap_loss",
    "gap_weights",
    "hybrid_critic_loss",
    "natural_step",
    "puct",
    "rollout_value",
    "solve_least_squares",
    "target_cost",
    "tracking_reward",
    "trajectory_weights",
]
