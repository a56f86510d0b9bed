"""A policy loss straight from hidden states: the logits are never all there.

A loss that knows a token's gradient when it sees the token, with a denominator known from the mask, makes them once
(linear_policy_gradients.py). A loss on sequence ratios goes through `linear_logprob` and `policy_loss`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from warpup._arguments import explained
from warpup._op import accumulator, autocast
from warpup._transforms import beyond_reverse_mode, functorch, once_differentiable, transformed
from warpup.logprob.linear_logprob import check_cu_seqlens, check_linear, linear_logprob, reference_linear_logprob
from warpup.logprob.replay_logprob import check_alone
from warpup.logprob.token_logprob import IGNORE_INDEX, sampled_tokens
from warpup.policy.kinds import POLICY_KINDS, PolicyOptions
from warpup.policy.linear_policy_gradients import TENSORS
from warpup.policy.policy_loss import policy_loss_of, tensors_of
from warpup.policy.reference import reference_policy_loss
from warpup.policy.rows import per_token, row_sums


class GivenGradients(torch.autograd.Function):
    """A loss whose gradients are there already; the backward scales them where they are, so there can be one only."""

    @staticmethod
    def forward(hidden, weight, bias, loss, *gradients):
        return loss.clone()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.gradients = inputs[4:]

    @staticmethod
    @once_differentiable
    def backward(ctx, saved, grad_loss):
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_policy_loss: its gradients are used up, a second backward needs a second forward"
            )
        gradients, ctx.gradients = ctx.gradients, None
        # vmap, also that of `torch.autograd.grad(..., is_grads_batched=True)`, may have several grad_loss for these.
        legacy = functorch.is_legacy_batchedtensor
        several = transformed() or (not torch.compiler.is_compiling() and legacy(grad_loss))
        times = Tensor.mul if several else Tensor.mul_
        needed = zip(gradients, ctx.needs_input_grad, strict=False)
        scaled = (times(g, grad_loss) if need else None for g, need in needed)
        return (*scaled, *(None,) * 4)


def reference_linear_policy_loss(
    hidden, weight, targets, old_logp, advantages, mask, *, bias=None, temperature=1.0, scale=1.0, softcap=None,
    logit_delta=0.0, token_set=None, kept=None, chunk=None, entropy_coef=0.0, **options,
):  # fmt: skip
    """`linear_policy_loss` in plain torch: all logits, then the references of its two parts."""
    logp, entropy = reference_linear_logprob(
        hidden, weight, targets.masked_fill(mask == 0, IGNORE_INDEX), bias=bias, temperature=temperature, scale=scale,
        softcap=softcap, delta=logit_delta, token_set=token_set, kept=kept, entropy=True,
    )  # fmt: skip
    options |= {"entropy": entropy, "entropy_coef": entropy_coef} if entropy_coef else {}
    return reference_policy_loss(logp, old_logp, advantages, mask, **options)


def token_weights(mask: Tensor, options: PolicyOptions, like: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """(B, T) or (N,): what each token's loss is multiplied by on its way into the sum; 0 outside the mask."""
    normalizer, denominator = options.division()
    tokens = row_sums(mask.long(), cu_seqlens)
    if denominator is None:
        counted = {"token": tokens.sum(), "constant": mask.numel()}
        denominator = counted[normalizer] if normalizer in counted else (tokens > 0).sum()
    denominator = torch.as_tensor(denominator, dtype=like.dtype, device=like.device)
    if normalizer == "sequence":
        denominator = denominator * per_token(tokens, like, cu_seqlens)
    return (mask / denominator).masked_fill(~mask, 0.0)


