"""Objectives composed from the operators: weighted likelihoods, preferences, the z-loss.

They take what `token_logprob` gives, (B, T) log-probs of tokens, and are a few torch operations over B * T numbers:
what is costly lies before them. float32 or float64 throughout, since 16-bit log-probs round small differences away.
What stands under a mask, NaN included, changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

Normalizer = str | float | Tensor | tuple[str, float | Tensor]
NORMALIZERS = ("token", "sequence", "constant")


def sequence_logprob(logp: Tensor, mask: Tensor, *, average: bool = False) -> Tensor:
    """Log-prob of each sequence, (B,): the sum of its masked-in tokens' log-probs, or their mean (0 if it has none).

    Args:
        logp: (B, T) float32 or float64.
        mask: (B, T) bool (or any number, not 0 meaning true): the tokens that count.
        average: divide by the number of tokens.
    """
    mask = _checked("sequence_logprob", logp=logp, mask=mask)
    total = logp.masked_fill(~mask, 0.0).sum(-1)
    return total / mask.sum(-1).clamp_min(1) if average else total


def weighted_nll(
    logp: Tensor, mask: Tensor, *, weights: Tensor | None = None, normalizer: Normalizer = "token"
) -> Tensor:
    """Weighted negative log-likelihood, `-sum of weights * logp over the mask / normalizer`.

    Without weights, plain supervised fine-tuning. RISE (arXiv 2407.18219; not checked against the authors' code) has
    the weights `torch.exp(rewards / tau)`. STeP leaves wrong steps out of the mask; they stay in the context of what
    follows.

    Args:
        logp: (B, T) float32 or float64; the only argument that gets a gradient.
        mask: (B, T) bool (or any number, not 0 meaning true): the tokens that count.
        weights: (B,), one a sequence, or (B, T).
        normalizer: what the sum is divided by, as in `policy_loss`. `"token"`: the number of tokens in the mask.
            `"sequence"`: the mean over non-empty sequences of their token means. `"constant"`: B * T. A number or
            one-element tensor: divides the sum over tokens (of `normalizer=len(logp)`: the mean over sequences of
            their sums); a pair `(name, number)` gives the divisor of the named form. With an explicit divisor the
            losses of micro-batches add up to the big batch's. Weights do not enter the divisor.

    Returns:
        A scalar; 0 where the mask holds nothing.

    Raises:
        ValueError: an unknown name, a shape or dtype that does not fit.
    """
    mask = _checked("weighted_nll", logp=logp, mask=mask)
    values = -logp.masked_fill(~mask, 0.0)
    if weights is not None:
        if weights.shape not in (logp.shape[:1], logp.shape):
            raise ValueError(
                f"weighted_nll: weights must have shape {tuple(logp.shape[:1])} or {tuple(logp.shape)}, "
                f"got {tuple(weights.shape)}"
            )
        weights = weights.detach().to(logp.dtype)
        weights = weights.unsqueeze(-1) if weights.dim() == 1 else weights
        values = values * weights.expand_as(logp).masked_fill(~mask, 0.0)
    return _normalized("weighted_nll", values, mask, normalizer)


def coverage_weights(sequence_logp: Tensor, n: int) -> Tensor:
    """`n p (1-p)^(n-1) / (1 - (1-p)^n)` of p = exp(sequence_logp): what the gradient of pass@n is beside that of log p.

    d log(1 - (1-p)^n) = weight * d log p. Near 1 for n p << 1, it falls to 0 as p nears 1: a model sure of an answer
    gains nothing for n samples by being surer. n = 1 gives 1.

    Args:
        sequence_logp: any shape, float32 or float64, at most 0.
        n: samples of which one must be right, at least 1.

    Returns:
        Weights of the same shape and dtype, without gradient.

    Source: Direct Coverage Optimization, arXiv 2502.07154. It switches to a series below n p = .1, good to 1e-4 at the
    switch; with expm1 and log1p in float64 the quotient itself is good to rounding everywhere.
    """
    if n < 1:
        raise ValueError(f"coverage_weights: n must be at least 1, got {n}")
    if n == 1:
        return torch.ones_like(sequence_logp, requires_grad=False)
    log_p = sequence_logp.detach().double().clamp(-700.0, 0.0)  # below, the weight is 1 and p no double
    p = log_p.exp()
    log_rest = torch.where(log_p > -0.6931, (-torch.expm1(log_p)).log(), torch.log1p(-p))  # log(1-p)
    weights = n * p * ((n - 1) * log_rest).exp() / -torch.expm1(n * log_rest)
    return weights.to(sequence_logp.dtype)


def coverage_loss(logp: Tensor, mask: Tensor, *, n: int, normalizer: float | Tensor | None = None) -> Tensor:
    """Direct Coverage Optimization: `-mean over sequences of coverage_weights(l, n) * l`, l their log-probs.

    Its gradient is that of `-log(1 - (1-p)^n)`, the log-likelihood of one success in n samples. n = 1 is the mean over
    sequences of their negative log-likelihood.

    Args:
        logp, mask: (B, T), as in `weighted_nll`.
        n: samples at test time.
        normalizer: divides the sum over sequences; None: the number of sequences with a token in the mask.

    Source: arXiv 2502.07154 and its authors' code.
    """
    mask = _checked("coverage_loss", logp=logp, mask=mask)
    weights = coverage_weights(sequence_logprob(logp, mask), n)
    divisor = mask.any(-1).sum().clamp_min(1) if normalizer is None else normalizer
    return weighted_nll(logp, mask, weights=weights, normalizer=divisor)


def z_loss(lse: Tensor, mask: Tensor, *, coef: float = 1e-4, normalizer: Normalizer = "token") -> Tensor:
    """`coef * mean over the mask of lse^2`, which keeps the logits' normaliser log Z near 0.

    Args:
        lse: (B, T) float32 or float64, log-sum-exp of each token's logits; gets a gradient, 2 coef lse / tokens.
        mask, normalizer: as in `weighted_nll`.

    Source: PaLM, arXiv 2204.02311, section 5 (coef 1e-4).
    """
    mask = _checked("z_loss", lse=lse, mask=mask)
    return coef * _normalized("z_loss", lse.masked_fill(~mask, 0.0).square(), mask, normalizer)


# ---- preferences ----------------------------------------------------------------------------------------------------

PREFERENCE_KINDS = {"dpo": 0.1, "bradley_terry": 1.0}  # kind: its default beta


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
        beta: None takes .1 for `dpo` and 1 for `bradley_terry`.
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
        if value is not None:
            _checked("preference_loss", **{name: value})
    beta = PREFERENCE_KINDS[kind] if beta is None else beta
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


def after_shared_prefix(
    chosen_ids: Tensor, rejected_ids: Tensor, chosen_mask: Tensor, rejected_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The two masks without the prefix that the sequences of a pair share, for step-level preferences.

    Ids and masks are (B, T), with a T of their own on each side; both sides must begin at column 0 with the same
    context (right padding). The log-probs of a shared prefix cancel in DPO; without them nothing is left to rounding,
    and a mean over tokens is one over the step.
    """
    width = min(chosen_ids.shape[1], rejected_ids.shape[1])
    shared = (chosen_ids[:, :width] == rejected_ids[:, :width]).long().cumprod(-1).sum(-1, keepdim=True)

    def rest(mask):
        return (mask != 0) & (torch.arange(mask.shape[1], device=mask.device) >= shared)

    return rest(chosen_mask), rest(rejected_mask)


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


# ---- what they share ------------------------------------------------------------------------------------------------


def _checked(function: str, mask: Tensor | None = None, **values: Tensor) -> Tensor:
    """The mask as bool. `values`: one tensor of float32 or float64, of the mask's shape."""
    ((name, value),) = values.items()
    if value.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{function}: {name} must be float32 or float64, got {value.dtype}")
    if mask is None:
        return value
    if value.dim() != 2 or mask.shape != value.shape:
        raise ValueError(
            f"{function}: {name} and mask must have one shape (B, T), got {tuple(value.shape)} and {tuple(mask.shape)}"
        )
    return mask if mask.dtype == torch.bool else mask != 0


def _normalized(function: str, values: Tensor, mask: Tensor, normalizer: Normalizer) -> Tensor:
    """Sum of values (0 outside the mask) over its normaliser."""
    name, divisor = normalizer if isinstance(normalizer, tuple) else (normalizer, None)
    if not isinstance(name, str):
        name, divisor = "token", name
    if name not in NORMALIZERS:
        raise ValueError(f"{function}: normalizer must be one of {NORMALIZERS}, a number or a pair, got {name!r}")
    if divisor is not None and not isinstance(divisor, Tensor) and not divisor > 0:
        raise ValueError(f"{function}: normalizer must be above 0, got {divisor}")
    counts = mask.sum(-1)
    if divisor is None:
        divisor = {"token": counts.sum(), "sequence": (counts > 0).sum(), "constant": mask.numel()}[name]
        divisor = divisor.clamp_min(1) if isinstance(divisor, Tensor) else max(divisor, 1)
    rows = values.sum(-1)
    return (rows / counts.clamp_min(1) if name == "sequence" else rows).sum() / divisor
