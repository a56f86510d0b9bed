"""What goes into `policy_loss` as weights or masks, in plain torch and without host synchronisation.

Padded tensors are (B, T); packed ones (N,) with `cu_seqlens` (S + 1,). Whatever their type, all is computed in float32,
or in float64 where an input is: a bfloat16 log-prob is a rounded number, and sums of such must not be rounded again.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from warpup._arguments import explained
from warpup.policy.rows import check_tokens, per_token, row_sums, widened


@explained
@torch.no_grad()
def rollout_weights(
    old_logp: Tensor,
    rollout_logp: Tensor,
    mask: Tensor,
    *,
    level: str = "sequence",
    mode: str = "mask",
    cap: float = 3.0,
    floor: float | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Importance weights exp(old - rollout) for `policy_loss(weights=...)`, where the engine that sampled gives other
    log-probs than the trainer for the same weights.

    Args:
        old_logp, rollout_logp: (B, T) or (N,), of the trainer and of the engine. A token that the engine has no
            log-prob of (NaN) counts as ratio 1, as in TRL 1.16.
        mask: the tokens that count; others get weight 1.
        level: `"sequence"`: one weight, of the product of a sequence's ratios; `"token"`.
        mode: `"mask"`: a weight outside [floor, cap] becomes 0; `"truncate"`: it is held there.
        cap, floor: TRL 1.16's defaults are sequence, mask, cap 3; verl 0.9.1's truncated importance sampling (TIS) is
            token, truncate, cap 2.
        cu_seqlens: (S + 1,), of packed sequences.

    Returns:
        (B,) or (S,), or one a token, float32 (float64 if an input is). No gradient.

    Raises:
        ValueError: an unknown name, `cap` not above 0, `floor` outside [0, cap].
    """
    if level not in ("token", "sequence"):
        raise ValueError(f"rollout_weights: level must be 'token' or 'sequence', got {level!r}")
    if mode not in ("truncate", "mask"):
        raise ValueError(f"rollout_weights: mode must be 'truncate' or 'mask', got {mode!r}")
    if not cap > 0:
        raise ValueError(f"rollout_weights: cap must be above 0, got {cap}")
    if floor is not None and not 0 <= floor <= cap:
        raise ValueError(f"rollout_weights: floor must be in [0, cap], got floor {floor} and cap {cap}")
    check_tokens("rollout_weights", cu_seqlens=cu_seqlens, old_logp=old_logp, rollout_logp=rollout_logp, mask=mask)
    old_logp, rollout_logp = widened(old_logp, rollout_logp)
    difference = (old_logp - rollout_logp).masked_fill(mask == 0, 0.0).nan_to_num(nan=0.0)
    ratio = (row_sums(difference, cu_seqlens) if level == "sequence" else difference).exp()
    if mode == "truncate":
        return ratio.clamp(floor, cap)
    outside = ratio > cap if floor is None else (ratio > cap) | (ratio < floor)
    return ratio.masked_fill(outside, 0.0)


ROLLOUT_MEASURES = ("ratio", "k2", "k3", "binary_kl", "binary_tv")


