"""Sparse training over tasks: how dense each layer is, and masks that drop weights and grow others.

Source: continual learning with dynamic sparse training (arXiv 2308.14831); RigL (arXiv 1911.11134).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from warpup._arguments import explained


@explained
def erk_densities(shapes: Sequence[Sequence[int]], density: float) -> list[float]:
    """Share of weights kept in each layer, Erdos-Renyi-Kernel: `min(1, eps * sum(shape) / prod(shape))`.

    eps is such that the layers together keep `density` of their weights. A layer that would exceed 1 stays dense, and
    eps is found again for the others.

    Args:
        shapes: of the weights, such as [p.shape for p in ...].
        density: in (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f"erk_densities: density must be above 0 and at most 1, got {density}")
    sizes, dense = [math.prod(shape) for shape in shapes], set()
    while True:
        sparse = [i for i in range(len(shapes)) if i not in dense]
        kept = density * sum(sizes) - sum(sizes[i] for i in dense)
        eps = kept / sum(sum(shapes[i]) for i in sparse) if sparse else 0.0
        over = {i for i in sparse if eps * sum(shapes[i]) / sizes[i] > 1}
        if not over:
            return [1.0 if i in dense else eps * sum(shapes[i]) / sizes[i] for i in range(len(shapes))]
        dense |= over


def prune_rate(step: int, steps: int, start: float = 0.5, end: float = 0.005) -> float:
    """Share of a layer's active weights that a step of `prune_and_grow_` replaces: from start to end, by a cosine."""
    if steps < 1:
        raise ValueError(f"prune_rate: steps must be at least 1, got {steps}")
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1.0)))


@explained
@torch.no_grad()
def prune_and_grow_(weight: Tensor, mask: Tensor, rate: float, scores: Tensor, frozen: Tensor | None = None) -> None:
    """Drops the smallest active weights of a layer and grows as many others, of value 0; weight and mask in place.

    | growth | scores |
    |---|---|
    | random (SET) | `torch.rand_like(weight)` |
    | by gradient (RigL) | gradient of the dense weight, `.abs()` |
    | by momentum | the optimizer's momentum, `.abs()` |
    | random, first what was never active | `torch.rand_like(weight) + never_active` |

    After a task its mask is frozen for good: `frozen |= mask` and, before each optimizer step,
    `weight.grad.masked_fill_(frozen, 0)` (no weight decay, and fresh moments).

    Args:
        weight: any shape; outside of the mask it becomes 0.
        mask: bool, like weight: what is active.
        rate: share of the active, not frozen weights that is replaced, rounded down; `prune_rate(step, steps)`.
        scores: like weight; the inactive weights with the largest ones grow. What was just dropped may grow again.
        frozen: bool, like weight: neither dropped nor grown, the weights of earlier tasks.
    """
    for name, value in (("mask", mask), ("scores", scores), ("frozen", frozen)):
        if value is not None and value.shape != weight.shape:
            raise ValueError(f"prune_and_grow_: {name} must have weight's shape, got {tuple(value.shape)}")
    if not 0 <= rate <= 1:
        raise ValueError(f"prune_and_grow_: rate must be in [0, 1], got {rate}")
    free = torch.ones_like(mask) if frozen is None else ~frozen
    count = int(rate * int((mask & free).sum()))
    size = weight.abs().masked_fill(~(mask & free), torch.inf)
    mask.put_(size.flatten().topk(count, largest=False).indices, mask.new_zeros(count))
    open_scores = scores.masked_fill(mask | ~free, -torch.inf)
    grown = open_scores.flatten().topk(count).indices
    mask.put_(grown, mask.new_ones(count))
    weight.put_(grown, weight.new_zeros(count))
    weight.masked_fill_(~mask if frozen is None else ~(mask | frozen), 0.0)
