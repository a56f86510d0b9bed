# The public names and where they live: `__init__.py` reads this at run time, and imports a name when it is first used.
from . import (
    advantage,
    arrays,
    continual,
    control,
    data,
    distill,
    distributed,
    interval,
    logprob,
    losses,
    metrics,
    moe,
    nn,
    optim,
    policy,
    reflection,
    synthesis,
    train,
)
from .advantage.gae import gae, reward_to_go
from .advantage.group_advantage import GroupStats, group_advantage
from .advantage.group_plan import GroupPlan, group_plan
from .advantage.masked_whiten import masked_whiten
from .advantage.role_advantage import role_advantage
from .advantage.segment_advantage import segment_advantage, segment_ids
from .advantage.tree_advantage import tree_advantage
from .divergence.divergence import divergence
from .divergence.linear_divergence import linear_divergence
from .divergence.topk_divergence import topk_divergence
from .interval.box_sums import BoxSums
from .interval.interval_activation import (
    interval_clamp,
    interval_elu,
    interval_exp,
    interval_gelu,
    interval_hardswish,
    interval_leaky_relu,
    interval_sigmoid,
    interval_silu,
    interval_softplus,
    interval_tanh,
)
from .interval.interval_arithmetic import (
    interval_abs,
    interval_div,
    interval_log,
    interval_maximum,
    interval_minimum,
    interval_mul,
    interval_pow,
    interval_sqrt,
)
from .interval.interval_attention import interval_attention, interval_matmul
from .interval.interval_batch_norm import interval_batch_norm, interval_relu
from .interval.interval_box import interval_add, interval_box, interval_sub
from .interval.interval_conv import interval_conv1d, interval_conv2d
from .interval.interval_layer_norm import interval_layer_norm, interval_rms_norm
from .interval.interval_linear import interval_linear
from .interval.interval_pool2d import interval_adaptive_avg_pool2d, interval_avg_pool2d, interval_max_pool2d
from .interval.interval_softmax import interval_softmax
from .interval.margin_bounds import margin_bounds, margin_cross_entropy
from .logprob.kept import KeptTokens
from .logprob.likelihood import (
    after_shared_prefix,
    coverage_loss,
    coverage_weights,
    sequence_logprob,
    weighted_nll,
    z_loss,
)
from .logprob.linear_logprob import linear_logprob
from .logprob.replay_logprob import replay_logprob
from .logprob.token_logprob import token_logprob
from .logprob.vocab_parallel import vocab_parallel_logprob
from .moe.glu import glu
from .moe.grouped_mm import grouped_mm
from .moe.moe_balance_loss import moe_balance_loss, moe_device_balance_loss, moe_update_bias
from .moe.moe_experts import moe_experts
from .moe.moe_gather import moe_combine, moe_gather
from .moe.moe_plan import MoEPlan, moe_plan
from .moe.moe_route import MoERoute, moe_route
from .policy.linear_policy_loss import linear_policy_loss
from .policy.masks import (
    clip_cov_tokens,
    kl_cov_tokens,
    rollout_mask,
    rollout_weights,
    sequence_mask,
    top_entropy_mask,
)
from .policy.policy_loss import policy_loss
from .policy.preference_loss import degree_loss, kto_loss, preference_loss
from .reflection import ReflectionBatch, ReflectionSchedule, ReflectionTokens
from .reflection.apply_schedule import ReflectionTables, apply_schedule_, reflection_state_update_
from .reflection.sample_step import SampledStep, continuous_tokens, mark_seen, sample_step

__all__ = [
    "BoxSums",
    "GroupPlan",
    "GroupStats",
    "KeptTokens",
    "MoEPlan",
    "MoERoute",
    "ReflectionBatch",
    "ReflectionSchedule",
    "ReflectionTables",
    "ReflectionTokens",
    "SampledStep",
    "advantage",
    "after_shared_prefix",
    "apply_schedule_",
    "arrays",
    "clip_cov_tokens",
    "continual",
    "continuous_tokens",
    "control",
    "coverage_loss",
    "coverage_weights",
    "data",
    "degree_loss",
    "distill",
    "distributed",
    "divergence",
    "gae",
    "glu",
    "group_advantage",
    "group_plan",
    "grouped_mm",
    "interval",
    "interval_abs",
    "interval_adaptive_avg_pool2d",
    "interval_add",
    "interval_attention",
    "interval_avg_pool2d",
    "interval_batch_norm",
    "interval_box",
    "interval_clamp",
    "interval_conv1d",
    "interval_conv2d",
    "interval_div",
    "interval_elu",
    "interval_exp",
    "interval_gelu",
    "interval_hardswish",
    "interval_layer_norm",
    "interval_leaky_relu",
    "interval_linear",
    "interval_log",
    "interval_matmul",
    "interval_max_pool2d",
    "interval_maximum",
    "interval_minimum",
    "interval_mul",
    "interval_pow",
    "interval_relu",
    "interval_rms_norm",
    "interval_sigmoid",
    "interval_silu",
    "interval_softmax",
    "interval_softplus",
    "interval_sqrt",
    "interval_sub",
    "interval_tanh",
    "kl_cov_tokens",
    "kto_loss",
    "linear_divergence",
    "linear_logprob",
    "linear_policy_loss",
    "logprob",
    "losses",
    "margin_bounds",
    "margin_cross_entropy",
    "mark_seen",
    "masked_whiten",
    "metrics",
    "moe",
    "moe_balance_loss",
    "moe_combine",
    "moe_device_balance_loss",
    "moe_experts",
    "moe_gather",
    "moe_plan",
    "moe_route",
    "moe_update_bias",
    "nn",
    "optim",
    "policy",
    "policy_loss",
    "preference_loss",
    "reflection",
    "reflection_state_update_",
    "replay_logprob",
    "reward_to_go",
    "role_advantage",
    "rollout_mask",
    "rollout_weights",
    "sample_step",
    "segment_advantage",
    "segment_ids",
    "sequence_logprob",
    "sequence_mask",
    "synthesis",
    "token_logprob",
    "top_entropy_mask",
    "topk_divergence",
    "train",
    "tree_advantage",
    "vocab_parallel_logprob",
    "weighted_nll",
    "z_loss",
]