@explained
@torch.no_grad()
def rollout_mask(
    old_logp: Tensor,
    rollout_logp: Tensor,
    mask: Tensor,
    *,
    cap: float,
    floor: float | None = None,
    measure: str = "binary_kl",
    over: str = "mean",
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Which tokens or sequences to learn from, where the engine that sampled gives other log-probs than the trainer:
    those for which they differ by at most `cap`. A mask alone; a weight beside it is `rollout_weights`.

    With x = old - rollout, p and q the token's probability under engine and trainer, a token's measure is

    | measure | | peers |
    |---|---|---|
    | `ratio` | e^x, kept in [floor, cap]; its geometric mean over a sequence, or its product | IcePop, verl's k1 |
    | `k2`, `k3` | x^2 / 2; e^x - 1 - x | verl 0.9.1's rollout_rs |
    | `binary_kl` | p log(p / q) + (1 - p) log((1 - p) / (1 - q)), p and q in [1e-6, 1 - 1e-6] | OpenRLHF 0.11.2 |
    | `binary_tv` | abs(p - q), the same | OpenRLHF 0.11.2 |

    Args:
        old_logp, rollout_logp: (B, T) or (N,), of the trainer and of the engine. A token that the engine has no
            log-prob of (NaN) counts as one on which they agree.
        mask: the tokens that count.
        cap: the largest measure that is kept. verl's thresholds for k1 are for the inverse of this ratio.
        floor: the smallest `ratio`; None: there is none. The other measures have none.
        measure: see above.
        over: `"token"`: each is judged by itself; `"mean"`, `"sum"`, `"max"`: a sequence as a whole, by that of its
            tokens (`ratio` has no `"max"`).
        cu_seqlens: (S + 1,), of packed sequences.

    Returns:
        Bool, (B,) or (S,), or one a token. What is dropped stays in the denominator, as in these peers, when it goes
        into `policy_loss` as `weights`; multiply it into the mask to have it out of there too.

    Raises:
        ValueError: an unknown name, a bound out of order, a floor or `"max"` that the measure does not have.
    """
    if measure not in ROLLOUT_MEASURES:
        raise ValueError(f"rollout_mask: measure must be one of {ROLLOUT_MEASURES}, got {measure!r}")
    if over not in ("token", "mean", "sum", "max"):
        raise ValueError(f"rollout_mask: over must be 'token', 'mean', 'sum' or 'max', got {over!r}")
    if measure == "ratio" and over == "max":
        raise ValueError("rollout_mask: a ratio has two sides and no max; take 'k2' or 'k3'")
    if measure != "ratio" and floor is not None:
        raise ValueError(f"rollout_mask: measure {measure!r} has no floor, got {floor}")
    if not cap > 0:
        raise ValueError(f"rollout_mask: cap must be above 0, got {cap}")
    if floor is not None and not 0 < floor <= cap:
        raise ValueError(f"rollout_mask: floor must be in (0, cap], got floor {floor} and cap {cap}")
    check_tokens("rollout_mask", cu_seqlens=cu_seqlens, old_logp=old_logp, rollout_logp=rollout_logp, mask=mask)
    old_logp, rollout_logp = widened(old_logp, rollout_logp)
    on = mask != 0
    known = on & ~rollout_logp.isnan()
    old_logp, rollout_logp = (t.masked_fill(~known, 0.0) for t in (old_logp, rollout_logp))
    measured = _measured(measure, old_logp, rollout_logp)
    if over == "max":
        measured = _row_max(measured, cu_seqlens)
    elif over != "token":
        measured = row_sums(measured, cu_seqlens)
        if over == "mean":
            measured = measured / row_sums(on.to(measured.dtype), cu_seqlens).clamp_min(1)
    if measure != "ratio":
        return measured <= cap
    kept = measured <= math.log(cap)  # a ratio is measured by its logarithm
    return kept if floor is None else kept & (measured >= math.log(floor))


def _measured(measure: str, old_logp: Tensor, rollout_logp: Tensor) -> Tensor:
    x = old_logp - rollout_logp
    if measure in ("ratio", "k2", "k3"):
        return {"ratio": lambda: x, "k2": lambda: x * x / 2, "k3": lambda: x.exp() - 1 - x}[measure]()
    p, q = (t.exp().clamp(1e-6, 1 - 1e-6) for t in (rollout_logp, old_logp))
    return (p - q).abs() if measure == "binary_tv" else p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()


def _row_max(x: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The largest of each row, of numbers that are at least 0; 0 of an empty row."""
    if cu_seqlens is None:
        return torch.cat([x, x.new_zeros(x.shape[0], 1)], 1).amax(1)
    rows = torch.arange(cu_seqlens.shape[0] - 1, device=x.device)
    return x.new_zeros(rows.shape).scatter_reduce(0, per_token(rows, x, cu_seqlens), x, "amax")


@explained
@torch.no_grad()
def sequence_mask(
    logp: Tensor,
    rollout_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    delta: float,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """Off-policy sequence mask (DeepSeek-V3.2): keeps where A >= 0 or the sequence's mean of rollout - logp is at most
    `delta`. A token without a rollout log-prob (NaN) counts as 0 in that mean.

    Returns:
        Bool, of the shape of `advantages`. Dropped sequences stay in the denominator: give it as `weights`, or multiply
        it into them, as TRL 1.16 does.
    """
    if not delta >= 0:
        raise ValueError(f"sequence_mask: delta must be at least 0, got {delta}")
    check_tokens("sequence_mask", advantages, cu_seqlens, logp=logp, rollout_logp=rollout_logp, mask=mask)
    on = mask != 0
    logp, rollout_logp = widened(logp, rollout_logp)
    drift = row_sums((rollout_logp - logp).masked_fill(~on, 0.0).nan_to_num(nan=0.0), cu_seqlens)
    near = drift <= delta * row_sums(on.to(drift.dtype), cu_seqlens).clamp_min(1)
    return (advantages >= 0) | (near if advantages.shape == near.shape else per_token(near, logp, cu_seqlens))


@explained
@torch.no_grad()
def top_entropy_mask(entropy: Tensor, mask: Tensor, quantile: float) -> Tensor:
    """The tokens of `mask` whose entropy is at least its `quantile` over all of them (Wang 2025, arXiv 2506.01939:
    .8 keeps a fifth), interpolated as torch.quantile does. Bool, like `entropy`; with several ranks, gather first."""
    if not 0 <= quantile <= 1:
        raise ValueError(f"top_entropy_mask: quantile must be in [0, 1], got {quantile}")
    check_tokens("top_entropy_mask", entropy=entropy, mask=mask)
    on = mask != 0
    if entropy.numel() == 0:
        return on
    [entropy] = widened(entropy)
    ordered = entropy.masked_fill(~on, torch.inf).flatten().sort().values
    place = (on.sum() - 1).clamp_min(0).double() * quantile
    below, above = (ordered.gather(0, p.long().reshape(1)) for p in (place.floor(), place.ceil()))
    return on & (entropy >= below.lerp(above, (place - place.floor()).to(entropy.dtype)))


def _first(op: str, score: Tensor, share: float, on: Tensor, candidates: Tensor) -> Tensor:
    """The candidates of the lowest score, a `share` of the tokens `on` of them, but one at least."""
    if not 0 < share <= 1:
        raise ValueError(f"{op}: share must be above 0 and at most 1, got {share}")
    most = min(max(int(on.numel() * share), 1), on.numel())  # the host knows no more of the count without waiting
    lowest = score.masked_fill(~candidates, torch.inf).flatten().topk(most, largest=False, sorted=True).indices
    count = (on.sum().double() * share).long().clamp_min(1)
    first = torch.arange(most, device=on.device) < count
    return torch.zeros_like(on).flatten().scatter(0, lowest, first).view_as(on) & candidates


def _covariance(logp: Tensor, advantages: Tensor, on: Tensor) -> Tensor:
    """(A - mean A)(logp - mean logp), means over the mask; 0 outside."""
    count = on.sum().clamp_min(1)
    a, p = (x.masked_fill(~on, 0.0) for x in (advantages, logp))
    return ((a - a.sum() / count) * (p - p.sum() / count)).masked_fill(~on, 0.0)


@explained
@torch.no_grad()
def clip_cov_tokens(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: tuple[float, float] = (0.2, 0.2),
    share: float = 2e-4,
    bounds: tuple[float, float] = (1.0, 5.0),
    generator: torch.Generator | None = None,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """The tokens that Clip-Cov drops: a random `share` of all (at least one), out of those that the clip of the ratio
    does not hold and whose covariance of advantage and log-prob is inside `bounds`. The constants are the paper's and
    verl 0.9.1's. Bool."""
    check_tokens("clip_cov_tokens", advantages, cu_seqlens, logp=logp, old_logp=old_logp, mask=mask)
    on = mask != 0
    if not bounds[0] < bounds[1]:
        raise ValueError(f"clip_cov_tokens: bounds must be (low, high) with low < high, got {bounds}")
    logp, old_logp, advantages = widened(logp, old_logp, per_token(advantages, logp, cu_seqlens))
    covariance = _covariance(logp, advantages, on)
    ratio = (logp - old_logp).masked_fill(~on, 0.0).exp()
    held = ((ratio > 1 + clip[1]) & (advantages > 0)) | ((ratio < 1 - clip[0]) & (advantages < 0))
    candidates = on & ~held & (covariance > bounds[0]) & (covariance < bounds[1])
    draw = torch.rand(logp.shape, generator=generator, device=logp.device)
    return _first("clip_cov_tokens", draw, share, on, candidates)


@explained
@torch.no_grad()
def kl_cov_tokens(
    logp: Tensor, advantages: Tensor, mask: Tensor, *, share: float = 2e-4, cu_seqlens: Tensor | None = None
) -> Tensor:
    """The tokens that KL-Cov holds back: the `share` of all (at least one) with the largest covariance of advantage
    and log-prob. Bool."""
    check_tokens("kl_cov_tokens", advantages, cu_seqlens, logp=logp, mask=mask)
    on = mask != 0
    logp, advantages = widened(logp, per_token(advantages, logp, cu_seqlens))
    covariance = _covariance(logp, advantages, on)
    return _first("kl_cov_tokens", -covariance, share, on, on)
