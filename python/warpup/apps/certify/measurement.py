"""What a trained classifier is measured by: its errors on the test set, and the statistics it is measured with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from warpup.interval import margins, pgd

from .images import Images, pixels


@torch.no_grad()
def population_statistics(model: nn.Module, data: Images, batch_size: int) -> None:
    """Replace the running statistics of batch normalisation by their averages over the batches of the training images,
    clean and in order; what does not fill a batch is left out (Wu and Johnson 2021, arXiv 2105.07576, "precise" ones).
    """
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's word for the average over all calls
        norm.train()
    for begin in range(0, len(data.x_train) - batch_size + 1, batch_size):
        model(data.normal(pixels(data.x_train[begin : begin + batch_size])))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()


def errors(model: nn.Module, data: Images, eps: float, attack: bool = False, batch: int = 512) -> dict[str, Any]:
    """Shares of the test set: `clean` misclassified, `verified` not verified within eps by interval bounds that hold in
    floating point (sound); with attack, `pgd` misclassified at a point that was found within eps (the image itself
    among them), and `broken`, the number of verified images among these. The model must be in eval mode."""
    wrong: dict[str, int | Tensor] = dict.fromkeys(("clean", "verified", "pgd", "broken"), 0)
    for begin in range(0, len(data.x_test), batch):
        x, labels = pixels(data.x_test[begin : begin + batch]), data.y_test[begin : begin + batch]
        center, radius = data.box(x, eps)
        with torch.no_grad():
            missed = model(data.normal(x)).argmax(1) != labels
            open_ = ~(margins(model, *data.box(x, eps, sound=True), labels, sound=True) > 0).all(1)
        wrong["clean"] += missed.sum()
        wrong["verified"] += open_.sum()
        if attack:
            generator = torch.Generator(x.device).manual_seed(0)
            points = pgd(model, center, radius, labels, restarts=2, generator=generator)
            with torch.no_grad():
                hit = missed | (model(points).argmax(1) != labels)
            wrong["pgd"] += hit.sum()
            wrong["broken"] += (hit & ~open_).sum()
    shares = {name: float(wrong[name]) / len(data.x_test) for name in ("clean", "verified", "pgd")[: 2 + attack]}
    return shares | ({"broken": int(wrong["broken"])} if attack else {})
