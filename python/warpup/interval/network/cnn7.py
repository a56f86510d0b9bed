"""The convolutional net that certified training is measured on."""

from __future__ import annotations

from torch import nn


def cnn7(
    channels: int = 3, size: int = 32, classes: int = 10, *, width: int = 64, hidden: int = 512, batch_norm: bool = True
) -> nn.Sequential:
    """CNN-7 of Shi et al. 2021 (arXiv 2103.17268): 3x3 convolutions of width, width, 2 width (stride 2), 2 width and
    2 width channels, a linear layer of `hidden`, each with batch normalisation and ReLU, and a linear layer of classes.

    channels, size: of the input images, (B, channels, size, size). 17.2 million parameters as it stands.
    """

    def after(norm: nn.Module) -> list[nn.Module]:
        return [norm, nn.ReLU()] if batch_norm else [nn.ReLU()]

    layers, before = [], channels
    for i, out in enumerate((width, width, 2 * width, 2 * width, 2 * width)):
        layers += [nn.Conv2d(before, out, 3, stride=2 if i == 2 else 1, padding=1), *after(nn.BatchNorm2d(out))]
        before = out
    side = (size + 1) // 2
    layers += [nn.Flatten(), nn.Linear(before * side * side, hidden), *after(nn.BatchNorm1d(hidden))]
    return nn.Sequential(*layers, nn.Linear(hidden, classes))
