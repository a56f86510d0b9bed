"""HyperInterval: a hypernetwork that maps boxes of small task embeddings to boxes of a target network's weights.

    radius of task t   rho_t = gamma softmax(a_t), a_t trained from 0 on: gamma / n for each of n dimensions
    its center         z_t = rho_t / 2 * cos(e_t), e_t trained; at the start gamma / (2 n) cos(e_t)
    intersection       [max_t (z_t - rho_t), min_t (z_t + rho_t)]: |z_t| <= rho_t / 2, so it always contains 0
    universal          the center of the intersection: one embedding, hence one target network, for all tasks
    weights            the hypernetwork, an MLP with ReLU, carries the box by interval arithmetic

The universal network's weights lie in the weight box of every task (the universal embedding lies in every embedding
box), so each task's worst case over its own box bounds what that one network does on it. Unlike with `NestedBox` the
boxes of earlier tasks still move while later ones are learned; `drift_loss` holds them. A certificate is therefore one
for the hypernetwork as it is.

Source: HyperInterval (arXiv 2405.15444), its nested scenario. Ours: the center is half of the task's *own* radius times
the cosine (theirs: of the uniform radius), which keeps the intersection from being empty whatever the trained a_t;
embeddings of earlier tasks are fixed; the generated weights start at the target's own initialisation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from warpup.interval.interval_batch_norm import interval_relu
from warpup.interval.interval_box import CenterRadius
from warpup.interval.interval_linear import interval_linear

from .interval_weights import forward_boxes


class HyperInterval(nn.Module):
    """Hypernetwork with nested embedding boxes for `tasks` tasks and a target network.

    target: Linear, Conv2d, ReLU and Flatten in an nn.Sequential, or the layer sizes of an MLP such as [64, 32, 10]. Its
    own parameters are only looked at for their shapes and, once, as the start of the generated ones. embedding: its
    dimensions n. hidden: widths of the hypernetwork's hidden layers. gamma: sum of an embedding box's radii.
    """

    def __init__(
        self, target: nn.Sequential | Sequence[int], tasks: int, *, embedding: int = 8, hidden: Sequence[int] = (32,),
        gamma: float = 1.0,
    ):  # fmt: skip
        super().__init__()
        for name, value in (("tasks", tasks), ("embedding", embedding)):
            if value < 1:
                raise ValueError(f"{name}: expected at least 1, got {value}")
        if not 0 <= gamma < float("inf"):
            raise ValueError(f"gamma: expected a finite number of at least 0, got {gamma}")
        if not isinstance(target, nn.Sequential):
            target = mlp(target)
        for layer in target:
            if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ReLU | nn.Flatten):
                raise ValueError(f"target: expected Linear, Conv2d, ReLU and Flatten, got {type(layer).__name__}")
        self.gamma = gamma
        start = torch.cat([parameter.detach().flatten() for parameter in target.parameters()])
        self.shapes = [parameter.shape for parameter in target.parameters()]
        self._target = [copy.deepcopy(target).to("meta")]  # in a list: its parameters are not this module's
        self.embeddings = nn.ParameterList(nn.Parameter(torch.randn(embedding)) for _ in range(tasks))
        self.spreads = nn.ParameterList(nn.Parameter(torch.zeros(embedding)) for _ in range(tasks))
        self.hyper = mlp([embedding, *hidden, len(start)])
        with torch.no_grad():
            self.generated().bias.copy_(start)  # the target begins at its own initialisation

    def generated(self) -> nn.Linear:
        """The hypernetwork's last layer, which gives the target's parameters."""
        last = self.hyper[-1]
        assert isinstance(last, nn.Linear)
        return last

    def embedding_box(self, task: int, gamma: float | None = None) -> CenterRadius:
        """(center, radius), (n,) each, of a task's embedding box; gamma: in place of the module's own."""
        radius = (self.gamma if gamma is None else gamma) * self.spreads[task].softmax(0)
        return radius / 2 * self.embeddings[task].cos(), radius

    def intersection(self, tasks: int | None = None) -> CenterRadius:
        """(center, radius) of the intersection of the first `tasks` embedding boxes (default: all); never empty."""
        boxes = [self.embedding_box(task) for task in range(len(self.embeddings) if tasks is None else tasks)]
        lower = torch.stack([center - radius for center, radius in boxes]).amax(0)
        upper = torch.stack([center + radius for center, radius in boxes]).amin(0)
        return (lower + upper) / 2, (upper - lower) / 2

    def weights(self, center: Tensor, radius: Tensor) -> Iterator[CenterRadius]:
        """Boxes of the target's parameters, in their order, for a box of embeddings."""
        center, radius = self.flat_weights(center, radius)
        sizes = [shape.numel() for shape in self.shapes]
        for c, r, shape in zip(center.split(sizes), radius.split(sizes), self.shapes, strict=True):
            yield c.view(shape), r.view(shape)

    def flat_weights(self, center: Tensor, radius: Tensor) -> CenterRadius:
        """The same as two vectors: all parameters one after the other."""
        center, radius = center[None], radius[None]
        for layer in self.hyper:
            if isinstance(layer, nn.Linear):
                center, radius = interval_linear(center, radius, layer.weight, layer.bias)
            else:
                center, radius = interval_relu(center, radius)
        return center[0], radius[0]

    def forward(self, x: Tensor, task: int, gamma: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """(center, radius, clean): box of the target's outputs for points x over the task's weight box, and its outputs
        with the box's center weights."""
        boxes = self.weights(*self.embedding_box(task, gamma))
        center, radius, clean = forward_boxes(self._target[0], boxes, x, clean=x)
        return center, radius, clean

    def universal(self, tasks: int | None = None) -> nn.Sequential:
        """The target network, an ordinary one, at the universal embedding of the first `tasks` tasks (default: all)."""
        center, _ = self.intersection(tasks)
        weights = self.hyper(center[None])[0].detach()
        network = copy.deepcopy(self._target[0]).to(weights.dtype).to_empty(device=weights.device)
        nn.utils.vector_to_parameters(weights, network.parameters())
        return network

    def targets(self, tasks: int) -> Tensor:
        """(tasks, 3, P): lower ends, centers and upper ends of the weight boxes of the first `tasks` tasks.

        The embeddings are held fixed: a gradient reaches the hypernetwork alone.
        """
        boxes = [self.flat_weights(*(end.detach() for end in self.embedding_box(task))) for task in range(tasks)]
        found = [torch.stack((center - radius, center, center + radius)) for center, radius in boxes]
        bias = self.generated().bias
        return torch.stack(found) if found else bias.new_empty(0, 3, len(bias))


def drift_loss(hyper: HyperInterval, before: Tensor) -> Tensor:
    """Squared drift of the weight boxes of earlier tasks since `before` (`hyper.targets(tasks)`, without gradient):
    summed over lower ends, centers and upper ends of all weights, mean over the tasks; 0-d, 0 without tasks."""
    return (hyper.targets(len(before)) - before).square().sum() / max(1, len(before))


def gamma_and_kappa(step: int, steps: int, gamma: float, kappa: float) -> tuple[float, float]:
    """(gamma, kappa) at `step` of a task's `steps`: gamma from 0 and kappa from 1, linear over the first half, then
    constant. The authors' kappa falls by a fixed 5e-5 a step in that half; ending where it is meant to is ours."""
    done = min(1.0, 2 * step / steps)
    return done * gamma, 1 - done * (1 - kappa)


def mlp(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers of these sizes with ReLU between."""
    if len(sizes) < 2 or min(sizes) < 1:
        raise ValueError(f"sizes: expected two or more sizes of at least 1, got {list(sizes)}")
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1])
