"""warpup: fused operators and a lean trainer for two-stage post-training."""

from warpup.ops.logprob import policy_loss, token_logprob

from warpup._standin import group_advantage  # noqa
