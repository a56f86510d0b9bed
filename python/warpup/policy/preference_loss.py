"""Losses over pairs of sequences, one preferred to the other, from their log-probs or scores."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, relu

from warpup._arguments import explained
from warpup._numbers import DIVISORS

TAU = 0.05  # of discopop: how fast it goes from the logistic to the exponential loss


@dataclass(frozen=True)
class PreferenceKind:
    """A published loss. formula(c, r, beta, margin, e): (B,), of the log-ratios c and r of the chosen and the rejected
    sequence, or of their log-probs where there is no reference.

    reference: "needed", "none", or "optional". average: takes mean log-probs of a sequence's tokens, not sums.
    margin, smoothing: whether it has such an option.
    """

    formula: Callable[..., Tensor]
    beta: float
    reference: str = "optional"
    average: bool = False
    margin: bool = False
    smoothing: bool = False
    label_smoothing: float = 0.0  # the default


def _logistic(c: Tensor, r: Tensor, beta: float, margin, e: float) -> Tensor:
    h = beta * (c - r) - margin
    loss = -(1 - e) * logsigmoid(h)
    return loss - e * logsigmoid(-h) if e else loss


def _robust(c: Tensor, r: Tensor, beta: float, margin, e: float) -> Tensor:
    h = beta * (c - r)
    return (-(1 - e) * logsigmoid(h) + e * logsigmoid(-h)) / (1 - 2 * e)


def _exo(c: Tensor, r: Tensor, beta: float, margin, e: float) -> Tensor:
    h = beta * (c - r)
    return h.sigmoid() * (logsigmoid(h) - math.log1p(-e)) + (-h).sigmoid() * (logsigmoid(-h) - math.log(e))


def _nca(c: Tensor, r: Tensor, beta: float, margin, e: float) -> Tensor:
    return -logsigmoid(beta * c) - 0.5 * logsigmoid(-beta * c) - 0.5 * logsigmoid(-beta * r)


def _discopop(c: Tensor, r: Tensor, beta: float, margin, e: float) -> Tensor:
    h = beta * (c - r)
    mix = (h / TAU).sigmoid()
    return -logsigmoid(h) * (1 - mix) + (-h).exp() * mix


def _odds(c: Tensor, r: Tensor, beta: float, margin, e: float) -> Tensor:
    def log_odds(mean_logp: Tensor) -> Tensor:  # log(p / (1 - p)), p the geometric mean of the tokens' probabilities
        return mean_logp - torch.log(-torch.expm1(mean_logp))

    return -beta * logsigmoid(log_odds(c) - log_odds(r))


PREFERENCE_KINDS = {
    "dpo": PreferenceKind(_logistic, 0.1, margin=True, smoothing=True),  # arXiv 2305.18290; e > 0: its cDPO
    "bradley_terry": PreferenceKind(_logistic, 1.0, "none", margin=True, smoothing=True),  # scores of a reward model
    "robust": PreferenceKind(_robust, 0.1, smoothing=True),  # arXiv 2403.00409
    "hinge": PreferenceKind(lambda c, r, beta, margin, e: relu(1 - beta * (c - r)), 0.1),  # SLiC, arXiv 2305.10425
    "ipo": PreferenceKind(  # arXiv 2310.12036, with means over tokens, as its authors and TRL
        lambda c, r, beta, margin, e: (c - r - 1 / (2 * beta)) ** 2, 0.1, average=True
    ),
    "exo": PreferenceKind(_exo, 0.1, smoothing=True, label_smoothing=1e-3),  # arXiv 2402.00856, equation 16
    "nca": PreferenceKind(_nca, 0.1, "needed"),  # arXiv 2402.05369
    "bco": PreferenceKind(  # arXiv 2404.04656; margin: the mean of all rewards, which its authors track
        lambda c, r, beta, margin, e: -logsigmoid(beta * c - margin) - logsigmoid(margin - beta * r),
        0.1, "needed", margin=True,
    ),
    "sppo": PreferenceKind(  # arXiv 2405.00675, the hard form
        lambda c, r, beta, margin, e: (c - 0.5 / beta) ** 2 + (r + 0.5 / beta) ** 2, 0.1, "needed"
    ),
    "apo_zero": PreferenceKind(  # arXiv 2408.06266, equation 7: chosen better than what the model says
        lambda c, r, beta, margin, e: (-beta * c).sigmoid() + (beta * r).sigmoid(), 0.1, "needed"
    ),
    "apo_down": PreferenceKind(  # equation 8: chosen worse than what the model says
        lambda c, r, beta, margin, e: (beta * c).sigmoid() + (-beta * (c - r)).sigmoid(), 0.1, "needed"
    ),
    "discopop": PreferenceKind(_discopop, 0.1),  # arXiv 2406.08414
    "simpo": PreferenceKind(_logistic, 2.0, "none", average=True, margin=True, smoothing=True),  # arXiv 2405.14734
    "cpo": PreferenceKind(_logistic, 0.1, "none", smoothing=True),  # arXiv 2401.08417: beside the NLL of the chosen
    "orpo": PreferenceKind(_odds, 0.1, "none", average=True),  # arXiv 2403.07691: beside the NLL of the chosen
}  # fmt: skip


@explained
def preference_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor | None = None,
    ref_rejected: Tensor | None = None,
    *,
    kind: str = "dpo",
    beta: float | None = None,
    margin: float | Tensor = 0.0,
    label_smoothing: float | None = None,
    weights: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss over pairs of a preferred and a rejected sequence, and its metrics.

    With c = chosen - ref_chosen, r = rejected - ref_rejected (without a reference the log-probs themselves), h = beta
    (c - r) - margin, e = label_smoothing and s the logistic function, a pair's loss is

    | kind | loss | log-probs |
    |---|---|---|
    | `dpo`, `bradley_terry` | -(1 - e) log s(h) - e log s(-h) | sums, or scores of a reward model |
    | `simpo` | the same, without reference | means |
    | `cpo` | the same, without reference; beside the NLL of the chosen | sums |
    | `robust` | (-(1 - e) log s(h) + e log s(-h)) / (1 - 2 e) | sums |
    | `hinge` | max(0, 1 - h) | sums |
    | `ipo` | (c - r - 1 / (2 beta))^2 | means |
    | `exo` | KL of (s(h), s(-h)) from (1 - e, e) | sums |
    | `nca` | -log s(beta c) - log s(-beta c) / 2 - log s(-beta r) / 2 | sums |
    | `bco` | -log s(beta c - margin) - log s(margin - beta r) | sums |
    | `sppo` | (c - 1 / (2 beta))^2 + (r + 1 / (2 beta))^2 | sums |
    | `apo_zero` | s(-beta c) + s(beta r) | sums |
    | `apo_down` | s(beta c) + s(-beta (c - r)) | sums |
    | `discopop` | -log s(h) (1 - m) + exp(-h) m, m = s(h / .05) | sums |
    | `orpo` | -beta log s(log odds of c - log odds of r); beside the NLL of the chosen | means |

    Log-probs are those of `sequence_logprob`, with `average=True` for means; sources stand in PREFERENCE_KINDS.
    On other pairs `dpo` is
    step-level DPO (iTool, arXiv 2501.09766; RL on incorrect data, arXiv 2406.14532): two continuations of one prefix,
    which `after_shared_prefix` takes out of the masks.
    Anchored pairs (temporal self-rewarding, arXiv 2508.06026): rejected by the first model of a series of them, chosen
    by this one or the next.
    Degree-aware DPO (self-supervised preference optimisation, arXiv 2409.17791): `+ gamma * degree_loss(...)`.
    (Pairs, and what is added to DPO, as their papers' abstracts or third parties tell; not checked against code.)

    Args:
        chosen, rejected: (B,) float32 or float64, with gradient.
        ref_chosen, ref_rejected: (B,), both or neither; needed by `nca`, `bco`, `sppo` and both `apo`, refused by
            `bradley_terry`, `simpo`, `cpo` and `orpo`.
        kind: one of the above.
        beta: above 0; None takes 1 for `bradley_terry`, 2 for `simpo`, .1 for the others.
        margin: a number or (B,): how far apart a pair should be (`dpo`, `bradley_terry`, `simpo`), or where `bco`
            draws the line.
        label_smoothing: share of the pairs taken to be the wrong way round, in [0, .5), for `dpo`, `bradley_terry`,
            `simpo`, `cpo`, `robust` and, above 0, `exo`. None takes .001 for `exo`, else 0.
        weights: (B,), of the pairs.
        normalizer: divides the sum over pairs; None: B.

    Returns:
        `(loss, metrics)`: a scalar, and means over the pairs without gradient: `accuracy` (chosen above rejected),
        `margin` (of h), `chosen_reward` and `rejected_reward` (beta times the log-ratio, or the score).

    Raises:
        ValueError: an unknown kind, a shape, dtype or value that does not fit, one reference without the other, a
            reference or an option that the kind does not have.
    """
    if kind not in PREFERENCE_KINDS:
        raise ValueError(f"preference_loss: kind must be one of {tuple(PREFERENCE_KINDS)}, got {kind!r}")
    published = PREFERENCE_KINDS[kind]
    if (ref_chosen is None) != (ref_rejected is None):
        raise ValueError("preference_loss: ref_chosen and ref_rejected go together, got only one of them")
    if ref_chosen is not None and published.reference == "none":
        raise ValueError(f"preference_loss: kind {kind!r} takes no reference")
    if ref_chosen is None and published.reference == "needed":
        raise ValueError(f"preference_loss: kind {kind!r} needs ref_chosen and ref_rejected")
    if label_smoothing is None:
        label_smoothing = published.label_smoothing
    elif label_smoothing and not published.smoothing:
        raise ValueError(f"preference_loss: kind {kind!r} has no label_smoothing, got {label_smoothing}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"preference_loss: label_smoothing must be in [0, .5), got {label_smoothing}")
    if kind == "exo" and label_smoothing == 0:
        raise ValueError("preference_loss: kind 'exo' needs a label_smoothing above 0")
    pairs = {"chosen": chosen, "rejected": rejected, "ref_chosen": ref_chosen, "ref_rejected": ref_rejected}
    for name, value in (pairs | {"weights": weights}).items():
        if value is not None and (value.dim() != 1 or value.shape != chosen.shape):
            raise ValueError(
                f"preference_loss: {name} must have chosen's shape (B,), got {tuple(value.shape)} "
                f"beside {tuple(chosen.shape)}"
            )
        if value is not None and value.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"preference_loss: {name} must be float32 or float64, got {value.dtype}")
    beta = published.beta if beta is None else beta
    _check_beta("preference_loss", beta)
    if not published.margin and (isinstance(margin, Tensor) or margin != 0):
        raise ValueError(f"preference_loss: kind {kind!r} has no margin, got {margin}")
    if isinstance(margin, Tensor) and margin.numel() != 1 and margin.shape != chosen.shape:
        raise ValueError(
            f"preference_loss: margin must be a number or have chosen's shape {tuple(chosen.shape)}, "
            f"got {tuple(margin.shape)}"
        )
    if normalizer is not None and (normalizer.numel() != 1 if isinstance(normalizer, Tensor) else not normalizer > 0):
        raise ValueError(f"preference_loss: normalizer must be one number above 0, got {normalizer}")
    won, lost = chosen, rejected
    if ref_chosen is not None and ref_rejected is not None:
        won, lost = won - ref_chosen.detach(), lost - ref_rejected.detach()
    loss = published.formula(won, lost, beta, margin, label_smoothing)
    if weights is not None:
        loss = loss * weights.detach().to(loss.dtype)
    loss = loss.sum() / (max(len(won), 1) if normalizer is None else normalizer)
    with torch.no_grad():
        h = beta * (won - lost) - (0.0 if kind == "bco" else margin)
        each = {"accuracy": (won > lost).to(h.dtype), "margin": h, "chosen_reward": beta * won}
        metrics = {name: value.mean() for name, value in (each | {"rejected_reward": beta * lost}).items()}
    return loss, metrics


