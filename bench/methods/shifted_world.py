"""The images of the shifted digits: source domains with labels, and a stream of shifts without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.methods.nets import Classifier, accuracy, batches, fit
from warpup.apps._digits import load_digits_images


@dataclass(frozen=True)
class Size:
    steps: int = 400  # of a training on the source domains
    hidden: int = 64
    batch: int = 32
    rate: float = 1e-3  # of what adapts
    decay: float = 0.99  # of a mean teacher; published .999, for streams that are longer than 140 batches
    labels: int = 40  # of a shift, for a linear head


# ---- domains: images (N, 64) in [0, 1] ------------------------------------------------------------------------------


def clean(x: Tensor) -> Tensor:
    return x


def dim(x: Tensor) -> Tensor:
    return 0.5 * x


def noisy(x: Tensor) -> Tensor:
    return (x + 0.2 * torch.randn_like(x)).clamp(0, 1)


def turned(x: Tensor, degrees: float = 25.0) -> Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    matrix = torch.tensor([[angle.cos(), -angle.sin(), 0], [angle.sin(), angle.cos(), 0]])
    grid = F.affine_grid(matrix.expand(len(x), 2, 3), [len(x), 1, 8, 8], align_corners=False)
    return F.grid_sample(x.view(-1, 1, 8, 8), grid, align_corners=False).flatten(1)


def blurred(x: Tensor) -> Tensor:
    return F.avg_pool2d(x.view(-1, 1, 8, 8), 3, 1, 1).flatten(1)


def holed(x: Tensor) -> Tensor:
    return x * (torch.rand_like(x) > 0.35)


def glaring(x: Tensor) -> Tensor:
    """Light from the left."""
    return (x + torch.linspace(0.8, 0, 8).repeat(8)).clamp(0, 1)


def pale(x: Tensor) -> Tensor:
    return 0.3 + 0.25 * x


SOURCES = (clean, dim, noisy)
SHIFTS = (turned, blurred, holed, glaring, pale)


class World:
    """The half with labels in all source domains, with the domain of each image; the other half, shift by shift."""

    def __init__(self, seed: int, size: Size):
        x, y = load_digits_images()
        order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        x, y = x.flatten(1)[order], y[order]
        half = len(y) // 2
        self.seed, self.size = seed, size
        self.x = torch.cat([domain(x[:half]) for domain in SOURCES])
        self.y, self.domain = y[:half].repeat(len(SOURCES)), torch.arange(len(SOURCES)).repeat_interleave(half)
        self.test_x, self.test_y = x[half:], y[half:]
        self.stream = [(shift(self.test_x), self.test_y) for shift in SHIFTS]

    def trained(self, **options) -> Classifier:
        """A net that knows all source domains."""
        net = Classifier([self.size.hidden] * 2, norm=nn.BatchNorm1d)
        fit(net, self.x, self.y, self.size.steps, seed=self.seed, **options)
        return net.eval()

    def followed(self, answer: Callable[[Tensor], Tensor]) -> float:
        """Accuracy over the stream of `answer(x)`, logits, which may learn from the images it is given."""
        right = total = 0
        for place, (x, y) in enumerate(self.stream):
            for indices in batches(len(y), self.size.batch, len(y) // min(self.size.batch, len(y)), self.seed + place):
                right += int((answer(x[indices]).argmax(-1) == y[indices]).sum())
                total += len(indices)
        return right / total

    def source(self, net: Callable[[Tensor], Tensor]) -> float:
        return accuracy(net, self.test_x, self.test_y)

    def drawn(self, count: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(self.y), (count,))
        return self.x[chosen], self.y[chosen]


def augmented(x: Tensor) -> Tensor:
    """Another form of each image, of no source domain or shift: moved by a pixel, and a little noise."""
    rolled = torch.roll(x.view(-1, 8, 8), (int(torch.randint(-1, 2, ())), int(torch.randint(-1, 2, ()))), (1, 2))
    return (rolled.flatten(1) + 0.05 * torch.randn_like(x)).clamp(0, 1)
