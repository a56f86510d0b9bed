"""The raw op of `linear_policy_loss`: log-probs from hidden states, and the gradients of the loss with them.

The rows are taken in chunks. A chunk's logits give its log-probs, these the gradient of the loss to them, and that
turns the logits into their own gradient in place; two products later the chunk is done with. So the backward has
nothing to make again: three products, not four.
"""

from __future__ import annotations

import torch

from warpup import _op
from warpup._op import accumulator
from warpup._products import add_mm, mm
from warpup.logprob.linear_logprob import CHUNK_BYTES, SAMPLED_TOKENS, slice_logits
from warpup.logprob.token_logprob import SampledTokens
from warpup.policy.policy_loss import OPTIONS, schema_of

TENSORS = ("old_logp", "advantages", "mask", "ref_logp", "weights", "penalty")  # what the loss reads at each token
OF_LOSS = schema_of((*TENSORS, *OPTIONS))


@_op.composite(
    f"linear_policy_gradients(Tensor hidden, Tensor weight, Tensor? bias, {SAMPLED_TOKENS}, {OF_LOSS}, "
    "Tensor token_weight, int chunk, bool[] needs) "
    "-> (Tensor logp, Tensor entropy, Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)"
)
def _gradients(*arguments):
    """The log-probs and, of those of hidden, weight and bias that `needs` names, the gradients of the sum of
    token_weight * loss; the entropies where they are part of the loss."""
    named = _named(arguments)
    hidden, weight, bias, token_weight, chunk = (
        named[name] for name in ("hidden", "weight", "bias", "token_weight", "chunk")
    )
    need_hidden, need_weight, need_bias = named["needs"]
    sampled = SampledTokens(*(named[name] for name in SampledTokens._fields))
    # A token's own loss: what it is divided by is in token_weight, and its entropy does not pass through the log-prob.
    options = {name: named[name] for name in OPTIONS}
    options |= {"entropy_coef": 0.0, "normalizer": "token", "denominator_scalar": 1.0}
    entropy_coef = named["entropy_coef"]

    rows, vocab, acc = hidden.shape[0], weight.shape[0], accumulator(hidden)
    logp = hidden.new_empty(rows, dtype=acc)
    entropy = hidden.new_empty(rows if entropy_coef else 0, dtype=acc)
    grad_hidden = hidden.new_empty(hidden.shape if need_hidden else 0)
    grad_weight = weight.new_zeros(weight.shape if need_weight else 0, dtype=acc)
    grad_bias = weight.new_zeros(vocab if need_bias else 0, dtype=acc)
    fit = 2 * CHUNK_BYTES[hidden.device.type] // max(1, vocab * hidden.element_size())
    chunk = max(1, min(rows, chunk or max(128, fit)))
    buffer = hidden.new_empty(chunk * vocab)
    for begin in range(0, rows, chunk):
        at = slice(begin, begin + chunk)

        # Logits, log-probs and entropies.
        x, part = hidden[at], sampled.rows(at)
        z = slice_logits(x, weight, bias, 0, vocab, buffer)
        logp_at, entropy_at, _, _, stats = _op.ops.token_logprob(z, *part, bool(entropy_coef), False, False)
        logp[at] = logp_at
        if entropy_coef:
            entropy[at] = entropy_at
        if not any(named["needs"]):
            continue

        # Their gradients, from the loss of these tokens as if they were one sequence.
        tokens = {name: t if (t := named[name]) is None else t[at].unsqueeze(0) for name in TENSORS}
        of_loss = dict.fromkeys(("ref_kl", "entropy", "upstream", "cu_seqlens")) | tokens | options
        of_loss["logp"] = logp_at.unsqueeze(0)
        _, _, row_state, _ = _op.ops.policy_loss(**of_loss, denominator=None, with_losses=False)
        grad_logp, _, _ = _op.ops.policy_loss_backward(**of_loss, row_state=row_state, grad_loss=logp_at.new_ones(()))
        grad_logp = grad_logp.squeeze(0) * token_weight[at]
        grad_entropy = -entropy_coef * token_weight[at] if entropy_coef else None

        # The logits become their gradient, which goes on to hidden, weight and bias.
        saved = (stats, entropy_at if entropy_coef else None, None, grad_logp, grad_entropy, None, None)
        _op.ops.token_logprob_backward_(z, *part, *saved, 0, vocab)
        if need_hidden:
            mm(z, weight, grad_hidden[at])
        if need_weight:
            add_mm(grad_weight, z.t(), x)
        if need_bias:
            grad_bias += z.sum(0, dtype=acc)
    return logp, entropy, grad_hidden, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


_NAMES = tuple(a.name for a in torch.ops.warpup.linear_policy_gradients.default._schema.arguments)


def _named(arguments: tuple) -> dict:
    """The op's arguments by name."""
    return dict(zip(_NAMES, arguments, strict=True))


@_op.fake("linear_policy_gradients")
def _(*arguments):
    named = _named(arguments)
    hidden, weight = named["hidden"], named["weight"]
    shapes = zip((hidden.shape, weight.shape, weight.shape[:1]), named["needs"], strict=True)
    gradients = (torch.empty(s if need else 0, dtype=hidden.dtype, device=hidden.device) for s, need in shapes)
    sizes = (hidden.shape[0], hidden.shape[0] if named["entropy_coef"] else 0)
    values = (hidden.new_empty(n, dtype=accumulator(hidden)) for n in sizes)
    return *values, *gradients
