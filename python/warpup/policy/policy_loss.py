"""Policy losses on token log-probabilities: formula, masks, KL and metrics in one pass each way.

Contract, numerics and bytes moved: csrc/policy/policy_loss.h. Names: logprob_policy_kinds.py. The reference in plain
torch: logprob_policy_reference.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup import _op
from warpup._op import once_differentiable
from warpup.policy.kinds import (
    KL_ESTIMATORS,
    METRICS,
    POLICY_KINDS,
    STATE,
    clip_of,
    constants_of,
    normalizer_of,
    options_of,
)
from warpup.policy.masks import clip_cov_tokens, kl_cov_tokens, per_token

_op.raw("policy_loss", "policy_loss_backward")


@torch.library.register_fake("warpup::policy_loss")
def _(logp, old_logp, advantages, mask, ref_logp, weights, penalty, ref_kl, entropy, cu_seqlens, *options):
    rows = logp.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return logp.new_empty(()), logp.new_empty(len(METRICS)), logp.new_empty(rows, STATE)


@torch.library.register_fake("warpup::policy_loss_backward")
def _(logp, old_logp, advantages, mask, ref_logp, weights, penalty, ref_kl, entropy, *rest):
    def like_logp(given):
        return torch.empty(logp.shape if given else (0,), dtype=logp.dtype, device=logp.device)

    return like_logp(True), like_logp(ref_kl is not None), like_logp(entropy is not None)


class PolicyLoss(torch.autograd.Function):
    @staticmethod
    def forward(*inputs):  # torch binds them to this signature at each call: with names that takes 8 us more
        logp, ref_kl, entropy, *fixed, cu_seqlens, denominator, choices, numbers = inputs
        return _op.ops.policy_loss(logp, *fixed, ref_kl, entropy, cu_seqlens, denominator, choices, numbers)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logp, ref_kl, entropy, *fixed, cu_seqlens, _, ctx.choices, ctx.numbers = inputs
        _, metrics, row_state = output
        ctx.mark_non_differentiable(metrics, row_state)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logp, *fixed, ref_kl, entropy, cu_seqlens, row_state)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_loss, *_):
        *inputs, row_state = ctx.saved_tensors
        if grad_loss is None:
            return (None,) * 13
        grads = _op.ops.policy_loss_backward(*inputs, ctx.choices, ctx.numbers, row_state, grad_loss)
        return (*(g if need else None for g, need in zip(grads, ctx.needs_input_grad[:3], strict=True)), *(None,) * 10)


def arguments_of(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    kind: str = "grpo",
    clip: tuple[float, float] | None = None,
    delta: float | None = None,
    dual_clip: float | None = None,
    constants: tuple[float, ...] | None = None,
    weights: Tensor | None = None,
    selected: Tensor | None = None,
    generator: torch.Generator | None = None,
    ref_logp: Tensor | None = None,
    ref_kl: Tensor | None = None,
    kl_coef: float = 0.0,
    kl: str = "k3",
    kl_corrected: bool = False,
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    normalizer: str | float | Tensor | tuple | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[tuple, tuple, tuple]:
    """What the raw op takes behind `logp`: (old_logp, advantages, mask, ref_logp, weights, penalty), (ref_kl, entropy),
    (cu_seqlens, divisor, choices, numbers). Raises what `policy_loss` does."""
    if kind not in POLICY_KINDS:
        raise ValueError(f"policy_loss: kind must be one of {tuple(POLICY_KINDS)}, got {kind!r}")
    if kl not in KL_ESTIMATORS:
        raise ValueError(f"policy_loss: kl must be one of {tuple(KL_ESTIMATORS)}, got {kl!r}")
    if entropy_coef and entropy is None:
        raise ValueError("policy_loss: entropy_coef needs entropy")
    if kl_coef and kl == "full" and ref_kl is None:
        raise ValueError("policy_loss: kl='full' needs ref_kl")
    if selected is not None and kind not in ("clip_cov", "kl_cov"):
        raise ValueError(f"policy_loss: selected belongs to 'clip_cov' and 'kl_cov', not to {kind!r}")
    choices, numbers = options_of(
        kind, clip=clip, delta=delta, dual_clip=dual_clip, constants=constants, kl=kl, kl_coef=kl_coef,
        kl_corrected=kl_corrected, entropy_coef=entropy_coef, normalizer=normalizer, packed=cu_seqlens is not None,
    )  # fmt: skip
    value = normalizer_of(normalizer, kind, cu_seqlens is not None)[2]
    logp_fixed, old_logp, advantages = logp.detach(), old_logp.detach(), advantages.detach().to(logp.dtype)
    weights = None if weights is None else weights.detach().to(logp.dtype)
    if kind == "clip_cov" and selected is None:
        selected = clip_cov_tokens(
            logp_fixed, old_logp, advantages, mask, clip=clip_of(kind, clip), generator=generator, cu_seqlens=cu_seqlens
        )
    if kind == "kl_cov" and selected is None:
        selected = kl_cov_tokens(logp_fixed, advantages, mask, cu_seqlens=cu_seqlens)
    penalty = None
    if kind == "clip_cov":
        kept = (selected == 0).to(logp.dtype)
        weights = kept if weights is None else kept * per_token(weights, logp, cu_seqlens)
    elif kind == "kl_cov":
        penalty = (selected != 0).to(logp.dtype) * constants_of(kind, constants)[0]
    fixed = (
        old_logp,
        advantages,
        mask if mask.dtype == torch.bool else mask != 0,
        ref_logp.detach() if kl_coef and kl != "full" and ref_logp is not None else None,
        weights,
        penalty,
    )
    differentiable = (ref_kl if kl_coef and kl == "full" else None, entropy if entropy_coef else None)
    rest = (
        None if cu_seqlens is None else cu_seqlens.to(torch.int64),
        value.detach().float() if isinstance(value, Tensor) else None,
        choices,
        numbers,
    )
    return fixed, differentiable, rest


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    kind: str = "grpo",
    clip: tuple[float, float] | None = None,
    delta: float | None = None,
    dual_clip: float | None = None,
    constants: tuple[float, ...] | None = None,
    weights: Tensor | None = None,
    selected: Tensor | None = None,
    generator: torch.Generator | None = None,
    ref_logp: Tensor | None = None,
    ref_kl: Tensor | None = None,
    kl_coef: float = 0.0,
    kl: str = "k3",
    kl_corrected: bool = False,
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    normalizer: str | float | Tensor | tuple | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A policy-gradient loss and its metrics, forward and backward fused.

    A token's loss is `weight * policy term + KL term - entropy_coef * entropy`. With x = logp - old_logp, r = e^x, A
    the advantage, sg a stopped gradient and (l, h) the clip, the policy terms are

    | kind | term | source |
    |---|---|---|
    | `ppo`, `grpo`, `dapo`, `dr_grpo` | -min(r A, clamp(r, 1-l, 1+h) A) | arXiv 1707.06347, 2402.03300, 2503.14476 |
    | `gspo` | the same with s = exp(mean x of the sequence), gradient through the mean | arXiv 2507.18071; TRL |
    | `gspo_token` | the same with sg(s) pi / sg(pi), log s at most 10 | its section 4.3; verl |
    | `luspo` | `gspo`, divided as mean(loss * length) | TRL, with importance_sampling_level "sequence" |
    | `cispo` | -sg(min(r, h)) A logp: h bounds r itself, clip[0] is unused | arXiv 2506.13585; TRL, Liger |
    | `cispo_verl` | -sg(clamp(r, 1-l, 1+h)) A logp | verl, NeMo-RL |
    | `sapo` | -(4 / tau) sigmoid(tau (r - 1)) A | arXiv 2511.20347 |
    | `vespo` | -sg(phi) A logp, phi = exp(lam + k log w - lam w), log w = sum clamp(x, +-20) in [ln 1e-8, 20] | TRL |
    | `gpg` | -A logp | arXiv 2504.02546 |
    | `gmpo` | -A exp(mean of x, held at h where A > 0, at -l where A < 0) | arXiv 2507.20673; verl |
    | `a_lol` | -sg(clamp(exp(sum x), 1-l, 1+h)) A logp, old_logp the reference policy's | arXiv 2305.14718 |
    | `a_lol_seq`, `a_lol_ref_free` | the same with r; with ratio 1 | its variants |
    | `clip_cov` | `ppo` without the tokens of `selected` | arXiv 2505.22617; verl |
    | `kl_cov` | -r A, and constant * abs(x) for the tokens of `selected` | the same |

    Args:
        logp: (B, T) float32 or float64, the log-probs being trained; packed (N,) beside `cu_seqlens`.
        old_logp: like `logp`, of the policy that sampled. Equal to `logp.detach()` it gives the plain policy gradient.
        advantages: (B,), one a sequence, or like `logp`.
        mask: like `logp`, bool (or any number, not 0 meaning true): the tokens that count. What stands elsewhere, NaN
            included, changes nothing.
        kind: of the table. Sets the defaults of `clip`, `constants` and `normalizer` (see `POLICY_KINDS`).
        clip: (l, h); None takes the kind's.
        delta: two-sided clip (INTELLECT-2, arXiv 2505.07291; TRL): r is at most delta in the unclipped branch.
        dual_clip: c of dual clip (arXiv 1912.09729; verl's is 3): where A < 0 the term is at most -c A.
        constants: `sapo`: tau for A > 0 and for the others; `vespo`: k, lam for A >= 0, k, lam for A < 0; `kl_cov`:
            the weight of abs(x). None takes the kind's.
        weights: (B,) or like `logp`, multiplies the policy term alone (see `rollout_weights`, `sequence_mask`); in
            `vespo` they are factors of w instead, their logs in [ln 1e-8, 20], as in TRL.
        selected: like `logp`, bool: the tokens that `clip_cov` drops or `kl_cov` holds back. None selects by the
            published constants from this call's tokens; for accumulation select once (`clip_cov_tokens`,
            `kl_cov_tokens`) and split. `generator` draws those of `clip_cov`.
        ref_logp: like `logp`, of the reference policy.
        ref_kl: like `logp`, for kl="full": a KL a token from the caller, who gets its gradient.
        kl_coef: weight of the KL to the reference.
        kl: with d = ref_logp - logp: `k1` = -d, `k2` = d^2 / 2, `k3` = e^d - d - 1 (Schulman, "Approximating KL
            divergence", 2020); `k1+`, `k3+`: that value with k2's gradient (verl); `k3_verl`: d held in +-20 and k3 at
            10 (verl's low_var_kl); `full`: `ref_kl`.
        kl_corrected: multiplies the KL by the ratio, its gradient included (DeepSeek-V3.2; TRL's
            use_bias_correction_kl): s for `gspo`, `gspo_token` and `luspo`, else r.
        entropy: like `logp`, for `entropy_coef`, gets a gradient. The bonus is divided like the loss (verl); TRL's is
            a mean over tokens whatever the loss is divided by.
        normalizer: what the sum over tokens is divided by. `"token"`: the number of tokens in `mask`. `"sequence"`: the
            mean over non-empty sequences of their token means (TRL counts empty ones too: `("sequence", B)`).
            `"sequence_sum"`: the number of non-empty sequences. `"constant"`: B * T (Dr. GRPO). A number or a
            one-element tensor: divides the sum over tokens; a pair `(name, number)` gives the divisor of the named
            form. With an explicit divisor, gradient accumulation over micro-batches or ranks equals the big batch.
        cu_seqlens: (S + 1,) int32 or int64, packed sequences: sequence i is tokens [cu_seqlens[i], cu_seqlens[i + 1]),
            from 0 to N without descent (checked on the CPU only: on a GPU a look would wait for it). `advantages` and
            `weights` are then (S,) or (N,), the former where both fit.

    Returns:
        `(loss, metrics)`: a scalar, and tensors without gradient, all under the mask: `tokens`, `clip_fraction_low`
        (A < 0, ratio below), `clip_fraction_high` (A > 0, above), `clip_fraction_dual` (A < 0, held by delta or
        dual_clip), `ratio_mean`, `ratio_max` (of the ratio that the kind uses; phi for `vespo`), `approx_kl` = mean(r -
        1 - log r), `ref_kl` (mean of the weighted KL term). No token in the mask gives loss 0.

    Raises:
        ValueError: an unknown name, a shape, dtype, device or stride that does not fit, 16-bit log-probs (they round
            the ratio to 1), `kl_coef` without `ref_logp`, an option that the kind does not have.
    """
    fixed, (ref_kl, entropy), rest = arguments_of(
        logp,
        old_logp,
        advantages,
        mask,
        kind=kind,
        clip=clip,
        delta=delta,
        dual_clip=dual_clip,
        constants=constants,
        weights=weights,
        selected=selected,
        generator=generator,
        ref_logp=ref_logp,
        ref_kl=ref_kl,
        kl_coef=kl_coef,
        kl=kl,
        kl_corrected=kl_corrected,
        entropy=entropy,
        entropy_coef=entropy_coef,
        normalizer=normalizer,
        cu_seqlens=cu_seqlens,
    )
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (logp, ref_kl, entropy)):
        loss, metrics, _ = PolicyLoss.apply(logp, ref_kl, entropy, *fixed, *rest)
    else:
        loss, metrics, _ = _op.ops.policy_loss(logp, *fixed, ref_kl, entropy, *rest)
    return loss, dict(zip(METRICS, metrics.unbind(), strict=True))
