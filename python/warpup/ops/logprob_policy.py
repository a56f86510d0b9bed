"""Policy losses on token log-probabilities: formula, masks, KL and metrics in one pass each way.

Contract, numerics and bytes moved: csrc/logprob/policy_loss.h.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from warpup._native import load_ops

_ops = load_ops("policy_loss", "policy_loss_backward")


class PolicyKind(NamedTuple):
    """What a published loss fixes: the kernel's formula, its clip range and what its sum is divided by."""

    formula: int
    clip: tuple[float, float]
    normalizer: str


POLICY_KINDS = {
    "ppo": PolicyKind(0, (0.2, 0.2), "token"),  # Schulman 2017
    "grpo": PolicyKind(0, (0.2, 0.2), "token"),  # as verl and TRL's "bnpo"; the paper's own mean: normalizer="sequence"
    "dapo": PolicyKind(0, (0.2, 0.28), "token"),  # clip-higher, Yu 2025 (arXiv 2503.14476)
    "dr_grpo": PolicyKind(0, (0.2, 0.2), "constant"),  # Liu 2025 (arXiv 2503.20783)
}
KL_ESTIMATORS = ("k1", "k2", "k3")
NORMALIZERS = ("token", "sequence", "constant")
METRICS = (
    "tokens", "clip_fraction_low", "clip_fraction_high", "ratio_mean", "ratio_max", "approx_kl", "ref_kl",
)  # fmt: skip


