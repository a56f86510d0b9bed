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
from warpup.ops.logprob import replay_logprob, token_logprob
from warpup.ops.logprob_linear import linear_logprob
from warpup.ops.logprob_policy import policy_loss
from warpup.ops.logprob_policy_masks import (
    clip_cov_tokens,
    kl_cov_tokens,
    rollout_weights,
    sequence_mask,
    top_entropy_mask,
)

__all__ = [
    "GroupPlan",
    "GroupStats",
    "clip_cov_tokens",
    "gae",
    "group_advantage",
    "group_plan",
    "kl_cov_tokens",
    "linear_logprob",
    "masked_whiten",
    "policy_loss",
    "replay_logprob",
    "reward_to_go",
    "role_advantage",
    "rollout_weights",
    "segment_advantage",
    "segment_ids",
    "sequence_mask",
    "token_logprob",
    "top_entropy_mask",
    "tree_advantage",
]
