"""Training steps that are themselves differentiated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from warpup._arguments import explained


@explained
def unroll(
    parameters: Mapping[str, Tensor],
    loss: Callable[[dict[str, Tensor], Any], Tensor],
    batches: Iterable[Any],
    rate: float | Tensor,
    *,
    first_order: bool = False,
) -> dict[str, Tensor]:
    """Parameters after a step of gradient descent on each batch, differentiable with respect to everything in it: the
    first parameters, the rate, and what the losses and batches are made of.

    One inner loop for many methods: adaptation of a student that is met by its loss afterwards (MAML, arXiv 1703.03400;
    Meta-DMoE, 2210.03885), the weight of a distillation by a validation set (TGeo-KD, 2312.15112), synthetic data
    whose training is to end where that on real data did (trajectory matching, 2203.11932).

        weights = unroll(dict(model.named_parameters()), inner_loss, batches, .1)
        outer = F.cross_entropy(torch.func.functional_call(model, weights, x), y)

    Args:
        parameters: by name; one that needs no gradient is taken as a constant start.
        loss: `loss(parameters, batch)`, 0-d, of plain torch operations: the fused ones of this package have no second
            derivative.
        batches: one a step.
        rate: of gradient descent.
        first_order: takes each gradient for a constant (FOMAML): cheaper, and then only the first parameters and the
            rate get a gradient.

    Returns:
        The parameters, by name. Memory grows with the number of steps.
    """
    current = {name: p if p.requires_grad else p.detach().requires_grad_() for name, p in parameters.items()}
    for batch in batches:
        gradients = torch.autograd.grad(
            loss(current, batch), list(current.values()), create_graph=not first_order, allow_unused=True
        )
        current = {
            name: p if gradient is None else p - rate * gradient
            for (name, p), gradient in zip(current.items(), gradients, strict=True)
        }
    return current
