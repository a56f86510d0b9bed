"""Token log-probabilities straight from hidden states: `hidden @ weight.T` never exists as a whole.

The vocabulary is taken in slices: one library GEMM makes a slice of the logits, the kernels of `token_logprob` fold it
into each row's running softmax. The backward makes each slice again, writes its gradient over it, and two more GEMMs
turn that into the gradients. A slice holds all rows, so the weight's gradient is one product over all of them,
accumulated where the GEMM accumulates, and only the hidden states' gradient is summed over slices, in float32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from warpup import _autograd, _op
from warpup._arguments import explained
from warpup._op import accumulator, autocast
from warpup._products import add_mm, library_has, mm
from warpup.logprob.kept import check_kept, kept_logits
from warpup.logprob.replay_logprob import check_alone, kept_logprob
from warpup.logprob.token_logprob import (
    IGNORE_INDEX,
    SampledTokens,
    asked_for,
    outputs_like,
    reference_token_logprob,
    sampled_tokens,
)

CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}  # of logits alive at once

# The fields of SampledTokens in a raw op's schema.
SAMPLED_TOKENS = (
    "Tensor targets, Tensor? temperature, float temperature_scalar, int ignore_index, Tensor? token_set, "
    "Tensor? delta, float delta_scalar, Tensor? kept_mask, float scale, float softcap"
)


def columns(hidden: Tensor, vocab: int, chunk: int) -> int:
    """Columns of a slice: `chunk`, or if that is 0, equal slices of about CHUNK_BYTES."""
    if chunk:
        return min(chunk, vocab)
    fit = CHUNK_BYTES[hidden.device.type] // (max(hidden.shape[0], 1) * hidden.element_size())
    parts = max(1, -(-vocab // max(fit, 1024)))
    return min(vocab, -(-vocab // parts) + 63 & ~63)


def slices(tokens: SampledTokens, vocab: int, chunk: int) -> Iterator[tuple[int, int, SampledTokens]]:
    """(begin, end, the arguments as they apply to columns [begin, end)) for each slice of the vocabulary."""
    for begin in range(0, vocab, chunk):
        end = min(vocab, begin + chunk)
        yield begin, end, tokens.columns(begin, end)


def slice_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, begin: int, end: int, buffer: Tensor) -> Tensor:
    """Columns [begin, end) of the logits, in `buffer`."""
    z = buffer[: hidden.shape[0] * (end - begin)].view(hidden.shape[0], end - begin)
    return mm(hidden, weight[begin:end].t(), z, bias if bias is None else bias[begin:end])


@_op.composite("linear_logprob", on="CUDA")  # csrc/logprob/linear_logprob_torch.cpp is the same on a CPU
def _forward(hidden, weight, bias, *rest):
    *tokens, chunk, with_entropy, with_lse, with_sum_p2, _ = rest
    rows, vocab = hidden.shape[0], weight.shape[0]
    *results, stats = outputs_like(hidden, (rows,), tokens[0], with_entropy, with_lse, with_sum_p2)
    state = stats.new_empty(rows, 4 + results[0].shape[1:].numel())
    chunk = columns(hidden, vocab, chunk)
    buffer = hidden.new_empty(rows * chunk)
    for begin, end, part in slices(SampledTokens(*tokens), vocab, chunk):
        z = slice_logits(hidden, weight, bias, begin, end, buffer)
        _op.ops.token_logprob_slice_(z, *part, begin, vocab, state, *results, stats)
    return *results, stats


@_op.fake("linear_logprob")
def _(hidden, weight, bias, *rest):
    return outputs_like(hidden, hidden.shape[:1], rest[0], *rest[-4:-1])


@_op.composite(
    f"linear_logprob_backward(Tensor hidden, Tensor weight, Tensor? bias, {SAMPLED_TOKENS}, int chunk, Tensor stats, "
    "Tensor? entropy, Tensor? sum_p2, Tensor? grad_logp, Tensor? grad_entropy, Tensor? grad_lse, Tensor? grad_sum_p2, "
    "bool[] needs) -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)"
)
def _backward(hidden, weight, bias, *rest):
    """A gradient that is not needed comes back without elements."""
    fields = len(SampledTokens._fields)
    tokens, chunk, *saved_and_grads, needs = SampledTokens(*rest[:fields]), *rest[fields:]
    rows, vocab = hidden.shape[0], weight.shape[0]
    need_hidden, need_weight, need_bias = needs
    grad_hidden = hidden.new_zeros(hidden.shape if need_hidden else 0, dtype=accumulator(hidden))
    grad_weight = torch.empty(weight.shape if need_weight else 0, dtype=weight.dtype, device=weight.device)
    grad_bias = weight.new_empty(vocab if need_bias else 0)
    chunk = columns(hidden, vocab, chunk)
    buffer = hidden.new_empty(rows * chunk)
    for begin, end, part in slices(tokens, vocab, chunk):
        z = slice_logits(hidden, weight, bias, begin, end, buffer)
        _op.ops.token_logprob_backward_(z, *part, *saved_and_grads, begin, vocab)
        if need_hidden:
            add_mm(grad_hidden, z, weight[begin:end])
        if need_weight:
            mm(z.t(), hidden, grad_weight[begin:end])
        if need_bias:
            torch.sum(z, 0, out=grad_bias[begin:end])
    return grad_hidden.to(hidden.dtype), grad_weight, grad_bias


_linear_logprob = _autograd.differentiable("linear_logprob", strided=True)


def check_cu_seqlens(op: str, targets: Tensor, cu_seqlens: Tensor) -> None:
    """Raises ValueError unless these are the limits of packed sequences of targets (N,); how they rise is looked at on
    the CPU only, since on a GPU that would synchronise."""
    if (
        targets.dim() != 1
        or cu_seqlens.dim() != 1
        or cu_seqlens.is_floating_point()
        or cu_seqlens.device != targets.device
    ):
        raise ValueError(
            f"{op}: with cu_seqlens, (S + 1,) integers on {targets.device}, targets must be (N,), got "
            f"{tuple(cu_seqlens.shape)} {cu_seqlens.dtype} on {cu_seqlens.device} and {tuple(targets.shape)}"
        )
    if not (targets.is_cuda or torch.compiler.is_compiling()):
        cu = cu_seqlens.tolist()
        if not cu or cu[0] != 0 or cu[-1] != len(targets) or cu != sorted(cu):
            raise ValueError(f"{op}: cu_seqlens must rise from 0 to {len(targets)}, got {cu}")


def next_tokens(ids: Tensor, cu_seqlens: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """The targets of packed sequences: each row's the next id of its sequence, of a sequence's last row none.

    ids (N,) int64; cu_seqlens (S + 1,) from 0 to N, sequence i is rows [cu_seqlens[i], cu_seqlens[i + 1]). Raises
    ValueError on others, but on a GPU, where checking would synchronise."""
    check_cu_seqlens("linear_logprob", ids, cu_seqlens)
    shifted = torch.cat([ids[1:], ids.new_full((min(1, len(ids)),), ignore_index)])
    starts = torch.zeros(len(ids) + 1, dtype=torch.bool, device=ids.device).index_fill(0, cu_seqlens.long(), True)
    return shifted.masked_fill(starts[1:], ignore_index)


def reference_linear_logprob(hidden, weight, targets, *, bias=None, chunk=None, cu_seqlens=None, **options):
    """`linear_logprob` in plain torch: all logits, then `reference_token_logprob`."""
    if cu_seqlens is not None:
        targets = next_tokens(targets, cu_seqlens, options.get("ignore_index", IGNORE_INDEX))
    return reference_token_logprob(torch.nn.functional.linear(hidden, weight, bias), targets, **options)


@overload
def linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = ..., temperature: float | Tensor = ...,
    scale: float = ..., softcap: float | None = ..., entropy: Literal[False] = ..., lse: Literal[False] = ...,
    sum_p2: Literal[False] = ..., delta: float | Tensor = ..., token_set: Sequence[int] | Tensor | None = ...,
    kept_mask: Tensor | None = ..., kept: tuple[Tensor, Tensor] | None = ..., ignore_index: int = ...,
    cu_seqlens: Tensor | None = ..., chunk: int | None = ...,
) -> Tensor: ...  # fmt: skip
@overload
def linear_logprob(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, bias: Tensor | None = ..., temperature: float | Tensor = ...,
    scale: float = ..., softcap: float | None = ..., entropy: bool = ..., lse: bool = ..., sum_p2: bool = ...,
    delta: float | Tensor = ..., token_set: Sequence[int] | Tensor | None = ..., kept_mask: Tensor | None = ...,
    kept: tuple[Tensor, Tensor] | None = ..., ignore_index: int = ..., cu_seqlens: Tensor | None = ...,
    chunk: int | None = ...,
) -> Tensor | tuple[Tensor, ...]: ...  # fmt: skip


@explained
def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    scale: float = 1.0,
    softcap: float | None = None,
    entropy: bool = False,
    lse: bool = False,
    sum_p2: bool = False,
    delta: float | Tensor = 0.0,
    token_set: Sequence[int] | Tensor | None = None,
    kept_mask: Tensor | None = None,
    kept: tuple[Tensor, Tensor] | None = None,
    ignore_index: int = IGNORE_INDEX,
    cu_seqlens: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """`token_logprob(hidden @ weight.T + bias, targets)`, and its replay of a sampler, without the logits.

    Time: the GEMMs of the plain way and one more, for the logits that the backward makes again. Memory beyond inputs
    and gradients: one slice of the logits, and for 16-bit inputs the gradient of `hidden` in float32. With `kept`, K
    tokens in all, only their logits are made, forward and backward: time and memory go with K in the place of N * V
    (for 16-bit inputs the weight's gradient exists in float32 first).

    Args:
        hidden: (..., H) float32, bfloat16, float16 or float64; under autocast all three are cast to its type.
        weight: (V, H), of the same dtype: an output layer's weight, tied or not; frozen (no gradient, and no work for
            one), or composed, as with LoRA.
        targets: (...,) int64 in [0, V), or `ignore_index`; or (..., K) for K log-probs a row; beside `cu_seqlens` the
            packed ids (N,) themselves.
        bias: (V,), of the same dtype.
        temperature, scale, softcap, entropy, lse, sum_p2, ignore_index: as in `token_logprob`.
        delta, token_set, kept_mask, kept: as in `replay_logprob`.
        cu_seqlens: (S + 1,) int32 or int64 from 0 to N, of packed sequences: each row is scored for the next id of its
            sequence, and the last row of a sequence, which has none, gives zeros.
        chunk: columns of the vocabulary in a slice; None: as many as make 32 MiB of logits on a CPU, 512 on a GPU.

    Returns:
        `logp` in the shape of `targets`, in float32 (float64 for float64), or a tuple of it and what was asked for,
        each (...,), in the order (logp, entropy, lse, sum_p2). Gradients of all of them reach hidden, weight and bias.
        For 16-bit inputs the logits are rounded to 16 bits, as the plain way rounds them.

    Raises:
        ValueError: a shape, dtype or device does not fit, a chunk beside kept, and as `token_logprob` and
            `replay_logprob`.
    """
    hidden, weight, bias = autocast(hidden, weight, bias)
    check_linear("linear_logprob", hidden, weight, bias, targets, several=kept is None and cu_seqlens is None)
    if cu_seqlens is not None:
        targets = next_tokens(targets, cu_seqlens, ignore_index)
    vocab, lead = weight.shape[0], hidden.shape[:-1]
    tokens = sampled_tokens(
        "linear_logprob", vocab, targets, temperature, ignore_index, delta, token_set, kept_mask, scale, softcap,
        lead=len(lead),
    )  # fmt: skip
    flat = hidden
    if len(lead) != 1:
        tokens, flat = tokens.flattened(len(lead)), hidden.reshape(lead.numel(), hidden.shape[-1])
    if chunk is not None and chunk < 1:
        raise ValueError(f"linear_logprob: chunk must be at least 1, got {chunk}")
    if kept is not None:
        check_alone("linear_logprob", kept_mask=kept_mask is not None, chunk=chunk is not None)
        kept = check_kept("linear_logprob", kept, len(flat), vocab, hidden.device)
        logits = kept_logits(flat, weight, bias, *kept)
        return kept_logprob("linear_logprob", logits, kept, tokens, lead, vocab, entropy, lse, sum_p2)
    widen = not library_has(hidden.dtype, hidden.device)
    logp, *others, _ = _linear_logprob(flat, weight, bias, *tokens, chunk or 0, entropy, lse, sum_p2, widen)
    if len(lead) != 1:
        logp, others = logp.view(targets.shape), [r if r is None else r.view(lead) for r in others]
    return asked_for((logp, *others), entropy, lse, sum_p2)


def check_linear(
    op: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, *, several: bool = False
) -> None:
    """Raises ValueError, before any product is made, if the operands do not fit each other; `several`: a row may have
    more than one target."""
    of_hidden, of_weight, of_targets = hidden.shape, weight.shape, targets.shape
    if len(of_hidden) < 1 or len(of_weight) != 2 or of_hidden[-1] != of_weight[1]:
        raise ValueError(
            f"{op}: hidden must be (..., H) and weight (V, H), got {tuple(of_hidden)} and {tuple(of_weight)}"
        )
    lead = of_hidden[:-1]
    if targets.dtype != torch.int64 or not (of_targets == lead or (several and of_targets[:-1] == lead)):
        raise ValueError(
            f"{op}: targets must be int64 of shape {tuple(lead)}, got {targets.dtype} of shape {tuple(of_targets)}"
        )
    if bias is not None and bias.shape != of_weight[:1]:
        raise ValueError(f"{op}: bias must have shape ({of_weight[0]},), got {tuple(bias.shape)}")
    dtype, device = hidden.dtype, hidden.device
    if device.type not in CHUNK_BYTES:
        raise ValueError(f"{op}: warpup has kernels for CPU and CUDA tensors only, hidden is on {device}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype != dtype or tensor.device != device):
            raise ValueError(
                f"{op}: {name} must be {dtype} on {device} like hidden, got {tensor.dtype} on {tensor.device}"
            )
