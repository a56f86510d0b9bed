"""Clusters whose number is found, as categories of a sampler."""

from typing import Any

import numpy as np


def dp_means(x: Any, limit: float, *, rounds: int = 100) -> list[int]:
    """The cluster of each point by DP-means: k-means that opens a new cluster at a point whose squared distance from
    all means is above `limit`, until nothing changes, for at most `rounds` passes.

    x: (n, d) finite; limit: above 0. Clusters are numbered from 0 in the order of their first points; points are taken
    in their order, on which the result depends. Raises ValueError otherwise.

    Source: "Revisiting k-means: New Algorithms via Bayesian Nonparametrics" (arXiv 1111.0352).
    """
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not len(x) or not np.isfinite(x).all() or not limit > 0:
        raise ValueError(f"x, limit: expected finite points (n, d) and a limit above 0, got {x.shape} and {limit!r}")
    means, labels = x[:1].copy(), np.zeros(len(x), int)
    for _ in range(rounds):
        before = labels.copy()
        for i, point in enumerate(x):
            distances = ((means - point) ** 2).sum(1)
            labels[i] = distances.argmin()
            if distances[labels[i]] > limit:
                means, labels[i] = np.vstack([means, point]), len(means)
        used, labels = np.unique(labels, return_inverse=True)
        means = np.stack([x[labels == k].mean(0) for k in range(len(used))])
        if (labels == before).all():
            break
    rank: dict[int, int] = {}
    return [rank.setdefault(int(label), len(rank)) for label in labels]