def reference_policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    kind: str = "grpo",
    clip: tuple[float, float] | None = None,
    ref_logp: Tensor | None = None,
    kl_coef: float = 0.0,
    kl: str = "k3",
    normalizer: str | float | Tensor | tuple | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`policy_loss` in plain torch: the oracle of the tests and the eager peer of the benchmarks."""
    low, high = clip or POLICY_KINDS[kind].clip
    m = mask != 0
    advantages = advantages.unsqueeze(-1) if advantages.dim() == 1 else advantages
    advantages = advantages.expand_as(logp).masked_fill(~m, 0.0)
    log_ratio = (logp - old_logp).masked_fill(~m, 0.0)
    ratio = log_ratio.exp()
    loss = -torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    ref_kl = torch.zeros_like(loss)
    if kl_coef:
        d = (ref_logp - logp).masked_fill(~m, 0.0)
        ref_kl = kl_coef * {"k1": -d, "k2": d * d / 2, "k3": d.exp() - d - 1}[kl]
    weights, denominator, value = _normalizer(normalizer, kind)
    n = m.sum(-1)
    rows = ((loss + ref_kl) * m).sum(-1)
    rows = rows / n.clamp_min(1) if weights else rows
    total = (n.sum(), (n > 0).sum(), logp.numel(), value)[denominator]
    count = n.sum().clamp_min(1).to(logp.dtype)
    with torch.no_grad():
        values = (
            n.sum(),
            ((ratio < 1 - low) & (advantages < 0)).sum() / count,
            ((ratio > 1 + high) & (advantages > 0)).sum() / count,
            (ratio * m).sum() / count,
            (ratio * m).amax() if ratio.numel() else ratio.new_zeros(()),
            ((ratio - 1 - log_ratio) * m).sum() / count,
            (ref_kl * m).sum() / count,
        )
    if not isinstance(total, Tensor):
        total = logp.new_tensor(float(total))
    loss = torch.where(total == 0, 0.0, rows.sum() / total.to(logp.dtype).where(total != 0, 1.0))
    return loss, {name: v.to(logp.dtype) for name, v in zip(METRICS, values, strict=True)}


def _normalizer(normalizer, kind: str) -> tuple[bool, int, float | Tensor]:
    """(each sequence counts once, the kernel's Denominator, its value where it is given)."""
    name, value = normalizer if isinstance(normalizer, tuple) else (normalizer, None)
    if name is None:
        name = POLICY_KINDS[kind].normalizer
    if not isinstance(name, str):
        name, value = "token", name
    if name not in NORMALIZERS:
        raise ValueError(f"policy_loss: normalizer must be one of {NORMALIZERS}, a number or a pair, got {name!r}")
    if value is None:
        return name == "sequence", NORMALIZERS.index(name), 0.0
    if not isinstance(value, Tensor) and not value > 0:
        raise ValueError(f"policy_loss: normalizer must be above 0, got {value}")
    return name == "sequence", len(NORMALIZERS), value


@torch.library.register_fake("warpup::policy_loss")
def _(logp, old_logp, advantages, mask, ref_logp, denominator_tensor, *options):
    return logp.new_empty(()), logp.new_empty(len(METRICS)), logp.new_empty(logp.shape[0])


@torch.library.register_fake("warpup::policy_loss_backward")
def _(logp, *rest):
    return torch.empty(logp.shape, dtype=logp.dtype, device=logp.device)


class PolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(logp, old_logp, advantages, mask, ref_logp, denominator, formula, normalize):
        return _ops.policy_loss(logp, old_logp, advantages, mask, ref_logp, denominator, *formula, *normalize)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, _, ctx.formula, _ = inputs
        _, metrics, row_weight = output
        ctx.mark_non_differentiable(metrics, row_weight)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, row_weight)

    @staticmethod
    def backward(ctx, grad_loss, *_):
        *tensors, row_weight = ctx.saved_tensors
        if grad_loss is None:
            return (None,) * 8
        return (_ops.policy_loss_backward(*tensors, *ctx.formula, row_weight, grad_loss), *(None,) * 7)


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    kind: str = "grpo",
    clip: tuple[float, float] | None = None,
    ref_logp: Tensor | None = None,
    kl_coef: float = 0.0,
    kl: str = "k3",
    normalizer: str | float | Tensor | tuple | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Token-level policy-gradient loss and its metrics, forward and backward fused.

    With r = exp(logp - old_logp), A the advantage and d = ref_logp - logp, a token's loss is
    `-min(r A, clamp(r, 1 - clip[0], 1 + clip[1]) A) + kl_coef * kl(d)`,
    k1 = -d, k2 = d^2 / 2, k3 = e^d - d - 1 (Schulman, "Approximating KL divergence", 2020).

    Args:
        logp: (B, T) float32 or float64, the log-probs being trained. The only argument that gets a gradient.
        old_logp: (B, T), of the policy that sampled. Equal to `logp.detach()` it gives the plain policy gradient.
        advantages: (B,), one a sequence, or (B, T).
        mask: (B, T) bool (or any number, not 0 meaning true): the tokens that count. What stands elsewhere, NaN
            included, changes nothing.
        kind: `ppo`, `grpo`, `dapo` or `dr_grpo`: sets the defaults of `clip` and `normalizer` (see `POLICY_KINDS`).
        clip: (low, high); None takes the kind's, (.2, .28) for `dapo`, else (.2, .2).
        ref_logp: (B, T), of the reference policy; needed where `kl_coef` is not 0.
        kl_coef: weight of the KL to the reference.
        kl: `k1`, `k2` or `k3`.
        normalizer: what the sum over tokens is divided by. `"token"`: the number of tokens in `mask`. `"sequence"`: the
            mean over non-empty sequences of their token means (TRL counts empty ones too: `("sequence", B)`).
            `"constant"`: B * T (Dr. GRPO). A number or a one-element tensor: divides the sum over tokens; a pair
            `(name, number)` gives the divisor of the named form. With an explicit divisor, gradient accumulation over
            micro-batches or ranks equals the big batch.

    Returns:
        `(loss, metrics)`: a scalar, and tensors without gradient, all under the mask: `tokens`, `clip_fraction_low`
        (A < 0, r below), `clip_fraction_high` (A > 0, r above), `ratio_mean`, `ratio_max`, `approx_kl` = mean(r - 1 -
        log r), `ref_kl` (mean of the weighted KL term). No token in the mask gives loss 0.

    Raises:
        ValueError: an unknown name, a shape, dtype, device or stride that does not fit, 16-bit log-probs (they round
            the ratio to 1), `kl_coef` without `ref_logp`.
    """
    if kind not in POLICY_KINDS:
        raise ValueError(f"policy_loss: kind must be one of {tuple(POLICY_KINDS)}, got {kind!r}")
    if kl not in KL_ESTIMATORS:
        raise ValueError(f"policy_loss: kl must be one of {KL_ESTIMATORS}, got {kl!r}")
    per_sequence, denominator, value = _normalizer(normalizer, kind)
    divisor = value.detach().float() if isinstance(value, Tensor) else None
    low, high = POLICY_KINDS[kind].clip if clip is None else clip
    formula = (POLICY_KINDS[kind].formula, low, high, *(kl_coef if kl == name else 0.0 for name in KL_ESTIMATORS))
    normalize = (per_sequence, denominator, 0.0 if divisor is not None else float(value))
    constants = (
        old_logp.detach(),
        advantages.detach().to(logp.dtype),
        mask if mask.dtype == torch.bool else mask != 0,
        ref_logp.detach() if kl_coef and ref_logp is not None else None,
        divisor,
    )
    if logp.requires_grad and torch.is_grad_enabled():
        loss, metrics, _ = PolicyLoss.apply(logp, *constants, formula, normalize)
    else:
        loss, metrics, _ = _ops.policy_loss(logp, *constants, *formula, *normalize)
    return loss, dict(zip(METRICS, metrics.unbind(), strict=True))
