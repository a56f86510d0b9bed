"""Small synthetic data sets that train as a large one does: what is compared, gradients or trajectories.

The inner loop that trains on synthetic data is `warpup.optim.unroll`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from warpup._arguments import explained, same_shape, same_shapes
from warpup._optional import needs


@explained
def gradient_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor]) -> Tensor:
    """`sum over layers and output rows of 1 - cosine` of two gradients; 0-d.

    A row is all that belongs to one output of a layer, (out, ...) flattened to (out, rest). Gradients of one dimension
    (biases, norms) are left out.

    Args:
        real: gradient of each parameter on real data, a constant.
        synthetic: on synthetic data, with gradient (`create_graph=True`).

    Source: dataset condensation (arXiv 2006.05929) and its authors' code.
    """
    if not synthetic:
        raise ValueError("gradient_distance: synthetic must hold at least one gradient")
    same_shapes("gradient_distance", real=real, synthetic=synthetic)
    total = [torch.zeros((), device=synthetic[0].device)]
    for g, s in zip(real, synthetic, strict=True):
        if g.dim() > 1:
            total.append((1 - F.cosine_similarity(g.detach().flatten(1), s.flatten(1), dim=-1)).sum())
    return torch.stack(total).sum()


@explained
def condensation_loss(
    loss: Callable[[object], Tensor],
    parameters: Sequence[Tensor],
    real: Mapping[int, object],
    synthetic: Mapping[int, object],
    *,
    contrastive: bool,
) -> Tensor:
    """How far the gradients on synthetic data are from those on real data; 0-d, with gradient into the synthetic data.

    | contrastive | distance | method |
    |---|---|---|
    | False | sum over classes c of D(g(real_c), g(synthetic_c)) | DC, arXiv 2006.05929 |
    | True | D(mean over classes of g(real_c), mean over classes of g(synthetic_c)) | DCC, arXiv 2202.02916 |

    With as many synthetic examples in each class, the latter mean is the gradient on all of them together. DCC begins
    with the first form: contrastive once `outer >= 250 or inner >= 10`, by the steps of both loops.

    Args:
        loss: of a batch, a mean over its examples, of plain torch operations.
        parameters: of the network.
        real, synthetic: by class, what `loss` takes.
    """
    if real.keys() != synthetic.keys() or not real:
        raise ValueError(f"condensation_loss: real and synthetic must have the same classes, got {[*real]}")

    def gradients(batch: object, constant: bool) -> tuple[Tensor, ...]:
        return torch.autograd.grad(loss(batch), list(parameters), create_graph=not constant)

    pairs = [(gradients(real[c], True), gradients(synthetic[c], False)) for c in real]
    if contrastive:
        sides = zip(*pairs, strict=True)
        return gradient_distance(*([torch.stack(layer).mean(0) for layer in zip(*side, strict=True)] for side in sides))
    return torch.stack([gradient_distance(g, s) for g, s in pairs]).sum()


@explained
def trajectory_distance(
    reached: Mapping[str, Tensor], start: Mapping[str, Tensor], target: Mapping[str, Tensor]
) -> Tensor:
    """`||reached - target||^2 / ||start - target||^2` over all parameters; 0-d.

    reached: the student after training on synthetic data from the expert's epoch t (`warpup.optim.unroll`), with
    gradient; start: the expert at t; target: the expert at t + M. At intermediate epochs the aligned form (arXiv
    2310.10541) adds beta_k times the same, beta_k = k / (1 + K), and scales its inner losses by `trajectory_scale`.

    Source: trajectory matching (arXiv 2203.11932).
    """
    for name in target:
        same_shape(f"trajectory_distance: {name}", target=target[name], reached=reached[name], start=start[name])
    moved = [(reached[name] - target[name].detach()).square().sum() for name in target]
    whole = [(start[name] - target[name]).detach().square().sum() for name in target]
    return torch.stack(moved).sum() / torch.stack(whole).sum()


def trajectory_scale(epoch: int, epochs: int) -> float:
    """`log_5(|t - T / 2| + 8)`: what a late start of the T epochs multiplies the student's cross-entropy by, and an
    early one divides it by (arXiv 2310.10541)."""
    if not 0 <= epoch <= epochs:
        raise ValueError(f"trajectory_scale: epoch must be from 0 to {epochs}, got {epoch}")
    return math.log(abs(epoch - epochs / 2) + 8, 5)


@explained
def input_gradient_penalty(outputs: Tensor, inputs: Tensor) -> Tensor:
    """`mean over examples of (||d outputs / d inputs||_2 - 1)^2`, outputs summed; 0-d: keeps an expert smooth, so that
    few synthetic examples can follow it (arXiv 2310.10541).

    Args:
        outputs: what the network made of inputs.
        inputs: (B, ...) with `requires_grad`.
    """
    (gradient,) = torch.autograd.grad(outputs.sum(), inputs, create_graph=True)
    return (gradient.flatten(1).norm(dim=-1) - 1).square().mean()


@torch.no_grad()
def perturb_filters_(parameters: Sequence[Tensor], generator: torch.Generator | None = None) -> None:
    """`w <- w + d / ||d|| w` in place, elementwise with a normal d, of convolutions' weights (four dimensions) alone: a
    student's start near the expert's (arXiv 2310.10541)."""
    for w in parameters:
        if w.dim() == 4:
            d = torch.randn(w.shape, generator=generator, dtype=w.dtype, device=w.device)
            w += d / d.norm() * w


def representatives(features: Tensor, labels: Tensor, per_class: int, seed: int = 0) -> Tensor:
    """(classes * per_class,) int64, class by class: the examples nearest to the centers of k-means in their class,
    where synthetic data may begin (arXiv 2310.10541).

    Args:
        features: (N, D) of the real examples, on the CPU.
        labels: (N,).
        per_class: centers of each class, at most its examples.
        seed: of scikit-learn's KMeans, which repeats bit for bit at one number of threads.

    Raises:
        ModuleNotFoundError: without scikit-learn.
        ValueError: per_class is below 1, or above the examples of a class.
    """
    with needs("representatives", "scikit-learn", "'warpup[methods]'"):
        from sklearn.cluster import KMeans

    if per_class < 1:
        raise ValueError(f"representatives: per_class must be at least 1, got {per_class}")
    chosen = []
    for c in labels.unique():
        own = (labels == c).nonzero().flatten()
        if len(own) < per_class:
            raise ValueError(f"representatives: per_class is {per_class}, class {int(c)} has {len(own)} examples")
        kmeans: Any = KMeans  # whose n_init a type checker takes for a text, as its default is one
        found = kmeans(per_class, random_state=seed, n_init=1).fit(features[own].numpy())
        distance = torch.cdist(torch.from_numpy(found.cluster_centers_).to(features), features[own])
        chosen.append(own[distance.argmin(-1)])
    return torch.cat(chosen)
