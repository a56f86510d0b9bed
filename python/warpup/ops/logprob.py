"""Token log-probabilities and entropies straight from logits, one pass each way.

Contracts, numerics and bytes moved: csrc/logprob/*.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup._native import load_ops

_ops = load_ops("token_logprob", "token_logprob_backward", "token_logprob_backward_")
IGNORE_INDEX = -100


def reference_token_logprob(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    ignore_index: int = IGNORE_INDEX,
) -> Tensor | tuple[Tensor, Tensor]:
    """`token_logprob` in plain torch: the oracle of the tests (in float64) and the eager peer of the benchmarks."""
    x = logits.to(_accumulator(logits))
    x = x / (temperature.to(x.dtype).unsqueeze(-1) if isinstance(temperature, Tensor) else temperature)
    counted = (targets != ignore_index) & (x != -torch.inf).any(-1)
    x = x.masked_fill(~counted.unsqueeze(-1), 0.0)
    logp_all = torch.log_softmax(x, -1)
    logp = logp_all.gather(-1, targets.where(counted, 0).unsqueeze(-1)).squeeze(-1)
    logp = torch.where(counted, logp, 0.0)
    if not entropy:
        return logp
    plogp = logp_all.exp() * logp_all.masked_fill(logp_all == -torch.inf, 0.0)
    return logp, torch.where(counted, -plogp.sum(-1), 0.0)


def _accumulator(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


@torch.library.register_fake("warpup::token_logprob")
def _(logits, targets, temperature, temperature_scalar, ignore_index, entropy):
    rows = logits.shape[:-1]
    options = {"dtype": _accumulator(logits), "device": logits.device}
    return (
        torch.empty(rows, **options),
        torch.empty(rows if entropy else 0, **options),
        torch.empty((*rows, 2), **options),
    )


@torch.library.register_fake("warpup::token_logprob_backward")
def _(logits, targets, temperature, temperature_scalar, ignore_index, stats, entropy, grad_logp, grad_entropy):
    return torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)


@torch.library.register_fake("warpup::token_logprob_backward_")
def _(logits, targets, temperature, temperature_scalar, ignore_index, stats, entropy, grad_logp, grad_entropy):
    return None


class TokenLogprob(torch.autograd.Function):
    @staticmethod
    def forward(logits, targets, temperature, temperature_scalar, ignore_index, entropy, inplace_backward):
        return _ops.token_logprob(logits, targets, temperature, temperature_scalar, ignore_index, entropy)

    @staticmethod
    def setup_context(ctx, inputs, output):
        logits, targets, temperature, *ctx.options, ctx.inplace = inputs
        _, entropy, stats = output
        ctx.mark_non_differentiable(stats, *(() if ctx.options[-1] else (entropy,)))
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(logits, targets, temperature, stats, entropy if ctx.options[-1] else None)

    @staticmethod
    def backward(ctx, grad_logp, grad_entropy, _):
        logits, targets, temperature, stats, entropy = ctx.saved_tensors
        scalar, ignore_index, with_entropy = ctx.options
        if grad_logp is None and grad_entropy is None:
            return (None,) * 7
        backward = _ops.token_logprob_backward_ if ctx.inplace else _ops.token_logprob_backward
        grad = backward(
            logits, targets, temperature, scalar, ignore_index, stats, entropy, grad_logp,
            grad_entropy if with_entropy else None,
        )  # fmt: skip
        if not ctx.inplace:
            return (grad, *(None,) * 6)
        torch.autograd.graph.increment_version(logits)  # so that a later backward which needs the logits raises
        return (logits, *(None,) * 6)


def token_logprob(
    logits: Tensor,
    targets: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    ignore_index: int = IGNORE_INDEX,
    inplace_backward: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Log-probability of each target token, and on request the entropy of its distribution, in nats.

    `logp = log_softmax(logits / temperature)[target]` and `entropy = -sum p log p`, one pass over the logits forward
    and one backward; no [..., V] temporary in either direction but the gradient itself.

    Args:
        logits: (..., V) float32, bfloat16, float16 or float64; `-inf` entries have probability 0. V has stride 1; the
            leading dimensions may be strided (`logits[:, :-1]` is not copied).
        targets: (...,) int64 in [0, V), or `ignore_index`.
        temperature: a number above 0, or a float32 tensor, (...,) with one value a row or with one for all. It gets no
            gradient. Under `torch.compile` a number is a constant of the graph: a schedule belongs in a tensor.
        entropy: also return the entropies.
        ignore_index: rows with this target give log-prob 0, entropy 0 and a zero gradient, as do rows whose logits are
            all `-inf`.
        inplace_backward: the backward writes the gradient over `logits`, saving a tensor of its size. The logits must
            not be needed afterwards; a second backward raises.

    Returns:
        `logp` (...,) in float32 (float64 for float64 logits), or `(logp, entropy)`. Both are differentiable.

    Raises:
        ValueError: a shape, dtype, device or stride does not fit, the temperature is not above 0, or (CPU only) a
            target is out of range. On CUDA, where checking would synchronise, such a row gives NaN.

    Source: online softmax, Milakov and Gimelshein 2018 (arXiv 1805.02867).
    """
    per_row = temperature if isinstance(temperature, Tensor) else None
    if per_row is not None and per_row.numel() == 1:
        per_row = per_row.expand(targets.shape)
    args = (logits, targets, per_row, 1.0 if per_row is not None else float(temperature), ignore_index, entropy)
    if logits.requires_grad and torch.is_grad_enabled():
        logp, h, _ = TokenLogprob.apply(*args, inplace_backward)
    else:
        logp, h, _ = _ops.token_logprob(*args)
    return (logp, h) if entropy else logp
