"""Beside torch's optimizers: schedules, parameter groups, what is done to gradients, steps that are differentiated."""

from .gradients import (
    GradientModulation,
    SyntheticGradient,
    add_loss,
    block_gradients_,
    project_conflict,
    single_mode_logits,
)
from .schedules import mu_groups, rsqrt_rate, sqrt_rate, warmup_stable_decay
from .unroll import unroll

__all__ = [
    "GradientModulation",
    "SyntheticGradient",
    "add_loss",
    "block_gradients_",
    "mu_groups",
    "project_conflict",
    "rsqrt_rate",
    "single_mode_logits",
    "sqrt_rate",
    "unroll",
    "warmup_stable_decay",
]
