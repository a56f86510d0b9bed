"""Policy losses on token log-probabilities: formula, masks, KL and metrics in one pass each way.

Contract, numerics and bytes moved: csrc/policy/policy_loss.h, the formulas: policy_loss_math.h. Names and options:
kinds.py. The same in plain torch: reference.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from warpup import _autograd, _op
from warpup._arguments import explained
from warpup.policy.kinds import METRICS, PolicyOptions
from warpup.policy.masks import clip_cov_tokens, kl_cov_tokens
from warpup.policy.rows import per_token

STATE = 4  # columns of row_state
_TYPES = {a.name: str(a.type) for a in torch.ops.warpup.policy_loss.default._schema.arguments}
INPUTS = tuple(name for name, kind in _TYPES.items() if "Tensor" in kind and name != "denominator")
OPTIONS = tuple(name for name, kind in _TYPES.items() if "Tensor" not in kind and name != "with_losses")


def schema_of(names: Sequence[str]) -> str:
    """These arguments of the raw op as a schema writes them."""
    return ", ".join(f"{_TYPES[name]} {name}" for name in names).replace("Optional[Tensor]", "Tensor?")


@_op.fake("policy_loss")
def _(*arguments):
    x = dict(zip(_TYPES, arguments, strict=True))
    return *_scalars(x), x["logp"].new_empty(x["logp"].shape if x["with_losses"] else 0)


def _scalars(x: dict) -> tuple[Tensor, Tensor, Tensor]:
    """Empty loss, metrics and row_state."""
    logp, cu_seqlens = x["logp"], x["cu_seqlens"]
    rows = logp.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return logp.new_empty(()), logp.new_empty(len(METRICS)), logp.new_empty(rows, STATE)


_policy_loss = _autograd.differentiable("policy_loss", own_row=True)

# ---- A loss for each token: the same kernels, where nothing divides -------------------------------------------------

OF_TOKENS = tuple(n for n in (*INPUTS, *OPTIONS) if n not in ("upstream", "normalizer", "denominator_scalar"))
UNDIVIDED = {"normalizer": "token", "denominator_scalar": 1.0}


@_op.composite(f"policy_losses({schema_of(OF_TOKENS)}) -> (Tensor losses, Tensor metrics, Tensor row_state)")
def _losses(*arguments):
    of_loss = dict(zip(OF_TOKENS, arguments, strict=True)) | UNDIVIDED
    _, metrics, row_state, losses = _op.ops.policy_loss(**of_loss, upstream=None, denominator=None, with_losses=True)
    return losses, metrics, row_state


@_op.fake("policy_losses")
def _(*arguments):
    x = dict(zip(OF_TOKENS, arguments, strict=True))
    return x["logp"].new_empty(x["logp"].shape), *_scalars(x)[1:]


@_op.composite(
    f"policy_losses_backward({schema_of(OF_TOKENS)}, Tensor row_state, Tensor grad_losses) "
    "-> (Tensor grad_logp, Tensor grad_ref_kl, Tensor grad_entropy)"
)
def _losses_backward(*arguments):
    *arguments, row_state, upstream = arguments
    of_loss = dict(zip(OF_TOKENS, arguments, strict=True)) | UNDIVIDED | {"upstream": upstream}
    if of_loss["level"] in ("sequence", "geometric"):  # each token's slope goes to its whole row: sum them again
        _, _, row_state, _ = _op.ops.policy_loss(**of_loss, denominator=None, with_losses=False)
    return _op.ops.policy_loss_backward(**of_loss, row_state=row_state, grad_loss=upstream.new_ones(()))


_policy_losses = _autograd.differentiable("policy_losses")

# ---- policy_loss ----------------------------------------------------------------------------------------------------


def tensors_of(
    options: PolicyOptions,
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
) -> dict[str, Tensor | None]:
    """The raw op's inputs by name, from those of `policy_loss`: all but the options and the denominator."""
    kind = options.kind
    if selected is not None and kind not in ("clip_cov", "kl_cov"):
        raise ValueError(f"policy_loss: selected belongs to 'clip_cov' and 'kl_cov', not to {kind!r}")
    if generator is not None and (kind != "clip_cov" or selected is not None):
        raise ValueError(f"policy_loss: generator draws for 'clip_cov' without selected, nothing here (kind {kind!r})")
    fixed = logp.detach()
    advantages = advantages.detach().to(logp.dtype)
    weights = None if weights is None else weights.detach().to(logp.dtype)
    penalty = None
    if kind == "clip_cov":
        if selected is None:
            clip = options.clip_range()
            selected = clip_cov_tokens(
                fixed, old_logp, advantages, mask, clip=clip, generator=generator, cu_seqlens=cu_seqlens
            )
        kept = (selected == 0).to(logp.dtype)
        weights = kept if weights is None else kept * per_token(weights, logp, cu_seqlens)
    elif kind == "kl_cov":
        if selected is None:
            selected = kl_cov_tokens(fixed, advantages, mask, cu_seqlens=cu_seqlens)
        penalty = (selected != 0).to(logp.dtype) * options.named_constants()["penalty"]
    return {
        "logp": logp,
        "old_logp": old_logp.detach(),
        "advantages": advantages,
        "mask": mask if mask.dtype == torch.bool else mask != 0,
        "ref_logp": None if ref_logp is None else ref_logp.detach(),
        "weights": weights,
        "penalty": penalty,
        "ref_kl": ref_kl,
        "entropy": entropy,
        "cu_seqlens": None if cu_seqlens is None else cu_seqlens.to(torch.int64),
    }


