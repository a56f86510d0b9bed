"""Losses that treat log-probs as likelihoods: weighted negative log-likelihood, coverage of pass@n, the z-loss.

They take what `token_logprob` gives, (B, T) log-probs of tokens, and are a few torch operations over B * T numbers; the
costly part is before them. float32 or float64 throughout, since 16-bit log-probs round small differences away.
What stands where a mask is False, NaN included, changes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup._arguments import explained

Normalizer = str | float | Tensor | tuple[str, float | Tensor]
NORMALIZERS = ("token", "sequence", "constant")


@explained
def sequence_logprob(logp: Tensor, mask: Tensor, *, average: bool = False) -> Tensor:
    """Log-prob of each sequence, (B,): the sum of its masked-in tokens' log-probs, or their mean (0 if it has none).

    Args:
        logp: (B, T) float32 or float64.
        mask: (B, T) bool (or any number, not 0 meaning true): the tokens that count.
        average: divide by the number of tokens.
    """
    mask = _mask_of("sequence_logprob", "logp", logp, mask)
    total = logp.masked_fill(~mask, 0.0).sum(-1)
    return total / mask.sum(-1).clamp_min(1) if average else total


@explained
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
            their sums); a pair `(name, number)` gives the denominator of the named form. With an explicit
            denominator the losses of micro-batches add up to the big batch's. Weights do not enter the denominator.

    Returns:
        A scalar; 0 where the mask holds nothing.

    Raises:
        ValueError: an unknown name, a shape or dtype that does not fit.
    """
    mask = _mask_of("weighted_nll", "logp", logp, mask)
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


@explained
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


@explained
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
    mask = _mask_of("coverage_loss", "logp", logp, mask)
    weights = coverage_weights(sequence_logprob(logp, mask), n)
    if normalizer is None:
        normalizer = mask.any(-1).sum().clamp_min(1)
    elif not isinstance(normalizer, int | float | Tensor):
        raise ValueError(f"coverage_loss: normalizer must be a number or None, got {normalizer!r}")
    _check_denominator("coverage_loss", normalizer)
    return weighted_nll(logp, mask, weights=weights, normalizer=normalizer)


@explained
def z_loss(lse: Tensor, mask: Tensor, *, coef: float = 1e-4, normalizer: Normalizer = "token") -> Tensor:
    """`coef * mean over the mask of lse^2`, which keeps log Z, the log of the softmax's denominator, near 0.

    Args:
        lse: (B, T) float32 or float64, log-sum-exp of each token's logits; gets a gradient, 2 coef lse / tokens.
        mask, normalizer: as in `weighted_nll`.

    Source: PaLM, arXiv 2204.02311, section 5 (coef 1e-4).
    """
    mask = _mask_of("z_loss", "lse", lse, mask)
    return coef * _normalized("z_loss", lse.masked_fill(~mask, 0.0).square(), mask, normalizer)


@explained
def after_shared_prefix(
    chosen_ids: Tensor, rejected_ids: Tensor, chosen_mask: Tensor, rejected_mask: Tensor
) -> tuple[Tensor, Tensor]:
    """The two masks without the prefix that the sequences of a pair share, for step-level preferences.

    Ids and masks are (B, T), with a T of their own on each side; both sides must begin at column 0 with the same
    context (right padding). The log-probs of a shared prefix cancel in DPO; without them nothing is left to rounding,
    and a mean over tokens is one over the step.

    Raises:
        ValueError: a mask that has not the shape of its ids, or another number of pairs on the two sides.
    """
    for side, ids, mask in (("chosen", chosen_ids, chosen_mask), ("rejected", rejected_ids, rejected_mask)):
        if ids.dim() != 2 or mask.shape != ids.shape or ids.shape[:1] != chosen_ids.shape[:1]:
            raise ValueError(
                f"after_shared_prefix: {side}_ids and {side}_mask must have one shape (B, T), of one B on both sides, "
                f"got {tuple(ids.shape)} and {tuple(mask.shape)}"
            )
    width = min(chosen_ids.shape[1], rejected_ids.shape[1])
    shared = (chosen_ids[:, :width] == rejected_ids[:, :width]).long().cumprod(-1).sum(-1, keepdim=True)

    def rest(mask):
        return (mask != 0) & (torch.arange(mask.shape[1], device=mask.device) >= shared)

    return rest(chosen_mask), rest(rejected_mask)


# ---- checks and normalization ---------------------------------------------------------------------------------------


def _mask_of(function: str, name: str, values: Tensor, mask: Tensor) -> Tensor:
    """The mask as bool, after a check that it fits the values, which the caller knows as `name`."""
    if values.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"{function}: {name} must be float32 or float64, got {values.dtype}")
    if values.dim() != 2 or mask.shape != values.shape:
        raise ValueError(
            f"{function}: {name} and mask must have one shape (B, T), got {tuple(values.shape)} and {tuple(mask.shape)}"
        )
    return mask if mask.dtype == torch.bool else mask != 0


def _check_denominator(function: str, value: float | Tensor) -> None:
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise ValueError(f"{function}: normalizer must be one number, got a tensor of shape {tuple(value.shape)}")
    elif not value > 0:
        raise ValueError(f"{function}: normalizer must be above 0, got {value}")


def _normalized(function: str, values: Tensor, mask: Tensor, normalizer: Normalizer) -> Tensor:
    """The sum of values, 0 outside the mask, over its denominator."""
    name, denominator = normalizer if isinstance(normalizer, tuple) else (normalizer, None)
    if not isinstance(name, str):
        name, denominator = "token", name
    if name not in NORMALIZERS:
        raise ValueError(f"{function}: normalizer must be one of {NORMALIZERS}, a number or a pair, got {name!r}")
    counts = mask.sum(-1)
    if denominator is not None:
        _check_denominator(function, denominator)
    elif name == "constant":
        denominator = max(mask.numel(), 1)
    else:
        denominator = (counts.sum() if name == "token" else (counts > 0).sum()).clamp_min(1)
    rows = values.sum(-1)
    if name == "sequence":
        rows = rows / counts.clamp_min(1)
    return rows.sum() / denominator
