"""Losses over pairs of sequences, one preferred to the other, from their log-probs or scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

PREFERENCE_KINDS = {"dpo": 0.1, "bradley_terry": 1.0}  # each kind's default beta


def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor | None = None,
    ref_rejected: Tensor | None = None,
    *,
    kind: str = "dpo",
    beta: float | None = None,
    margin: float | Tensor = 0.0,
    label_smoothing: float = 0.0,
    weights: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss over pairs of a preferred and a rejected sequence, and its metrics.

    With h = beta ((chosen - ref_chosen) - (rejected - ref_rejected)) - margin and e = label_smoothing:
    `mean of -(1 - e) log sigmoid(h) - e log sigmoid(-h)`.

    `dpo` (arXiv 2305.18290; e > 0 is its cDPO) takes log-probs of sequences from `sequence_logprob`, those of the
    reference too; without them it is reference-free. `bradley_terry` takes scores of a reward model. Three more are
    this loss on other pairs:
    step-level DPO (iTool, arXiv 2501.09766; RL on incorrect data, arXiv 2406.14532): two continuations of one prefix,
    which `after_shared_prefix` takes out of the masks.
    Anchored pairs (temporal self-rewarding, arXiv 2508.06026): rejected by the first model of a series of them, chosen
    by this one or the next.
    Degree-aware DPO (self-supervised preference optimisation, arXiv 2409.17791): `+ gamma * degree_loss(...)`.
    (Pairs, and what is added to DPO, as their papers' abstracts or third parties tell; not checked against code.)

    Args:
        chosen, rejected: (B,) float32 or float64, with gradient.
        ref_chosen, ref_rejected: (B,), both or neither, `dpo` only.
        kind: `dpo` or `bradley_terry`.
        beta: above 0; None takes .1 for `dpo` and 1 for `bradley_terry`.
        margin: a number or (B,): how far apart a pair should be.
        label_smoothing: share of the pairs taken to be the wrong way round, in [0, .5).
        weights: (B,), of the pairs.
        normalizer: divides the sum over pairs; None: B.

    Returns:
        `(loss, metrics)`: a scalar, and means over the pairs without gradient: `accuracy` (chosen above rejected),
        `margin` (of h), `chosen_reward` and `rejected_reward` (beta times the log-ratio, or the score).

    Raises:
        ValueError: an unknown kind, a shape, dtype or value that does not fit, one reference without the other.
    """
    if kind not in PREFERENCE_KINDS:
        raise ValueError(f"preference_loss: kind must be one of {tuple(PREFERENCE_KINDS)}, got {kind!r}")
    if (ref_chosen is None) != (ref_rejected is None):
        raise ValueError("preference_loss: ref_chosen and ref_rejected go together, got only one of them")
    if ref_chosen is not None and kind == "bradley_terry":
        raise ValueError("preference_loss: bradley_terry compares scores and takes no reference")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"preference_loss: label_smoothing must be in [0, .5), got {label_smoothing}")
    pairs = {"chosen": chosen, "rejected": rejected, "ref_chosen": ref_chosen, "ref_rejected": ref_rejected}
    for name, value in (pairs | {"weights": weights}).items():
        if value is not None and (value.dim() != 1 or value.shape != chosen.shape):
            raise ValueError(
                f"preference_loss: {name} must have chosen's shape (B,), got {tuple(value.shape)} "
                f"beside {tuple(chosen.shape)}"
            )
        if value is not None and value.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"preference_loss: {name} must be float32 or float64, got {value.dtype}")
    beta = PREFERENCE_KINDS[kind] if beta is None else beta
    if not beta > 0:
        raise ValueError(f"preference_loss: beta must be above 0, got {beta}")
    if isinstance(margin, Tensor) and margin.numel() != 1 and margin.shape != chosen.shape:
        raise ValueError(
            f"preference_loss: margin must be a number or have chosen's shape {tuple(chosen.shape)}, "
            f"got {tuple(margin.shape)}"
        )
    if normalizer is not None and (normalizer.numel() != 1 if isinstance(normalizer, Tensor) else not normalizer > 0):
        raise ValueError(f"preference_loss: normalizer must be one number above 0, got {normalizer}")
    won, lost = chosen, rejected
    if ref_chosen is not None:
        won, lost = won - ref_chosen.detach(), lost - ref_rejected.detach()
    h = beta * (won - lost) - margin
    loss = -(1 - label_smoothing) * functional.logsigmoid(h)
    if label_smoothing:
        loss = loss - label_smoothing * functional.logsigmoid(-h)
    if weights is not None:
        loss = loss * weights.detach().to(loss.dtype)
    loss = loss.sum() / (max(len(h), 1) if normalizer is None else normalizer)
    with torch.no_grad():
        each = {"accuracy": (won > lost).to(h.dtype), "margin": h, "chosen_reward": beta * won}
        metrics = {name: value.mean() for name, value in (each | {"rejected_reward": beta * lost}).items()}
    return loss, metrics


def degree_loss(
    chosen_logits: Tensor, rejected_logits: Tensor, chosen_degree: Tensor, rejected_degree: Tensor
) -> Tensor:
    """Cross-entropy of the chosen side's degree head plus that of the rejected side's, means over the pairs.

    A response with j of N parts of its keywords removed has degree j; a head on the model's state tells j. Its weight
    beside DPO is not published in code.

    Args:
        chosen_logits, rejected_logits: (B, N).
        chosen_degree, rejected_degree: (B,) int64 in [0, N).
    """
    return functional.cross_entropy(chosen_logits, chosen_degree) + functional.cross_entropy(
        rejected_logits, rejected_degree
    )