@explained
def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
    logit_delta: float | Tensor = 0.0,
    token_set: Sequence[int] | Tensor | None = None,
    kept: tuple[Tensor, Tensor] | None = None,
    cu_seqlens: Tensor | None = None,
    chunk: int | None = None,
    kind: str = "grpo",
    normalizer: str | float | Tensor | tuple | None = None,
    entropy_coef: float = 0.0,
    **options,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`policy_loss(token_logprob(hidden @ weight.T + bias, targets), ...)` without the logits, gradients included.

    A kind whose ratio is a token's makes the logits once: three GEMMs, as many as with all logits in memory. The others
    (`clip_cov` and `kl_cov` without `selected`, kl="full", reduction="none") go through `linear_logprob`: four. So does
    float16, whose gradients need the loss's scale before they are rounded, while here they are made in the forward.

    Args:
        hidden: (B, T, H) float32, bfloat16, float16 or float64; beside cu_seqlens (N, H).
        weight, bias, temperature, scale, softcap, token_set: as in `linear_logprob`.
        logit_delta: what a schedule adds to the logits of token_set, `delta` there.
        kept: the tokens that the sampler's filter left for each row of hidden, as in `replay_logprob`: their logits
            alone are made, once, by `linear_logprob`, whatever the kind. Rows outside the mask need no tokens.
        targets: (B, T) or (N,) int64 in [0, V) where the mask is true, the token that each row of hidden predicts;
            anything elsewhere.
        old_logp, advantages, mask, kind, normalizer, cu_seqlens, options: as in `policy_loss`.
        entropy_coef: weight of the entropy bonus; the entropy is taken from the same logits.
        chunk: rows of logits alive at once; a kind that makes them twice has as many numbers alive, of all rows. None:
            as many as make 64 MiB on a CPU, 1024 on a GPU, 128 at least.

    Returns:
        `(loss, metrics)`, as `policy_loss`. One backward only: it scales gradients that are there already,
        and that are constants to a second derivative.

    Raises:
        ValueError: as `linear_logprob` and `policy_loss`.
    """
    names = PolicyOptions.__dataclass_fields__.keys() & options.keys()
    policy = PolicyOptions(
        kind=kind, normalizer=normalizer, entropy_coef=entropy_coef, **{name: options.pop(name) for name in names}
    )
    return linear_policy_loss_of(
        policy, hidden, weight, targets, old_logp, advantages, mask, bias=bias, temperature=temperature, scale=scale,
        softcap=softcap, logit_delta=logit_delta, token_set=token_set, kept=kept, cu_seqlens=cu_seqlens, chunk=chunk,
        **options,
    )  # fmt: skip


def linear_policy_loss_of(
    policy: PolicyOptions,
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    old_logp: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
    logit_delta: float | Tensor = 0.0,
    token_set: Sequence[int] | Tensor | None = None,
    kept: tuple[Tensor, Tensor] | None = None,
    cu_seqlens: Tensor | None = None,
    chunk: int | None = None,
    **options,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`linear_policy_loss` with the options of the loss in one object, for callers that keep them; `options` are the
    tensors that it may read."""
    op, entropy_coef = "linear_policy_loss", policy.entropy_coef
    hidden, weight, bias = autocast(hidden, weight, bias)
    check_linear(op, hidden, weight, bias, targets)
    if hidden.dim() != (3 if cu_seqlens is None else 2):
        raise ValueError(f"{op}: hidden must be (B, T, H), or (N, H) with cu_seqlens, got {tuple(hidden.shape)}")
    if cu_seqlens is not None:
        check_cu_seqlens(op, targets, cu_seqlens)
        if policy.division() == ("constant", None) and policy.reduction == "mean":
            raise ValueError(f"{op}: normalizer 'constant' needs a number beside cu_seqlens: ('constant', number)")
    for name, tensor in (
        ("old_logp", old_logp),
        ("mask", mask),
        *((k, options.get(k)) for k in ("ref_logp", "selected")),
    ):
        if tensor is not None and tensor.shape != targets.shape:
            raise ValueError(f"{op}: {name} must have shape {tuple(targets.shape)}, got {tuple(tensor.shape)}")
    if options.pop("entropy", None) is not None:
        raise ValueError(f"{op}: makes the entropy itself, so it takes none")
    if chunk is not None and chunk < 1:
        raise ValueError(f"{op}: chunk must be at least 1, got {chunk}")
    if kept is not None:
        check_alone(op, chunk=chunk is not None)
    acc = accumulator(hidden)
    old_logp, advantages = (t.detach().to(acc) for t in (old_logp, advantages))
    if options.get("ref_logp") is not None:
        options["ref_logp"] = options["ref_logp"].detach().to(acc)
    on = mask != 0
    targets = targets.masked_fill(~on, IGNORE_INDEX)
    selects = policy.kind in ("clip_cov", "kl_cov") and options.get("selected") is None
    in_one_go = POLICY_KINDS[policy.kind].level in ("one", "token") and hidden.dtype != torch.float16
    in_one_go = in_one_go and policy.reduction == "mean"  # else the backward alone knows what the tokens weigh
    if not in_one_go or selects or policy.kl == "full" or kept is not None or beyond_reverse_mode():
        vocab, rows = weight.shape[0], max(1, targets.numel())
        columns = None if chunk is None else max(1, min(chunk, rows) * vocab // rows)
        found = linear_logprob(
            hidden, weight, targets, bias=bias, temperature=temperature, scale=scale, softcap=softcap,
            delta=logit_delta, token_set=token_set, kept=kept, entropy=bool(entropy_coef), chunk=columns,
        )  # fmt: skip
        logp, options["entropy"] = found if isinstance(found, tuple) else (found, None)
        return policy_loss_of(policy, logp, old_logp, advantages, mask, cu_seqlens=cu_seqlens, **options)

    options["cu_seqlens"] = cu_seqlens
    inputs = tensors_of(policy, old_logp, old_logp, advantages, mask, **options)  # its logp is made in the op
    cu_seqlens = inputs["cu_seqlens"]
    tokens = {
        name: None if (t := inputs[name]) is None else per_token(t, old_logp, cu_seqlens).reshape(-1).contiguous()
        for name in TENSORS
    }
    operands = {"hidden": hidden.reshape(-1, hidden.shape[-1]), "weight": weight, "bias": bias}
    needs = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in operands.values()]
    sampled = sampled_tokens(
        op, weight.shape[0], targets, temperature, IGNORE_INDEX, logit_delta, token_set, scale=scale, softcap=softcap
    )
    logp, entropy, *gradients = torch.ops.warpup.linear_policy_gradients(
        **operands,
        **sampled.flattened(targets.dim())._asdict(),
        **tokens,
        **policy.raw(),
        token_weight=token_weights(on, policy, old_logp, cu_seqlens).reshape(-1),
        chunk=chunk or 0,
        needs=needs,
    )
    options["entropy"] = entropy.view(targets.shape) if entropy_coef else None
    loss, metrics = policy_loss_of(policy, logp.view(targets.shape), old_logp, advantages, mask, **options)
    return (GivenGradients.apply(*operands.values(), loss, *gradients) if any(needs) else loss), metrics
