"""warpup: fused operators and a lean trainer for two-stage post-training."""

from warpup.ops.advantage import GroupPlan, GroupStats, group_advantage, group_plan, role_advantage
from warpup.ops.advantage_tokens import (
    gae,
    masked_whiten,
    reward_to_go,
    segment_advantage,
    segment_ids,
    tree_advantage,
)
from warpup.ops.logprob import policy_loss, token_logprob
