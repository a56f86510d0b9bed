"""Learning rates and the guarded optimizer step."""

import math
from collections.abc import Iterable
from typing import Literal

import torch

Schedule = Literal["constant", "cosine", "linear"]


def learning_rate(step: int, steps: int, peak: float, warmup: int, schedule: Schedule) -> float:
    """Rate of step 0 .. steps - 1: a linear rise over `warmup` steps to `peak`, then the schedule (down to 0)."""
    if step < warmup:
        return peak * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    return peak * {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[schedule]


def adamw(model, lr: float, betas: tuple[float, float], weight_decay: float) -> torch.optim.AdamW:
    """AdamW over the model's trainable parameters, in the fused form where the device has one."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(parameters, lr=lr, betas=tuple(betas), weight_decay=weight_decay, fused=True)


def guarded_step(optimizer: torch.optim.Optimizer, loss: float, lr: float, clip: float) -> tuple[bool, float]:
    """Clip the gradients to norm `clip` (0: do not) and step at rate `lr`; gradients are cleared either way.

    Returns (stepped, gradient norm). Where the loss or the norm is not finite, nothing is changed and stepped is False.
    """
    parameters: Iterable = [p for group in optimizer.param_groups for p in group["params"]]
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip or math.inf))
    stepped = math.isfinite(norm) and math.isfinite(loss)
    if stepped:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return stepped, norm
