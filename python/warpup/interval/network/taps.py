"""TAPS: boxes through the first layers of a network, attacks within the box at the layers behind them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from warpup._evaluating import evaluating
from warpup.interval.margin_bounds import margin_cross_entropy, others

from .rules import Box
from .sabr import pgd
from .walk import Walk, check_box


def taps_loss(
    first: nn.Module, rest: nn.Module, center: Tensor, radius: Tensor, labels: Tensor, *, clean: Tensor | None = None,
    weight: float = 5.0, shrinkage: float = 1.0, steps: int = 8, step_size: float = 0.5,
    generator: torch.Generator | None = None,
) -> Tensor:  # fmt: skip
    """attacked * ibp, a scalar, of the network x -> rest(first(x)).

    Mao et al., "Connecting Certified and Adversarial Training", 2023 (arXiv 2305.04574). ibp: `margin_loss` of the
    whole network. attacked: the same loss of estimated margins: `pgd` looks for the least margin to each other class in
    the box that `first` gives, with rest in eval mode. Boxes overestimate the loss and attacks underestimate it, and
    the errors of both parts make up for each other. Both losses are means over the batch, whose product is what the
    authors' code takes. From `sabr_box`'s center and radius it is STAPS.

    first, rest: parts of one network, such as `net[:i]` and `net[i:]` of an nn.Sequential; keep these, since new slices
        would be traced anew in every step. rest ends in a linear layer.
    weight: factor on the gradient of `attacked` (w_TAPS); the value is the product, whatever the weight. At least 0.
    steps, step_size, generator: `pgd`'s. The other arguments are `bound`'s; ValueError as there.
    """
    if not weight >= 0:
        raise ValueError(f"weight must be at least 0, got {weight}")
    walk = Walk(shrinkage=shrinkage)
    box = walk.run(first, check_box(center, radius, clean))
    last, matrix, bias = walk.run(rest, box, head=True)
    ibp = margin_cross_entropy(last.center, last.radius, matrix, bias, labels)

    wrong = others(labels, len(matrix))  # (B, K - 1): one search for each
    aim = {"labels": labels.repeat_interleave(wrong.shape[1]), "targets": wrong.flatten()}
    ends = [t.detach().repeat_interleave(wrong.shape[1], 0) for t in box[:2]]
    with evaluating(rest):
        with torch.enable_grad():
            points = pgd(rest, *ends, **aim, steps=steps, step_size=step_size, generator=generator)
        logits = rest(connected(points.unflatten(0, wrong.shape), box).flatten(0, 1))
    label, other = (logits.gather(1, of.unsqueeze(1)) for of in aim.values())
    attacked = F.pad((other - label).view(wrong.shape), (1, 0)).logsumexp(1).mean()
    return (attacked.detach() + weight * (attacked - attacked.detach())) * ibp


def connected(points: Tensor, box: Box) -> Tensor:
    """points (B, M, ...) of a box (B, ...), with gradients that go on to its center and radius.

    The paper's gradient connector with c = 1/2: at an end of the box, all of a coordinate's gradient goes to that end;
    half-way from there to the middle, half of it; in the middle, none. A box without extent is its center.
    """
    center, radius = box.center.unsqueeze(1), box.radius.unsqueeze(1)
    with torch.no_grad():
        place = torch.where(radius > 0, (points - center) / radius, 0).clamp(-1, 1)  # -1 at the lower end
        share = torch.where(radius > 0, place.abs(), 1)
    return points + share * (center - center.detach()) + place * (radius - radius.detach())
