"""Learning rates: over steps, over tasks, by the batch, by the width of a layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import nn

DECAYS = {
    "linear": lambda done: 1 - done,
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "sqrt": lambda done: 1 - math.sqrt(done),
}


def warmup_stable_decay(
    steps: int, decay: int, *, warmup: int = 0, shape: str = "cosine", final: float = 0.0
) -> Callable[[int], float]:
    """Factor of the learning rate at each step, for `torch.optim.lr_scheduler.LambdaLR`: a linear rise over `warmup`
    steps, then 1, and over the last `decay` of all `steps` down to `final`.

    A checkpoint of the stable part is the start of many branches, each with its own data for the decay (OctoThinker,
    arXiv 2506.20512: 200B tokens, then 20B a branch; MiniCPM, arXiv 2404.06395): load it, and go on with the same
    schedule.

    Args:
        steps: of the whole run, warm-up and decay included.
        decay: steps of the decay.
        warmup: steps of the rise; step i of them has the factor (i + 1) / warmup.
        shape: `linear`, `cosine` or `sqrt` (1 - sqrt(share done)).
        final: the factor that the decay ends at, from step `steps` on.

    Raises:
        ValueError: an unknown shape, or a warm-up and a decay that do not fit into the steps.
    """
    if shape not in DECAYS:
        raise ValueError(f"warmup_stable_decay: shape must be one of {tuple(DECAYS)}, got {shape!r}")
    if decay < 1 or warmup < 0 or warmup + decay > steps:
        raise ValueError(
            f"warmup_stable_decay: warmup and decay must fit into steps, got {warmup} and {decay} of {steps}"
        )

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        done = min(max(step - (steps - decay), 0) / decay, 1.0)
        return final + (1 - final) * DECAYS[shape](done)

    return factor


def rsqrt_rate(rate: float, task: int) -> float:
    """Peak of the learning rate of task 1, 2, ...: `rate / sqrt(task)`, so that later tasks disturb less (FoMo-in-Flux,
    arXiv 2408.14471)."""
    if task < 1:
        raise ValueError(f"rsqrt_rate: task must be at least 1, got {task}")
    return rate / math.sqrt(task)


def sqrt_rate(rate: float, batch: int, base_batch: int) -> float:
    """Learning rate of a larger batch: `rate * sqrt(batch / base_batch)` (arXiv 1705.08741). The number of updates, not
    of epochs, stays what it was."""
    if batch < 1 or base_batch < 1:
        raise ValueError(f"sqrt_rate: batch and base_batch must be at least 1, got {batch} and {base_batch}")
    return rate * math.sqrt(batch / base_batch)


def mu_groups(
    model: nn.Module, rate: float, base_width: int | None = None, decay: float = 0.0, vectors_decay: bool = True
) -> list[dict[str, Any]]:
    """Parameter groups for AdamW by "muParam (simple)" and with independent weight decay (arXiv 2309.14322).

    - The rate of a linear layer's matrix is `rate * base_width / its inputs`; all else, embeddings too, has `rate`.
    - The decay is independent of the rate, `p <- p - s_t (rate * update + decay * p)` with s_t the schedule's factor.
      torch's AdamW multiplies its weight decay by the group's rate, so a group gets `decay / its rate`.

    Args:
        model: its parameters with `requires_grad`, each once.
        rate: at the schedule's peak.
        base_width: inputs of a layer whose rate stays as it is; None: all have `rate`.
        decay: the lambda above, such as 1e-4.
        vectors_decay: whether biases and norms (parameters of one dimension) decay, too.

    Returns:
        Groups with `params`, `lr` and `weight_decay`, for `torch.optim.AdamW(groups)`.
    """
    if base_width is not None and base_width < 1:
        raise ValueError(f"mu_groups: base_width must be at least 1, got {base_width}")
    if not rate > 0 or decay < 0:
        raise ValueError(f"mu_groups: rate must be above 0 and decay at least 0, got {rate} and {decay}")
    inputs = {id(m.weight): m.in_features for m in model.modules() if isinstance(m, nn.Linear)}
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}  # a tied output layer is one
    groups: dict[tuple[float, float], list] = {}
    for p in model.parameters():
        if not p.requires_grad:
            continue
        matrix = id(p) in inputs and id(p) not in tables
        own = rate * base_width / inputs[id(p)] if base_width is not None and matrix else rate
        groups.setdefault((own, decay / own if p.dim() > 1 or vectors_decay else 0.0), []).append(p)
    return [{"params": members, "lr": lr, "weight_decay": wd} for (lr, wd), members in groups.items()]
