"""warpup: fused operators and a lean trainer for two-stage post-training."""

from warpup.ops.logprob import token_logprob

from warpup._standin import group_advantage, policy_loss  # noqa
