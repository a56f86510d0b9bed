"""Emulated fine-tuning: a large model with what fine-tuning did to small ones."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from warpup._arguments import explained


@explained
def emulated_logprob(
    large: Tensor,
    small: Tensor,
    tuned: Sequence[Tensor],
    *,
    weights: Sequence[float] | None = None,
    strength: float = 1.0,
    top_p: float = 1.0,
) -> Tensor:
    """log p = log p_large + strength * sum_i w_i (log p_tuned_i - log p_small) - log Z: a decoding step of a large
    model as if it had been fine-tuned as the small ones were.

    Args:
        large: (..., V) logits of the large base model, any floating dtype.
        small: (..., V) of the small base model, with the same vocabulary (slice padding off).
        tuned: of each trait the small model fine-tuned for it, (..., V).
        weights: of the traits, at least 0, which add up to 1; None: all alike.
        strength: of the whole difference; 1 in the paper, above it more of it.
        top_p: tokens outside of the large model's likeliest ones that together have this much of its probability are
            ruled out (-inf): there the small models' difference is noise. 1: none are.

    Returns:
        (..., V) float32 (float64 for float64) log-probs; -inf where the large model or a trait's rules a token out
        (-inf), whatever the others make of it.

    Raises:
        ValueError: shapes that differ, no trait, weights or a top_p that cannot be.

    `sample_step(tuned=..., base=...)` is the same for one trait in one pass, with the draw. It does several too, given
    the mean of their logits by the weights. Source: "An Emulator for Fine-Tuning Large Language Models using Small
    Language Models" (arXiv 2310.12962).
    """
    traits = list(tuned)
    shares = [1 / max(len(traits), 1)] * len(traits) if weights is None else [float(w) for w in weights]
    if not traits or len(shares) != len(traits) or min(shares) < 0 or not abs(sum(shares) - 1) <= 1e-6:
        raise ValueError(
            f"emulated_logprob: expected at least one tuned model and a weight of at least 0 for each, 1 in all, got "
            f"{len(traits)} and {weights}"
        )
    for name, logits in (("small", small), *((f"tuned[{i}]", trait) for i, trait in enumerate(traits))):
        if logits.shape != large.shape:
            raise ValueError(
                f"emulated_logprob: {name} must have large's shape {tuple(large.shape)}, got {tuple(logits.shape)}"
            )
    if not 0 < top_p <= 1:
        raise ValueError(f"emulated_logprob: top_p must be above 0 and at most 1, got {top_p}")
    if not math.isfinite(strength):
        raise ValueError(f"emulated_logprob: strength must be finite, got {strength}")
    dtype = torch.float64 if large.dtype == torch.float64 else torch.float32
    base, before = (torch.log_softmax(logits.to(dtype), -1) for logits in (large, small))
    heard = [(share, trait) for share, trait in zip(shares, traits, strict=True) if share]  # 0 * -inf is not 0
    mixed = sum(share * torch.log_softmax(trait.to(dtype), -1) for share, trait in heard)
    ruled_out = (base == -torch.inf) | (mixed == -torch.inf)
    found = (base + strength * (mixed - before)).masked_fill(ruled_out, -torch.inf)
    if top_p < 1:
        likeliest, order = base.exp().sort(dim=-1, descending=True, stable=True)
        outside = likeliest.cumsum(-1) - likeliest >= top_p  # what stands before it has enough already
        found = found.masked_fill(outside.scatter(-1, order, outside), -torch.inf)
    return torch.log_softmax(found, -1)
