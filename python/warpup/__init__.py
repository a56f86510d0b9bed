"""warpup: fused operators and a lean trainer for two-stage post-training.

The operators, and the objectives composed from them, are functions of this module; `warpup.advantage` has the published
estimators by name, `warpup.reflection` the schedules on reflection tokens, `warpup.nn.interval` bounds of whole
modules, `warpup.train` the trainer, `warpup.data` puzzles and loaders.
"""

from warpup.losses import (
    after_shared_prefix,
    coverage_loss,
    coverage_weights,
    degree_loss,
    preference_loss,
    sequence_logprob,
    weighted_nll,
    z_loss,
)
from warpup.ops.advantage import GroupPlan, GroupStats, group_advantage, group_plan, role_advantage
from warpup.ops.advantage_tokens import (
    gae,
    masked_whiten,
    reward_to_go,
    segment_advantage,
    segment_ids,
    tree_advantage,
)
from warpup.ops.interval import interval_conv1d, interval_conv2d, interval_linear
from warpup.ops.interval_activation import (
    interval_clamp,
    interval_elu,
    interval_exp,
    interval_gelu,
    interval_hardswish,
    interval_leaky_relu,
    interval_sigmoid,
    interval_silu,
    interval_softmax,
    interval_softplus,
    interval_tanh,
)
from warpup.ops.interval_attention import interval_attention, interval_matmul
from warpup.ops.interval_layers import (
    interval_adaptive_avg_pool2d,
    interval_add,
    interval_avg_pool2d,
    interval_box,
    interval_layer_norm,
    interval_max_pool2d,
    interval_rms_norm,
    interval_sub,
)
from warpup.ops.interval_margin import margin_bounds, margin_cross_entropy
from warpup.ops.interval_norm import BoxSums, interval_batch_norm, interval_relu
from warpup.ops.logprob import replay_logprob, token_logprob
from warpup.ops.logprob_divergence import divergence, topk_divergence
from warpup.ops.logprob_divergence_linear import linear_divergence
from warpup.ops.logprob_linear import linear_logprob
from warpup.ops.logprob_linear_policy import linear_policy_loss
from warpup.ops.logprob_policy import policy_loss
from warpup.ops.logprob_policy_masks import (
    clip_cov_tokens,
    kl_cov_tokens,
    rollout_weights,
    sequence_mask,
    top_entropy_mask,
)
from warpup.ops.moe import MoEPlan, moe_combine, moe_gather, moe_plan
from warpup.ops.moe_balance import moe_balance_loss, moe_device_balance_loss, moe_update_bias
from warpup.ops.moe_experts import moe_experts
from warpup.ops.moe_grouped import grouped_mm
from warpup.ops.moe_route import MoERoute, moe_route
from warpup.ops.reflection import ReflectionTables, apply_schedule_, reflection_state_update_
from warpup.ops.reflection_sample import SampledStep, continuous_tokens, mark_seen, sample_step
from warpup.reflection import ReflectionBatch, ReflectionSchedule, ReflectionTokens

__all__ = [
    "BoxSums",
    "GroupPlan",
    "GroupStats",
    "MoEPlan",
    "MoERoute",
    "ReflectionBatch",
    "ReflectionSchedule",
    "ReflectionTables",
    "ReflectionTokens",
    "SampledStep",
    "after_shared_prefix",
    "apply_schedule_",
    "clip_cov_tokens",
    "continuous_tokens",
    "coverage_loss",
    "coverage_weights",
    "degree_loss",
    "divergence",
    "gae",
    "group_advantage",
    "group_plan",
    "grouped_mm",
    "interval_adaptive_avg_pool2d",
    "interval_add",
    "interval_attention",
    "interval_avg_pool2d",
    "interval_batch_norm",
    "interval_box",
    "interval_clamp",
    "interval_conv1d",
    "interval_conv2d",
    "interval_elu",
    "interval_exp",
    "interval_gelu",
    "interval_hardswish",
    "interval_layer_norm",
    "interval_leaky_relu",
    "interval_linear",
    "interval_matmul",
    "interval_max_pool2d",
    "interval_relu",
    "interval_rms_norm",
    "interval_sigmoid",
    "interval_silu",
    "interval_softmax",
    "interval_softplus",
    "interval_sub",
    "interval_tanh",
    "kl_cov_tokens",
    "linear_divergence",
    "linear_logprob",
    "linear_policy_loss",
    "margin_bounds",
    "margin_cross_entropy",
    "mark_seen",
    "masked_whiten",
    "moe_balance_loss",
    "moe_combine",
    "moe_device_balance_loss",
    "moe_experts",
    "moe_gather",
    "moe_plan",
    "moe_route",
    "moe_update_bias",
    "policy_loss",
    "preference_loss",
    "reflection_state_update_",
    "replay_logprob",
    "reward_to_go",
    "role_advantage",
    "rollout_weights",
    "sample_step",
    "segment_advantage",
    "segment_ids",
    "sequence_logprob",
    "sequence_mask",
    "token_logprob",
    "top_entropy_mask",
    "topk_divergence",
    "tree_advantage",
    "weighted_nll",
    "z_loss",
]
