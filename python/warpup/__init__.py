"""warpup: fused operators and a lean trainer for two-stage post-training.

The operators are functions of this module; `warpup.advantage` has the published estimators by name, `warpup.train` the
trainer, `warpup.data` puzzles and loaders.
"""

from warpup.ops.advantage import GroupPlan, GroupStats, group_advantage, group_plan, role_advantage
from warpup.ops.advantage_tokens import (
    gae,
    masked_whiten,
    reward_to_go,
    segment_advantage,
    segment_ids,
    tree_advantage,
)
from warpup.ops.logprob import token_logprob
from warpup.ops.logprob_divergence import divergence, topk_divergence
from warpup.ops.logprob_divergence_linear import linear_divergence
from warpup.ops.logprob_policy import policy_loss

__all__ = [
    "GroupPlan",
    "GroupStats",
    "divergence",
    "gae",
    "group_advantage",
    "group_plan",
    "linear_divergence",
    "masked_whiten",
    "policy_loss",
    "reward_to_go",
    "role_advantage",
    "segment_advantage",
    "segment_ids",
    "token_logprob",
    "topk_divergence",
    "tree_advantage",
]
