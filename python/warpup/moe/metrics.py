"""How tokens travel through the experts of a model: pathways, their distances and their consistency, batch by batch.

Source: grokking in MoE pretraining (arXiv 2506.21551), where these tell memorization from generalization without a test
set. T tokens, E experts, k of them a token, in each of L layers; several tokens make a sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import isqrt
from random import Random
from typing import NamedTuple

import torch
from torch import Tensor


class RoutingReport(NamedTuple):
    pathways: dict[int, tuple[tuple[int, ...], ...]]  # sample id -> for each layer its experts, the heaviest first
    distance: float  # mean edit distance of two samples' pathways; 0 with fewer than two samples
    consistency: float  # 1 - mean cosine of neighboring layers / (its largest + 1e-8), as published
    cosine: float  # the mean cosine itself: higher is more alike, where the published number is lower


class RoutingMetrics:
    """Accumulates the routing of a model's layers over batches; `results` reads it at any time.

    A sample's pathway: in each layer the experts by their mean routing weight over the sample's tokens, falling, the
    lower id first of equal ones, until their weights add up to more than `threshold` of the layer's; the layers one
    after another. Memory: samples * layers * experts float64 on the CPU, and two sums a pair of neighboring layers.

    Args:
        layers: L, the number of MoE layers.
        experts: E of each.
        router: of each layer the (E, H) rows of its router; needed for consistency, NaN without it. They are read with
            each `results`, so they may go on training.
        threshold: share of the weight that a layer's part of the pathway covers.
        edits: what an edit of the distance changes: an `expert` of the pathway ("token" level), or a `character` of its
            text, experts joined by "," and layers by "-". The paper does not say which.
        pairs: at most so many pairs of samples are compared, each once, drawn with `seed`; None, or no more samples
            than make so many pairs: all. Memory for it: one number a drawn pair, whatever the number of samples.
        seed: of the draw, 0 by default.
    """

    def __init__(
        self,
        layers: int,
        experts: int,
        *,
        router: Sequence[Tensor] | None = None,
        threshold: float = 0.7,
        edits: str = "expert",
        pairs: int | None = 10_000,
        seed: int | None = None,
    ):
        if edits not in ("expert", "character"):
            raise ValueError(f"RoutingMetrics: edits must be expert or character, got {edits!r}")
        if pairs is not None and pairs < 1:
            raise ValueError(f"RoutingMetrics: pairs must be at least 1, or None for all, got {pairs}")
        if seed is not None and pairs is None:
            raise ValueError(f"RoutingMetrics: seed={seed} draws nothing where all pairs are compared, pairs=None")
        if not 0 < threshold < 1:
            raise ValueError(f"RoutingMetrics: threshold must be above 0 and below 1, got {threshold}")
        if router is not None and [tuple(r.shape[:1]) for r in router] != [(experts,)] * layers:
            shapes = [tuple(r.shape) for r in router]
            raise ValueError(
                f"RoutingMetrics: router must hold ({experts}, H) for each of {layers} layers, got {shapes}"
            )
        self.layers, self.experts, self.router = layers, experts, router
        self.threshold, self.edits, self.pairs, self.seed = threshold, edits, pairs, seed or 0
        self._weights: dict[int, Tensor] = {}  # sample -> (L, E): weight over its tokens
        self._tokens: dict[int, Tensor] = {}  # sample -> (L,): tokens with an expert
        self._mixed: dict[int, Tensor] = {}  # layer -> (T, E) of the batch so far, for the cosines with its neighbors
        self._cosines: list[float] = [0.0] * (layers - 1)
        self._counted: list[int] = [0] * (layers - 1)

    def update(self, layer: int, weights: Tensor, indices: Tensor, sample_ids: Tensor) -> None:
        """One layer's routing of one batch.

        Args:
            layer: in [0, L).
            weights: (T, k) of the chosen experts.
            indices: (T, k) integers; -1 is no expert.
            sample_ids: (T,) integers, the sample of each token. A sample may go on in later batches.

        Raises:
            ValueError: a shape does not fit, a layer or an expert is out of range.
        """
        if not 0 <= layer < self.layers:
            raise ValueError(f"RoutingMetrics: layer must be in [0, {self.layers}), got {layer}")
        if weights.shape != indices.shape or sample_ids.shape != weights.shape[:1]:
            shapes = [tuple(x.shape) for x in (weights, indices, sample_ids)]
            raise ValueError(
                f"RoutingMetrics: weights, indices and sample_ids must be (T, k), (T, k), (T,), got {shapes}"
            )
        weights, indices, samples = (x.detach().cpu() for x in (weights, indices, sample_ids))
        if indices.numel() and not -1 <= indices.min() <= indices.max() < self.experts:
            raise ValueError(f"RoutingMetrics: indices must be in [-1, {self.experts}), got {indices.max().item()}")
        held = indices >= 0
        row = torch.zeros(len(indices), self.experts, dtype=torch.float64)
        row.scatter_add_(1, indices.clamp_min(0).long(), torch.where(held, weights, 0).double())
        ids, which = samples.unique(return_inverse=True)
        sums = torch.zeros(len(ids), self.experts, dtype=torch.float64).index_add_(0, which, row)
        tokens = torch.zeros(len(ids), dtype=torch.float64).index_add_(0, which, held.any(1).double())
        for i, sample in enumerate(ids.tolist()):
            at = self._weights.setdefault(sample, torch.zeros(self.layers, self.experts, dtype=torch.float64))
            self._tokens.setdefault(sample, torch.zeros(self.layers, dtype=torch.float64))[layer] += tokens[i]
            at[layer] += sums[i]
        if self.router is not None:
            self._add_cosines(layer, row, self.router[layer])

    def _add_cosines(self, layer: int, row: Tensor, router: Tensor) -> None:
        """e_l = sum over k of weight * router row, of each token; its cosine with e of the layer before, which is kept
        until the next one has come."""
        mixed = row @ router.detach().cpu().double()
        before = self._mixed.pop(layer - 1, None)
        if before is not None and before.shape == mixed.shape:
            both = row.any(1) & before.any(1)
            self._cosines[layer - 1] += torch.cosine_similarity(before, mixed)[both].sum().item()
            self._counted[layer - 1] += int(both.sum())
        self._mixed[layer] = mixed

    def results(self) -> RoutingReport:
        """Of all batches so far."""
        pathways = {sample: self._pathway(sample) for sample in sorted(self._weights)}
        means = [c / n for c, n in zip(self._cosines, self._counted, strict=True) if n]
        cosine = sum(means) / len(means) if means else torch.nan
        consistency = 1 - cosine / (max(means) + 1e-8) if means else torch.nan
        return RoutingReport(pathways, self._distance(list(pathways.values())), consistency, cosine)

    def _pathway(self, sample: int) -> tuple[tuple[int, ...], ...]:
        means = self._weights[sample] / self._tokens[sample].clamp_min(1).unsqueeze(1)
        weight, order = means.sort(dim=1, descending=True, stable=True)
        before = (weight.cumsum(1) - weight) / weight.sum(1, keepdim=True).clamp_min(1e-300)
        kept = (before <= self.threshold) & (weight > 0)
        return tuple(tuple(o[k].tolist()) for o, k in zip(order, kept, strict=True))

    def _distance(self, pathways: list) -> float:
        total = len(pathways) * (len(pathways) - 1) // 2
        if total == 0:
            return 0.0
        if self.pairs is None or total <= self.pairs:
            compared, chosen = total, combinations(range(len(pathways)), 2)
        else:
            compared, chosen = self.pairs, map(pair, Random(self.seed).sample(range(total), self.pairs))
        return sum(edit_distance(self._written(pathways[a]), self._written(pathways[b])) for a, b in chosen) / compared

    def _written(self, pathway: tuple[tuple[int, ...], ...]) -> Sequence:
        if self.edits == "character":
            return "-".join(",".join(map(str, layer)) for layer in pathway)
        return [(i, e) for i, layer in enumerate(pathway) for e in layer]


def pair(number: int) -> tuple[int, int]:
    """The pair i < j that has this number when all pairs are counted: (0, 1), (0, 2), (1, 2), (0, 3), ..."""
    j = (1 + isqrt(8 * number + 1)) // 2
    return number - j * (j - 1) // 2, j


def edit_distance(a: Sequence, b: Sequence) -> int:
    """Levenshtein: the fewest insertions, deletions and substitutions that make `b` of `a`."""
    former = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        row = [i]
        for j, y in enumerate(b, 1):
            row.append(min(former[j] + 1, row[-1] + 1, former[j - 1] + (x != y)))
        former = row
    return former[-1]
