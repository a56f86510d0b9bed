"""Adversarial points in a box (PGD), and SABR's small boxes around them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from warpup._evaluating import evaluating

from .walk import check_box


def pgd(
    module: nn.Module, center: Tensor, radius: Tensor, labels: Tensor, *, steps: int = 20, step_size: float = 0.25,
    restarts: int = 1, generator: torch.Generator | None = None, targets: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Points of the box that the module gets wrong where they are found, by projected gradient descent on the margin.

    Madry et al. 2018 (arXiv 1706.06083): from a uniform start in the box, `steps` steps of step_size * radius along the
    sign of the gradient of (largest other logit - label's logit), kept in the box; of all points met, the one with the
    largest margin of error is returned, (B, ...). The module is called as it is: put it into eval mode, so that its
    statistics stay. targets: (B) int64, the class to take in place of the largest other.
    """
    if restarts < 1 or steps < 0:
        raise ValueError(f"restarts must be at least 1 and steps at least 0, got {restarts} and {steps}")
    check_box(center, radius, None)
    low, high = center - radius, center + radius
    best, worst = center, None
    for _ in range(restarts):
        noise = torch.rand(center.shape, generator=generator, device=center.device, dtype=center.dtype)
        x = low + 2 * radius * noise
        for step in range(steps + 1):
            x = x.detach().requires_grad_(step < steps)
            logits = module(x)
            label = logits.gather(1, labels.unsqueeze(1)).squeeze(1)
            if targets is None:
                error = logits.scatter(1, labels.unsqueeze(1), -torch.inf).amax(1) - label
            else:
                error = logits.gather(1, targets.unsqueeze(1)).squeeze(1) - label
            with torch.no_grad():
                if worst is None:
                    worst = torch.full_like(error, -torch.inf)
                better = error > worst
                worst = torch.where(better, error, worst)
                best = torch.where(better.view(-1, *(1,) * (x.dim() - 1)), x, best)
            if step < steps:
                [gradient] = torch.autograd.grad(error.sum(), x)
                x = torch.minimum(torch.maximum(x + step_size * radius * gradient.sign(), low), high)
    return best.detach()


def sabr_box(
    module: nn.Module, center: Tensor, radius: Tensor, labels: Tensor, *, ratio: float = 0.4, steps: int = 8,
    step_size: float = 0.5, generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """A box of ratio * radius inside the given one, as near as it gets to an adversarial point: (center, radius).

    Müller et al., "Certified Training: Small Boxes are All You Need", 2023 (arXiv 2210.04871): training on it gives
    tighter nets than on the whole box. `bound(..., shrinkage=c)` is the paper's shrinking of crossing ReLUs. The point
    is `pgd`'s, with the module in eval mode for that time. ratio: above 0, at most 1.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be above 0 and at most 1, got {ratio}")
    with evaluating(module), torch.enable_grad():
        options = {"steps": steps, "step_size": step_size, "generator": generator}
        point = pgd(module, center, radius, labels, **options)
    room = (1 - ratio) * radius
    return torch.minimum(torch.maximum(point, center - room), center + room), ratio * radius
