"""`policy_loss` in plain torch: the oracle of the tests and the eager peer of the benchmarks. Each loss is written as
its paper or its first implementation writes it, gradients by autograd."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from warpup._op import accumulator
from warpup.policy.kinds import METRICS, UNHELD, PolicyOptions
from warpup.policy.masks import clip_cov_tokens, kl_cov_tokens
from warpup.policy.rows import per_token, row_sums


def reference_policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    weights: Tensor | None = None,
    selected: Tensor | None = None,
    generator: torch.Generator | None = None,
    ref_logp: Tensor | None = None,
    ref_kl: Tensor | None = None,
    entropy: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    **options,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The arguments of `warpup.policy_loss`, `options` those of `PolicyOptions`; any dtype, computed and returned in
    float32 (float64 for float64)."""
    o = PolicyOptions(**options)
    kind, delta, dual_clip = o.kind, o.delta, o.dual_clip
    on = mask != 0
    logp, old_logp = logp.to(accumulator(logp)), old_logp.to(accumulator(logp))
    m = on.to(logp.dtype)

    def masked(x: Tensor) -> Tensor:
        return per_token(x, logp, cu_seqlens).to(logp.dtype).masked_fill(~on, 0.0)

    def rows(x: Tensor) -> Tensor:
        return row_sums(x * m, cu_seqlens)

    def spread(x: Tensor) -> Tensor:
        return per_token(x, logp, cu_seqlens)

    n = row_sums(m, cu_seqlens)
    lp, log_ratio, a = logp.masked_fill(~on, 0.0), masked(logp - old_logp), masked(advantages)
    w = torch.ones_like(lp) if weights is None else masked(weights)
    r = log_ratio.exp()
    low, high = o.clip_range()
    mean = rows(log_ratio) / n.clamp_min(1)
    ratio, is_low, is_high, dual = r, (r < 1 - low) & (a < 0), (r > 1 + high) & (a > 0), torch.zeros_like(on)

    if kind in ("gspo", "luspo", "gspo_token"):
        ratio = spread(mean.exp())
        if kind == "gspo_token":
            ratio = (lp - lp.detach() + spread(mean.detach())).clamp(max=10).exp()
        is_low, is_high = (ratio < 1 - low) & (a < 0), (ratio > 1 + high) & (a > 0)
    if kind in ("cispo", "cispo_verl", "a_lol_seq"):
        held = r.clamp(max=high) if kind == "cispo" else r.clamp(1 - low, 1 + high)
        loss = -held.detach() * a * lp
        if kind == "cispo":
            is_low, is_high = torch.zeros_like(on), (r > high) & (a > 0)
    elif kind == "a_lol":
        ratio = spread(rows(log_ratio).clamp(max=88).exp().detach())
        loss = -ratio.clamp(1 - low, 1 + high) * a * lp
        is_low, is_high = (ratio < 1 - low) & (a < 0), (ratio > 1 + high) & (a > 0)
    elif kind in ("gpg", "a_lol_ref_free"):
        ratio, is_low, is_high, loss = torch.ones_like(r), torch.zeros_like(on), torch.zeros_like(on), -a * lp
    elif kind in ("dppo_tv", "dppo_kl", "ipo"):
        p, old = lp.exp(), (lp - log_ratio).exp()
        if kind == "dppo_kl":
            rest, old_rest = (1 - p).clamp_min(0), (1 - old).clamp_min(0)
            divergence = old_rest * ((old_rest + 1e-8) / (rest + 1e-8)).log() - old * log_ratio
            moved = torch.where(p > old, divergence, -divergence)
        else:
            moved = p - old
        is_low, is_high = moved < -low, moved > high
        if kind != "ipo":  # there only the side that the advantage pushes to
            is_low, is_high = is_low & (a < 0), is_high & (a > 0)
        loss = -(r.clamp(max=o.named_constants()["cap"]) * ~(is_low | is_high)).detach() * a * lp
    elif kind == "dro":
        ratio, is_low, is_high, loss = torch.ones_like(r), torch.zeros_like(on), torch.zeros_like(on), -a * lp
    elif kind == "sapo":
        tau = torch.where(a > 0, *(a.new_tensor(t) for t in o.named_constants().values()))
        loss = -torch.sigmoid(tau * (r - 1)) * 4 / tau * a
    elif kind == "vespo":
        log_w = rows(log_ratio.detach().clamp(-20, 20))
        if weights is not None:
            log_weight = weights.to(logp.dtype).log().clamp(math.log(1e-8), 20)
            of_rows = weights.dim() == 1 and weights.shape == n.shape
            log_w = log_w + (log_weight if of_rows else rows(masked(log_weight)))
        log_w = spread(log_w.clamp(math.log(1e-8), 20))
        c = o.named_constants()
        sides = (c["k_positive"], c["lambda_positive"]), (c["k_negative"], c["lambda_negative"])
        phi = [(max(l, 1e-4) + k * log_w - max(l, 1e-4) * log_w.exp()).exp() for k, l in sides]
        ratio, w = torch.where(a >= 0, *phi), torch.ones_like(w)
        loss = -ratio * a * lp
    elif kind == "gmpo":
        signed = a.sign() * torch.minimum(a.sign() * log_ratio, a.sign() * log_ratio.clamp(-low, high))
        ratio = spread((rows(signed) / n.clamp_min(1)).exp())
        loss = -ratio * a
        is_low, is_high = (log_ratio < -low) & (a < 0), (log_ratio > high) & (a > 0)
    else:
        above = ratio if delta is None else ratio.clamp(max=delta)
        loss = -torch.minimum(above * a, ratio.clamp(1 - low, 1 + high) * a)
        is_high = (ratio > min(1 + high, delta or math.inf)) & (a > 0)
        cap = min(max(1 + high, delta or math.inf), dual_clip or math.inf)
        dual = (ratio > cap) & (a < 0)
        if dual_clip is not None:
            loss = torch.where(a < 0, torch.minimum(loss, -dual_clip * a), loss)
    if kind == "clip_cov":
        if selected is None:
            selected = clip_cov_tokens(
                logp, old_logp, advantages, mask, clip=(low, high), generator=generator, cu_seqlens=cu_seqlens
            )
        w = w * ~selected
    if kind == "kl_cov":
        if selected is None:
            selected = kl_cov_tokens(logp, advantages, mask, cu_seqlens=cu_seqlens)
        loss = loss + o.named_constants()["penalty"] * selected * log_ratio.abs()

    loss = loss + o.named_constants().get("proximal", 0.0) / 2 * log_ratio.square()
    added = torch.zeros_like(loss)
    if o.kl == "full" and ref_kl is not None:
        added = masked(ref_kl)
    elif ref_logp is not None:
        added = estimate(o.kl, masked(ref_logp.to(logp.dtype) - logp), *(o.kl_clamp or UNHELD))
    if o.kl_corrected:
        added = added * (ratio if kind in ("gspo", "luspo", "gspo_token") else r)
    loss = loss * w
    if o.kl_coef:  # else it is a metric only
        loss = loss + o.kl_coef * added
    if o.entropy_coef and entropy is not None:
        loss = loss - o.entropy_coef * masked(entropy)

    normalizer, denominator = o.division()
    sums = rows(loss)
    sums = sums / n.clamp_min(1) if normalizer == "sequence" else sums
    if denominator is None:
        counted = {"token": n.sum(), "constant": logp.numel()}
        denominator = counted[normalizer] if normalizer in counted else (n > 0).sum()
    total = denominator if isinstance(denominator, Tensor) else logp.new_tensor(float(denominator))
    result = torch.where(total == 0, 0.0, sums.sum() / total.to(logp.dtype).where(total != 0, 1.0))
    if o.reduction == "none":
        result = loss * m
    with torch.no_grad():
        count, peak = n.sum().clamp_min(1), (ratio * m).amax() if ratio.numel() else ratio.new_zeros(())
        means = [is_low, is_high, dual, ratio, r - 1 - log_ratio, added]
        means += [] if entropy is None else [masked(entropy)]
        low, high, dual, ratio, *others = (rows(x.to(m.dtype)).sum() / count for x in means)
        values = (n.sum(), low, high, dual, ratio, peak, *others)
    return result, {name: v.to(logp.dtype) for name, v in zip(METRICS, values, strict=False)}


def estimate(kl: str, d: Tensor, input_limit: float = math.inf, output_limit: float = math.inf) -> Tensor:
    """The estimator of a name, of d = ref_logp - logp, both held within limits."""
    if kl.endswith("+"):  # straight-through: this value, k2's gradient
        value, k2 = estimate(kl[:-1], d), d * d / 2
        return k2 - k2.detach() + value.detach()
    if kl == "k3_verl":
        return estimate("k3", d, 20, 10)
    d = d.clamp(-input_limit, input_limit)
    return {"k1": -d, "k2": d * d / 2, "k3": d.exp() - d - 1}[kl].clamp(-output_limit, output_limit)