def _check_beta(op: str, beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"{op}: beta must be above 0, got {beta}")
    if not DIVISORS[0] <= beta <= DIVISORS[1]:
        raise ValueError(f"{op}: beta must be in [{DIVISORS[0]:.3g}, {DIVISORS[1]:.3g}], got {beta}")


@explained
def kto_loss(
    logp: Tensor,
    ref_logp: Tensor,
    desirable: Tensor,
    *,
    kl: float | Tensor = 0.0,
    beta: float = 0.1,
    weights: tuple[float, float] = (1.0, 1.0),
    normalizer: float | Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """KTO: sequences that are good or bad by themselves, without pairs. With x = logp - ref_logp,
    `w+ (1 - s(beta (x - kl)))` of a desirable one and `w- (1 - s(beta (kl - x)))` of the others.

    Args:
        logp: (B,) float32 or float64, log-probs of sequences (`sequence_logprob`), with gradient.
        ref_logp: (B,), under the reference.
        desirable: (B,) bool.
        kl: estimate of the policy's KL from the reference, at least 0, a constant: the mean of x over completions put
            to prompts that are not theirs, or 0 (the form without it, TRL's `apo_zero_unpaired`).
        beta: above 0.
        weights: of the desirable and of the undesirable ones.
        normalizer: divides the sum; None: B.

    Returns:
        `(loss, metrics)`: a scalar; without gradient `chosen_reward` and `rejected_reward`, the means of beta x over
        each side (NaN of a side that is empty).

    Raises:
        ValueError: a shape, dtype or value that does not fit.

    Source: KTO (arXiv 2402.01306), equation 8.
    """
    for name, value in (("logp", logp), ("ref_logp", ref_logp), ("desirable", desirable)):
        if value.dim() != 1 or value.shape != logp.shape:
            raise ValueError(f"kto_loss: {name} must have logp's shape (B,), got {tuple(value.shape)}")
        if value.dtype not in ((torch.bool,) if name == "desirable" else (torch.float32, torch.float64)):
            wanted = "bool" if name == "desirable" else "float32 or float64"
            raise ValueError(f"kto_loss: {name} must be {wanted}, got {value.dtype}")
    _check_beta("kto_loss", beta)
    if not isinstance(kl, Tensor) and not kl >= 0:
        raise ValueError(f"kto_loss: kl must be at least 0, got {kl}")
    kl = kl.detach().clamp_min(0) if isinstance(kl, Tensor) else kl
    x = logp - ref_logp.detach()
    sign = torch.where(desirable, 1.0, -1.0).to(x.dtype)
    weight = torch.where(desirable, *(torch.tensor(w, dtype=x.dtype, device=x.device) for w in weights))
    loss = (weight * (-sign * beta * (x - kl)).sigmoid()).sum() / (max(len(x), 1) if normalizer is None else normalizer)
    with torch.no_grad():
        metrics = {"chosen_reward": beta * x[desirable].mean(), "rejected_reward": beta * x[~desirable].mean()}
    return loss, metrics


@explained
def degree_loss(
    chosen_logits: Tensor, rejected_logits: Tensor, chosen_degree: Tensor, rejected_degree: Tensor
) -> Tensor:
    """Cross-entropy of the chosen side's degree head plus that of the rejected side's, means over the pairs.

    A response with j of N parts of its keywords removed has degree j; a head on the model's state tells j. Its weight
    beside DPO is not published in code.

    Args:
        chosen_logits, rejected_logits: (B, N).
        chosen_degree, rejected_degree: (B,) int64 in [0, N).

    Raises:
        ValueError: a shape does not fit.
    """
    for side, logits, degree in (
        ("chosen", chosen_logits, chosen_degree),
        ("rejected", rejected_logits, rejected_degree),
    ):
        if logits.dim() != 2 or degree.shape != logits.shape[:1] or degree.shape != chosen_degree.shape:
            raise ValueError(
                f"degree_loss: {side}_logits must be (B, N) and {side}_degree (B,), of one B on both sides, got "
                f"{tuple(logits.shape)} and {tuple(degree.shape)}"
            )
    return cross_entropy(chosen_logits, chosen_degree) + cross_entropy(rejected_logits, rejected_degree)
