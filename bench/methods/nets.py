"""What the benches on digits share: a small classifier, batches, and plain training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PIXELS, CLASSES = 64, 10


class Classifier(nn.Module):
    """Linear layers with ReLU, whose last width is that of the features, and a linear head.

    norm: makes a layer of normalisation for a width, put before each ReLU.
    """

    def __init__(
        self,
        widths: Sequence[int],
        classes: int = CLASSES,
        *,
        bias: bool = True,
        norm: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip([PIXELS, *widths], widths, strict=False):
            layers += [nn.Linear(before, width, bias=bias), *([norm(width)] if norm else []), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(widths[-1], classes, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


def batches(size: int, batch: int, steps: int, seed: int = 0) -> Iterator[Tensor]:
    """Indices of `steps` batches, in a new order each epoch; the end of an epoch that fills no batch is left out."""
    generator = torch.Generator().manual_seed(seed)
    batch, done = min(batch, size), 0
    while done < steps:
        for indices in torch.randperm(size, generator=generator)[: size // batch * batch].view(-1, batch):
            if done < steps:
                yield indices
            done += 1


def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    steps: int,
    *,
    rate: float = 3e-3,
    batch: int = 64,
    seed: int = 0,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
) -> None:
    """Trains by Adam on batches; `loss` of the indices' (x, y), None: the cross-entropy."""
    loss = loss or (lambda x, y: F.cross_entropy(model(x), y))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], rate)
    model.train()
    for indices in batches(len(y), batch, steps, seed):
        optimizer.zero_grad()
        loss(x[indices], y[indices]).backward()
        optimizer.step()


@torch.no_grad()
def accuracy(model: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> float:
    """The share of examples whose largest logit is that of their class; a module is put into eval mode."""
    if isinstance(model, nn.Module):
        model.eval()
    return float((model(x).argmax(-1) == y).float().mean())
