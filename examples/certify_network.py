"""Certify a network of your own: train it on its certified margins, and count the inputs whose class is proven.

    python examples/certify_network.py --steps 300

The network is an ordinary `nn.Sequential`. Nothing in it knows of boxes: `warpup.interval` walks its layers and carries
center and radius through each. The data are two moons in the plane; an adversary may move each coordinate by 0.2.
"""

import argparse

import torch
from torch import Tensor, nn

from warpup.interval import bound, margin_loss, margins

RADIUS = 0.2


def moons(count: int) -> tuple[Tensor, Tensor]:
    angle, labels = torch.rand(count) * torch.pi, torch.randint(2, (count,))
    side = 1 - 2 * labels
    x = torch.stack([side * angle.cos() + labels, side * angle.sin() + 0.3 * labels], 1)
    return x + 0.05 * torch.randn(count, 2), labels


def main() -> tuple[float, float]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    given = parser.parse_args()
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)

    for step in range(given.steps):
        x, labels = moons(256)
        # The box grows from a point to its full size: training on large boxes from the start learns nothing.
        radius = torch.full_like(x, RADIUS * min(1, 2 * step / given.steps))
        loss = margin_loss(network, x, radius, labels, clean=x, kappa=0.5)  # half on the inputs, half on the worst case
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    x, labels = moons(1000)
    radius = torch.full_like(x, RADIUS)
    with torch.no_grad():
        right = (network(x).argmax(1) == labels).float().mean().item()
        # margins: a lower bound of (logit of the label - logit of each other class) over the whole box.
        # sound=True rounds outward, so that it holds in floating point and not only in real numbers.
        proven = (margins(network, x, radius, labels, sound=True) > 0).all(1).float().mean().item()
        center, spread = bound(network, x[:1], radius[:1])  # every output the network can give near the first input
    print(f"right: {right:.1%}   proven for every input within {RADIUS}: {proven:.1%}")
    print(f"logits of the first input: {center[0].tolist()} +- {spread[0].tolist()}")
    return right, proven


if __name__ == "__main__":
    main()