def policy_loss_of(
    options: PolicyOptions, logp: Tensor, old_logp: Tensor, advantages: Tensor, mask: Tensor, **tensors
) -> tuple[Tensor, dict[str, Tensor]]:
    """`policy_loss` with its options in one object, for callers that keep them."""
    of_loss = tensors_of(options, logp, old_logp, advantages, mask, **tensors) | options.raw()
    if options.reduction == "none":
        loss, metrics, _ = _policy_losses(**{name: of_loss[name] for name in OF_TOKENS})
    else:
        denominator = options.division()[1]
        denominator = denominator.detach().float() if isinstance(denominator, Tensor) else None
        loss, metrics, *_ = _policy_loss(**of_loss, upstream=None, denominator=denominator, with_losses=False)
    names = METRICS if tensors.get("entropy") is not None else METRICS[:-1]  # a 0 would read as measured
    return loss, dict(zip(names, metrics.unbind(), strict=False))


@explained
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
    kl_clamp: tuple[float, float] | None = None,
    kl_corrected: bool = False,
    entropy: Tensor | None = None,
    entropy_coef: float = 0.0,
    normalizer: str | float | Tensor | tuple | None = None,
    reduction: str = "mean",
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """A policy-gradient loss and its metrics, forward and backward fused.

    A token's loss is `weight * policy term + KL term - entropy_coef * entropy`. With x = logp - old_logp, r = e^x, A
    the advantage, sg a stopped gradient and (l, h) the clip, the policy terms are

    | kind | term | source |
    |---|---|---|
    | `ppo`, `grpo`, `dapo`, `dr_grpo` | -min(r A, clamp(r, 1-l, 1+h) A) | arXiv 1707.06347, 2402.03300, 2503.14476 |
    | `gspo` | the same with s = exp(mean x of the sequence), gradient through the mean | arXiv 2507.18071; TRL 1.16 |
    | `gspo_token` | the same with sg(s) pi / sg(pi), log s at most 10 | its section 4.3; verl 0.9.1's "gspo" |
    | `luspo` | `gspo`, divided as mean(loss * length) | TRL 1.16, with importance_sampling_level "sequence" |
    | `cispo` | -sg(min(r, h)) A logp: h bounds r itself, l is infinite | arXiv 2506.13585; TRL 1.16, Liger 0.8.5 |
    | `cispo_verl` | -sg(clamp(r, 1-l, 1+h)) A logp | verl 0.9.1 |
    | `sapo` | -(4 / tau) sigmoid(tau (r - 1)) A | arXiv 2511.20347 |
    | `vespo` | -sg(phi) A logp, phi = exp(lam + k log w - lam w), log w = sum clamp(x, +-20) in [ln 1e-8, 20] | TRL |
    | `gpg` | -A logp | arXiv 2504.02546 |
    | `gmpo` | -A exp(mean of x, held at h where A > 0, at -l where A < 0) | arXiv 2507.20673 |
    | `a_lol` | -sg(clamp(exp(sum x), 1-l, 1+h)) A logp, old_logp the reference policy's | arXiv 2305.14718 |
    | `a_lol_seq`, `a_lol_ref_free` | the same with r; with ratio 1 | its variants |
    | `clip_cov` | `ppo` without the tokens of `selected` | arXiv 2505.22617; verl 0.9.1 |
    | `kl_cov` | -r A, and constant * abs(x) for the tokens of `selected` | the same |
    | `dppo_tv`, `dppo_kl` | -sg(min(r, cap)) A logp, 0 where A > 0 and D > h, and where A < 0 and D < -l | 2602.04879 |
    | `ipo` | the same, 0 wherever D > h or D < -l, and x^2 / 1000 added | prime-rl |
    | `dro` | -A logp + proximal / 2 x^2 | verl 0.9.1 |

    D is how far the token's own probability p has moved from its old one q: p - q, of `dppo_kl` the KL
    q log(q / p) + (1 - q) log((1 - q) / (1 - p)) with the sign of p - q.

    Args:
        logp: (B, T) float32 or float64, the log-probs being trained; packed (N,) beside `cu_seqlens`.
        old_logp: like `logp`, of the policy that sampled. Equal to `logp.detach()` it gives the plain policy gradient.
        advantages: (B,), one a sequence, or like `logp`.
        mask: like `logp`, bool (or any number, not 0 meaning true): the tokens that count. What stands elsewhere, NaN
            included, changes nothing.
        kind: of the table. Sets the defaults of `clip`, `constants` and `normalizer` (see `POLICY_KINDS`).
        clip: (l, h); None takes the kind's. Of `dppo_tv`, `dppo_kl` and `ipo` the trust region, of D.
        delta: two-sided clip (INTELLECT-2, arXiv 2505.07291; TRL): r is at most delta in the unclipped branch.
        dual_clip: c of dual clip (arXiv 1912.09729): where A < 0 the term is at most -c A. verl 0.9.1's "vanilla" has
            always one, of 3.
        constants: `sapo`: tau for A > 0 and for the others; `vespo`: k, lam for A >= 0, k, lam for A < 0; `kl_cov`:
            the weight of abs(x), 1 in the paper (verl 0.9.1's config has .1); `dppo_tv`, `dppo_kl`, `ipo`: cap and
            proximal, which adds proximal / 2 x^2 (prime-rl: no cap and .002, twice its kl_tau, for DPPO too); `dro`:
            proximal, verl's dro_beta. None takes the kind's.
        weights: (B,) or like `logp`, multiplies the policy term alone (see `rollout_weights`, `sequence_mask`); in
            `vespo` they are factors of w instead, their logs in [ln 1e-8, 20] (all as in TRL 1.16). In `gmpo` verl
            0.9.1 takes the geometric mean of a row's weights: give that, (B,), for its loss.
        selected: like `logp`, bool: the tokens that `clip_cov` drops or `kl_cov` holds back. None selects by the
            published constants from this call's tokens; for accumulation select once (`clip_cov_tokens`,
            `kl_cov_tokens`) and split.
        generator: draws the tokens of `clip_cov`; for no other kind.
        ref_logp: like `logp`, of the reference policy.
        ref_kl: like `logp`, for kl="full" only: a KL a token from the caller, who gets its gradient.
        kl_coef: weight of the KL to the reference. With 0 the KL of a reference that is given is only measured.
        kl: with d = ref_logp - logp: `k1` = -d, `k2` = d^2 / 2, `k3` = e^d - d - 1 (Schulman, "Approximating KL
            divergence", 2020); `k1+`, `k3+`: that value with k2's gradient (verl 0.9.1, which holds the value of k3+ as
            follows); `k3_verl`: d held in +-20 and k3 at 10 (its k3, low_var_kl); `full`: `ref_kl`.
        kl_clamp: (input, output), of `k1`, `k2` and `k3`: d is held in +-input, the KL in +-output (`math.inf`: not),
            and what is held has no gradient. `k3_verl` is `k3` with (20, 10).
        kl_corrected: multiplies the KL by the ratio, its gradient included (DeepSeek-V3.2; TRL 1.16's
            use_bias_correction_kl): s for `gspo`, `gspo_token` and `luspo`, else r.
        entropy: like `logp`, gets a gradient. Weighed by `entropy_coef`, with 0 only measured. The bonus is divided
            like the loss (verl 0.9.1); TRL 1.16's is a mean over tokens whatever the loss is divided by.
        normalizer: what the sum over tokens is divided by. `"token"`: the number of tokens in `mask`. `"sequence"`: the
            mean over non-empty sequences of their token means (empty ones count too in TRL 1.16, and for `gmpo` in verl
            0.9.1: `("sequence", B)`). `"sequence_sum"`: the number of non-empty sequences. `"constant"`: B * T (Dr.
            GRPO). A number or a one-element tensor: divides the sum over tokens; a pair `(name, number)` gives the
            denominator of the named form. With an explicit denominator, gradient accumulation over micro-batches or
            ranks equals the big batch.
        reduction: "mean": all that, one number. "none": the loss of each token, like `logp`, 0 outside the mask, for a
            reduction of one's own: it takes any upstream gradient and no normalizer.
        cu_seqlens: (S + 1,) int32 or int64, packed sequences: sequence i is tokens [cu_seqlens[i], cu_seqlens[i + 1]),
            from 0 to N without descent (checked on the CPU only: on a GPU a look would wait for it). `advantages` and
            `weights` are then (S,) or (N,), the former where both fit.

    Returns:
        `(loss, metrics)`: a scalar (reduction "none": like `logp`), and tensors without gradient, all under the mask:
        `tokens`, `clip_fraction_low` (A < 0, ratio below), `clip_fraction_high` (A > 0, above), `clip_fraction_dual`
        (A < 0, held by delta or dual_clip), `ratio_mean`, `ratio_max` (of the ratio that the kind uses; phi for
        `vespo`), `approx_kl` = mean(r - 1 - log r), `ref_kl` (mean of the KL to the reference, without `kl_coef`; 0
        without a reference) and, where `entropy` is given, `entropy` (its mean). No token in the mask gives loss 0.

    Raises:
        ValueError: an unknown name, a shape, dtype, device or stride that does not fit, 16-bit log-probs (they round
            the ratio to 1), a coefficient without its tensor, an option or a tensor that the kind has no use for.
    """
    options = PolicyOptions(
        kind=kind,
        clip=clip,
        delta=delta,
        dual_clip=dual_clip,
        constants=constants,
        kl_coef=kl_coef,
        kl=kl,
        kl_clamp=kl_clamp,
        kl_corrected=kl_corrected,
        entropy_coef=entropy_coef,
        normalizer=normalizer,
        reduction=reduction,
    )
    return policy_loss_of(
        options,
        logp,
        old_logp,
        advantages,
        mask,
        weights=weights,
        selected=selected,
        generator=generator,
        ref_logp=ref_logp,
        ref_kl=ref_kl,
        entropy=entropy,
        cu_seqlens=cu_seqlens,
    )
