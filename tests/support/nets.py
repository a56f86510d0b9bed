"""Small nets that bounds are tested on."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F


class Residual(nn.Module):
    """Two branches, added and concatenated, with functional forms, a shape taken from the input and dropout."""

    def __init__(self, channels=3, stride=1, negative=False):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, stride, 1), nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        self.conv = nn.Conv2d(channels, channels, 3, padding="same", groups=channels)
        self.norm = nn.BatchNorm2d(channels)
        self.short = nn.Conv2d(channels, channels, 1)
        self.pool, self.drop = nn.AvgPool2d(2, ceil_mode=True), nn.Dropout(0.5)
        self.last = nn.LazyLinear(5)
        for norm in (self.stem[1], self.norm):
            nn.init.uniform_(norm.weight, -1, 1)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        x = (x - 0.4) / 0.3
        x = self.stem(x)
        y = self.norm(self.conv(x))
        x = torch.relu(y + self.short(x)) - 0.5 * x
        x = torch.cat([self.pool(x), -F.avg_pool2d(y, 2, ceil_mode=True)], dim=1)
        return self.last(self.drop(x.view(x.size(0), -1)))


def residual(seed=0, size=6, **options):
    """(module with running statistics, inputs), the module in eval mode."""
    torch.manual_seed(seed)
    module, x = Residual(**options), torch.rand(3, 1, size, size)
    with torch.no_grad():
        for _ in range(3):
            module(torch.rand(8, 1, size, size))
    return module.eval(), x


def chain(seed=0, size=6, classes=4, training=False):
    """(a chain of convolutions and linear layers with batch normalisation, inputs)."""
    torch.manual_seed(seed)
    layers = [nn.Conv2d(1, 3, 3, 2, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.ReLU(), nn.Flatten()]
    side = (size + 1) // 2 - 1
    layers += [nn.Linear(4 * side * side, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Dropout(0.0), nn.Linear(7, classes)]
    module = nn.Sequential(*layers)
    x = torch.rand(5, 1, size, size)
    for _ in range(2):
        module(torch.rand(16, 1, size, size))
    return module.train(training), x
