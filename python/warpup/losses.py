"""Losses of classifiers and representations: several tasks at once, detection, contrast, relations, parity.

Losses of language models are in their families: `warpup.logprob.likelihood`, `warpup.policy`, `warpup.divergence`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from warpup._arguments import check_above_0, explained, same_shape
from warpup.logprob.token_logprob import IGNORE_INDEX


@explained
def multitask_loss(
    logits: Mapping[str, Tensor], targets: Mapping[str, Tensor], weights: Mapping[str, float] | None = None
) -> tuple[Tensor, dict[str, Tensor]]:
    """`sum over tasks of weight * cross-entropy`, each a mean over its own targets; a task without any counts 0.

    Satisfaction of a user beside the acts of a dialogue: weights {"satisfaction": 1, "act": gamma} (arXiv 2202.02912).

    Args:
        logits: by task, (..., C) with a C of its own, with gradient.
        targets: by task, (...) int64; -100 is no target.
        weights: by task, 1 where none is given.

    Returns:
        The loss, 0-d, and each task's cross-entropy, without gradient.
    """
    if logits.keys() != targets.keys() or not logits:
        raise ValueError(f"multitask_loss: logits and targets must name the same tasks, got {[*logits]}, {[*targets]}")
    weights = weights or {}
    if unknown := weights.keys() - logits.keys():
        raise ValueError(f"multitask_loss: weights names {sorted(unknown)[0]!r}, which is no task of logits")
    each = {}
    for task, scores in logits.items():
        wanted = targets[task].flatten()
        total = F.cross_entropy(scores.flatten(0, -2), wanted, ignore_index=IGNORE_INDEX, reduction="sum")
        each[task] = total / (wanted != IGNORE_INDEX).sum().clamp_min(1)
    loss = torch.stack([weights.get(task, 1.0) * value for task, value in each.items()]).sum()
    return loss, {task: value.detach() for task, value in each.items()}


@explained
def detection_loss(
    logits: Mapping[str, Tensor], changed: Mapping[str, Tensor], masks: Mapping[str, Tensor] | None = None
) -> Tensor:
    """Sum over detection tasks of the binary cross-entropy that tells changed tokens from original ones; 0-d.

    ELECTRA's discriminator has one task, replaced tokens; MCL (arXiv 2305.03981) adds swapped and inserted ones, each
    with a head of its own, beside the generator's NLL: `nll + lam * detection_loss(...)`. Its further courses train
    again on what the discriminator got wrong, `(logits > 0) != changed`; the weights of both are not verified. The
    soup of models that took different courses is `warpup.continual.average`.

    Args:
        logits: by task, (B, T): above 0 means changed.
        changed: by task, (B, T) bool: the token is not the original one.
        masks: by task, (B, T) bool: tokens that count; None: all.
    """
    if logits.keys() != changed.keys() or (masks is not None and masks.keys() != logits.keys()) or not logits:
        raise ValueError(f"detection_loss: logits, changed and masks must name the same tasks, got {[*logits]}")
    total = []
    for task, scores in logits.items():
        mask = torch.ones_like(scores, dtype=torch.bool) if masks is None else masks[task]
        given = {f"logits[{task!r}]": scores, f"changed[{task!r}]": changed[task], f"masks[{task!r}]": mask}
        same_shape("detection_loss", **given)
        each = F.binary_cross_entropy_with_logits(scores, changed[task].to(scores.dtype), reduction="none")
        total.append(each.where(mask, 0.0).sum() / mask.sum().clamp_min(1))
    return torch.stack(total).sum()


@explained
def supcon_loss(features: Tensor, labels: Tensor, temperature: float = 0.1) -> Tensor:
    """Supervised contrastive loss: mean over i of `-mean over p of log(exp(z_i z_p / t) / sum_a exp(z_i z_a / t))`.

    z are the features at length 1; p are the others of i's label, a all others. An i without a p is left out of the
    mean; 0 where that is every one. With labels that number the examples, and several views of each, it is SimCLR's.

    HPCR (arXiv 2309.15038) contrasts features z and the proxies w of their labels together,
    `supcon_loss(cat([z, w[y]]), cat([y, y]), .09)`, times `hpcr_scale(step)`.

    Args:
        features: (N, D), with gradient.
        labels: (N,) int64.
        temperature: above 0.

    Source: arXiv 2004.11362, equation 2.
    """
    if features.dim() != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"supcon_loss: features and labels must be (N, D) and (N,), got {tuple(features.shape)}, "
            f"{tuple(labels.shape)}"
        )
    check_above_0("supcon_loss", temperature=temperature)
    z = F.normalize(features, dim=-1)
    itself = torch.eye(len(z), dtype=torch.bool, device=z.device)
    logp = (z @ z.T / temperature).masked_fill(itself, -torch.inf).log_softmax(-1)
    positive = (labels[:, None] == labels) & ~itself
    each = -logp.masked_fill(~positive, 0.0).sum(-1) / positive.sum(-1).clamp_min(1)
    return each.sum() / positive.any(-1).sum().clamp_min(1)


@explained
def proxy_loss(features: Tensor, proxies: Tensor, labels: Tensor, temperature: float = 0.09) -> Tensor:
    """Proxy-based contrastive replay: mean of `-log(exp(z w_y / t) / sum over j of the batch of exp(z w_(y_j) / t))`.

    z and the proxies w, one a class, are taken at length 1. The sum runs over the examples of the batch, from the
    stream and from memory, so a class counts as often as it is there, and one that is not there does not.

    Args:
        features: (B, D), with gradient.
        proxies: (C, D), with gradient, such as the rows of the last layer.
        labels: (B,) int64 in [0, C).
        temperature: above 0.

    Source: PCR (arXiv 2304.04408), and HPCR (2309.15038) on it.
    """
    check_above_0("proxy_loss", temperature=temperature)
    if features.shape[1:] != proxies.shape[1:] or labels.shape != features.shape[:1]:
        raise ValueError(
            "proxy_loss: features, proxies and labels must be (B, D), (C, D) and (B,), got "
            f"{tuple(features.shape)}, {tuple(proxies.shape)}, {tuple(labels.shape)}"
        )
    z, w = F.normalize(features, dim=-1), F.normalize(proxies, dim=-1)
    scores = z @ w[labels].T / temperature  # (B, B): column j is the proxy of example j's label
    return (scores.logsumexp(-1) - scores.diagonal()).mean()


def hpcr_scale(step: int, low: float = 0.5625, high: float = 1.8, period: int = 500) -> float:
    """What HPCR (arXiv 2309.15038) multiplies its contrastive loss by at each step: from low to high and back, as a
    cosine of the period."""
    check_above_0("hpcr_scale", period=period)
    return low + (high - low) * 0.5 * (1 - math.cos(2 * math.pi * step / period))


@explained
def relation_loss(features: Tensor, before: Tensor, temperature: float = 0.09) -> Tensor:
    """Cross-entropy of how examples relate to each other, from how they did before: mean over i of `-sum over j != i of
    p_ij log q_ij`, p and q the softmax over j of `z_i z_j / t` of the stored and the new features at length 1.

    HPCR (arXiv 2309.15038) adds .5 times this, and .1 or .01 times the squared error of the stored logits (of the
    classes seen by then), for replayed examples.

    Args:
        features: (N, D), with gradient.
        before: (N, D), stored with the examples; a constant.
        temperature: above 0.
    """
    same_shape("relation_loss", features=features, before=before)
    check_above_0("relation_loss", temperature=temperature)
    itself = torch.eye(len(features), dtype=torch.bool, device=features.device)
    logp = []
    for z in (features, before.detach()):
        z = F.normalize(z, dim=-1)
        logp.append((z @ z.T / temperature).masked_fill(itself, -torch.inf).log_softmax(-1).masked_fill(itself, 0.0))
    return -(logp[1].exp().masked_fill(itself, 0.0) * logp[0]).sum(-1).mean()


@explained
def parity_loss(predictions: Tensor, groups: Tensor) -> Tensor:
    """Distance from demographic parity: `sum over groups a of (E[prediction | a] - E[prediction])^2`; 0-d.

    Args:
        predictions: (N,), such as probabilities, with gradient.
        groups: (N,) integers, the sensitive attribute; groups that are not there count nothing.

    Source: FairBiNN (arXiv 2410.16432); how it is trained with: `warpup.optim.block_gradients_`.
    """
    if predictions.dim() != 1 or predictions.shape != groups.shape or not len(groups):
        raise ValueError(
            f"parity_loss: predictions and groups must be (N,), of one example at least, got "
            f"{tuple(predictions.shape)}, {tuple(groups.shape)}"
        )
    means = torch.stack([predictions[groups == a].mean() for a in groups.unique()])
    return (means - predictions.mean()).square().sum()
