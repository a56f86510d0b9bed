"""A policy loss straight from hidden states, with its gradients: the logits are made once and never all of them.

The rows go by in chunks. Each chunk's logits give its log-probs, those the loss's gradient to them, and that turns the
logits into their own gradient in place; two GEMMs later nothing of it is left. So the backward has nothing to make
again: three GEMMs, not four. What this takes is a loss that knows a token's gradient when it sees the token, with a
divisor known from the mask; a loss on sequence ratios goes through `linear_logprob` and `policy_loss`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup import _op
from warpup._op import accumulator, autocast, once_differentiable
from warpup.logprob.linear_logprob import (
    CHUNK_BYTES,
    SAMPLED_TOKENS,
    add_product,
    check_linear,
    linear_logprob,
    reference_linear_logprob,
    slice_logits,
)
from warpup.logprob.token_logprob import IGNORE_INDEX, SampledTokens, sampled_tokens
from warpup.policy.kinds import GIVEN, POLICY_KINDS, SEQUENCES, TOKENS, normalizer_of
from warpup.policy.masks import per_token
from warpup.policy.policy_loss import arguments_of, policy_loss
from warpup.policy.reference import reference_policy_loss


@_op.composite(
    f"linear_policy_gradients(Tensor hidden, Tensor weight, Tensor? bias, {SAMPLED_TOKENS}, Tensor old_logp, "
    "Tensor advantages, Tensor mask, Tensor? ref_logp, Tensor? weights, Tensor? penalty, Tensor token_weight, "
    "int[] choices, float[] numbers, float entropy_coef, int chunk, bool[] needs) "
    "-> (Tensor logp, Tensor entropy, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)"
)
def _gradients(hidden, weight, bias, *rest):
    given, fixed, (token_weight, choices, numbers, coef, chunk, needs) = SampledTokens(*rest[:8]), rest[8:14], rest[14:]
    rows, vocab, acc = hidden.shape[0], weight.shape[0], accumulator(hidden)
    need_hidden, need_weight, need_bias = needs
    logp = hidden.new_empty(rows, dtype=acc)
    entropy = hidden.new_empty(rows if coef else 0, dtype=acc)
    grad_hidden = hidden.new_empty(hidden.shape if need_hidden else 0)
    grad_weight = weight.new_zeros(weight.shape if need_weight else 0, dtype=acc)
    grad_bias = weight.new_zeros(vocab if need_bias else 0, dtype=acc)
    fit = 2 * CHUNK_BYTES[hidden.device.type] // max(1, vocab * hidden.element_size())
    chunk = max(1, min(rows, chunk or max(128, fit)))
    buffer = hidden.new_empty(chunk * vocab)
    for begin in range(0, rows, chunk):
        at = slice(begin, begin + chunk)
        x, part = hidden[at], given.rows(at)
        z = slice_logits(x, weight, bias, 0, vocab, buffer)
        found, h, _, _, stats = _op.ops.token_logprob(z, *part, bool(coef), False, False)
        logp[at] = found
        if coef:
            entropy[at] = h
        if not any(needs):
            continue
        tokens = [None if t is None else t[at].unsqueeze(0) for t in fixed]
        arguments = (found.unsqueeze(0), *tokens, None, None, None)
        _, _, row_state = _op.ops.policy_loss(*arguments, None, choices, numbers)
        one = found.new_ones(())
        g = _op.ops.policy_loss_backward(*arguments, choices, numbers, row_state, one)[0].squeeze(0) * token_weight[at]
        grad_entropy = None
        if coef:
            grad_entropy = -coef * token_weight[at]
        saved = (stats, h if coef else None, None, g, grad_entropy, None, None)
        _op.ops.token_logprob_backward_(z, *part, *saved, 0, vocab)
        if need_hidden:
            torch.mm(z, weight, out=grad_hidden[at])
        if need_weight:
            add_product(grad_weight, z.t(), x)
        if need_bias:
            grad_bias += z.sum(0, dtype=acc)
    return logp, entropy, grad_hidden, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


@_op.fake("linear_policy_gradients")
def _(hidden, weight, bias, *rest):
    coef, needs, rows = rest[-3], rest[-1], hidden.shape[0]
    shapes = zip((hidden.shape, weight.shape, weight.shape[:1]), needs, strict=True)
    gradients = (torch.empty(s if need else 0, dtype=hidden.dtype, device=hidden.device) for s, need in shapes)
    values = (hidden.new_empty(n, dtype=accumulator(hidden)) for n in (rows, rows if coef else 0))
    return *values, *gradients


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
    def backward(ctx, grad_loss):
        if ctx.gradients is None:
            raise RuntimeError(
                "linear_policy_loss: its gradients are used up, a second backward needs a second forward"
            )
        gradients, ctx.gradients = ctx.gradients, None
        scaled = (g.mul_(grad_loss) if need else None for g, need in zip(gradients, ctx.needs_input_grad, strict=False))
        return (*scaled, *(None,) * 4)


def reference_linear_policy_loss(
    hidden, weight, targets, old_logp, advantages, mask, *, bias=None, temperature=1.0, chunk=None, entropy_coef=0.0,
    **options,
):  # fmt: skip
    """`linear_policy_loss` in plain torch: all logits, then the references of its two parts."""
    logp, entropy = reference_linear_logprob(
        hidden, weight, targets.masked_fill(mask == 0, IGNORE_INDEX), bias=bias, temperature=temperature, entropy=True
    )
    options |= {"entropy": entropy, "entropy_coef": entropy_coef} if entropy_coef else {}
    return reference_policy_loss(logp, old_logp, advantages, mask, **options)


def token_weights(mask: Tensor, normalizer, kind: str, like: Tensor) -> Tensor:
    """(B, T): what each token's loss is multiplied by on its way into the sum; 0 outside the mask."""
    per_sequence, denominator, value = normalizer_of(normalizer, kind)
    count = mask.sum(-1, keepdim=True)
    divisor = {TOKENS: count.sum(), SEQUENCES: (count > 0).sum(), GIVEN: value}.get(denominator, mask.numel())
    divisor = torch.as_tensor(divisor, dtype=like.dtype, device=like.device) * (count if per_sequence else 1)
    return (mask / divisor).masked_fill(~mask, 0.0)


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
    chunk: int | None = None,
    kind: str = "grpo",
    normalizer: str | float | Tensor | tuple | None = None,
    entropy_coef: float = 0.0,
    **options,
) -> tuple[Tensor, dict[str, Tensor]]:
    """`policy_loss(token_logprob(hidden @ weight.T + bias, targets), ...)` without the logits, gradients included.

    A kind whose ratio is a token's makes the logits once: three GEMMs, as many as with all logits in memory. The others
    (and `clip_cov` and `kl_cov` without `selected`, and kl="full") go through `linear_logprob`: four. So does float16,
    whose gradients need the loss's scale before they are rounded, while here they are made in the forward.

    Args:
        hidden: (B, T, H) float32, bfloat16, float16 or float64.
        weight, bias, temperature: as in `linear_logprob`.
        targets: (B, T) int64 in [0, V) where the mask is true; anything elsewhere.
        old_logp, advantages, mask, kind, normalizer, options: as in `policy_loss` (padded form).
        entropy_coef: weight of the entropy bonus; the entropy is taken from the same logits.
        chunk: rows of logits alive at once, where they are made once; None: as many as make 64 MiB on a CPU, 1024 on a
            GPU, 128 at least.

    Returns:
        `(loss, metrics)`, as `policy_loss`. One backward only: it scales gradients that are there already,
        and that are constants to a second derivative.

    Raises:
        ValueError: as `linear_logprob` and `policy_loss`.
    """
    op = "linear_policy_loss"
    hidden, weight, bias = autocast(hidden, weight, bias)
    check_linear(op, hidden, weight, bias, targets)
    if hidden.dim() != 3:
        raise ValueError(f"{op}: hidden must be (B, T, H), got {tuple(hidden.shape)}")
    for name, tensor in (
        ("old_logp", old_logp),
        ("mask", mask),
        *((k, options.get(k)) for k in ("ref_logp", "selected")),
    ):
        if tensor is not None and tensor.shape != targets.shape:
            raise ValueError(f"{op}: {name} must have shape {tuple(targets.shape)}, got {tuple(tensor.shape)}")
    if kind not in POLICY_KINDS:
        raise ValueError(f"{op}: kind must be one of {tuple(POLICY_KINDS)}, got {kind!r}")
    if options.pop("cu_seqlens", None) is not None or options.pop("entropy", None) is not None:
        raise ValueError(f"{op}: takes padded sequences, and makes the entropy itself")
    if chunk is not None and chunk < 1:
        raise ValueError(f"{op}: chunk must be at least 1, got {chunk}")
    acc = accumulator(hidden)
    old_logp, advantages = (t.detach().to(acc) for t in (old_logp, advantages))
    if options.get("ref_logp") is not None:
        options["ref_logp"] = options["ref_logp"].detach().to(acc)
    on = mask != 0
    targets = targets.masked_fill(~on, IGNORE_INDEX)
    selects = kind in ("clip_cov", "kl_cov") and options.get("selected") is None
    in_one_go = POLICY_KINDS[kind].level in ("one", "token") and hidden.dtype != torch.float16
    if not in_one_go or selects or options.get("kl") == "full":
        found = linear_logprob(hidden, weight, targets, bias=bias, temperature=temperature, entropy=bool(entropy_coef))
        logp, entropy = found if entropy_coef else (found, None)
        options |= {"entropy": entropy, "entropy_coef": entropy_coef} if entropy_coef else {}
        return policy_loss(logp, old_logp, advantages, mask, kind=kind, normalizer=normalizer, **options)

    fixed, _, (_, _, choices, numbers) = arguments_of(
        old_logp, old_logp, advantages, mask, kind=kind, normalizer=1.0, **options
    )
    each = (None if t is None else per_token(t, old_logp).reshape(-1).contiguous() for t in fixed)
    given = sampled_tokens(op, weight.shape[0], targets, temperature, IGNORE_INDEX).flattened()
    tensors = (hidden.reshape(-1, hidden.shape[-1]), weight, bias)
    needs = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors]
    weight_of_token = token_weights(on, normalizer, kind, old_logp).reshape(-1)
    logp, entropy, *gradients = torch.ops.warpup.linear_policy_gradients(
        *tensors, *given, *each, weight_of_token, choices, numbers, float(entropy_coef), chunk or 0, needs
    )
    if entropy_coef:
        options |= {"entropy": entropy.view(targets.shape), "entropy_coef": entropy_coef}
    loss, metrics = policy_loss(
        logp.view(targets.shape), old_logp, advantages, mask, kind=kind, normalizer=normalizer, **options
    )
    return (GivenGradients.apply(*tensors, loss, *gradients) if any(needs) else loss), metrics
