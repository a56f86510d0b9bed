"""The optimizer and its learning rates."""

import math
from typing import Literal

import torch

RateSchedule = Literal["constant", "cosine", "linear"]


def learning_rate(step: int, steps: int, peak: float, warmup: int, schedule: RateSchedule) -> float:
    """Rate of step 0 .. steps - 1: a linear rise over `warmup` steps to `peak`, then the schedule (down to 0)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]


def adamw(model, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the model's trainable parameters, in the fused form where the device has one."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=lr, betas=tuple(betas), weight_decay=weight_decay, fused=True)
