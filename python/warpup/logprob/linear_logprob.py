"""Token log-probabilities straight from hidden states: `hidden @ weight.T` never exists as a whole.

The vocabulary goes by in slices: one library GEMM makes a slice of the logits, the kernels of `token_logprob` fold it
into each row's running softmax. The backward makes each slice again, writes its gradient over it, and two more GEMMs
turn that into the gradients. A slice holds all rows, so the weight's gradient is one product over all of them,
accumulated where the GEMM accumulates, and only the hidden states' gradient is summed over slices, in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from warpup import _op
from warpup._op import accumulator, autocast, once_differentiable
from warpup.logprob.token_logprob import IGNORE_INDEX, Under, Wanted, reference_token_logprob, under

library = torch.library.Library("warpup", "FRAGMENT")
CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}  # of logits alive at once

UNDER = (
    "Tensor targets, Tensor? temperature, float temperature_scalar, int ignore_index, Tensor? boosted, "
    "Tensor? delta, float delta_scalar, Tensor? kept"
)
library.define(
    f"linear_logprob(Tensor hidden, Tensor weight, Tensor? bias, {UNDER}, int chunk, bool entropy, bool lse, "
    "bool sum_p2) -> (Tensor logp, Tensor entropy, Tensor lse, Tensor sum_p2, Tensor stats)"
)
library.define(
    f"linear_logprob_backward(Tensor hidden, Tensor weight, Tensor? bias, {UNDER}, int chunk, Tensor stats, "
    "Tensor? entropy, Tensor? sum_p2, Tensor? grad_logp, Tensor? grad_entropy, Tensor? grad_lse, Tensor? grad_sum_p2, "
    "bool[] needs) -> (Tensor grad_hidden, Tensor grad_weight, Tensor grad_bias)"
)
_op.raw("linear_logprob", "linear_logprob_backward")  # the slices' kernels are looked up there, too


def columns(hidden: Tensor, vocab: int, chunk: int) -> int:
    """Columns of a slice: `chunk`, or if that is 0, equal slices of about CHUNK_BYTES."""
    if chunk:
        return min(chunk, vocab)
    fit = CHUNK_BYTES[hidden.device.type] // (max(hidden.shape[0], 1) * hidden.element_size())
    parts = max(1, -(-vocab // max(fit, 1024)))
    return min(vocab, -(-vocab // parts) + 63 & ~63)


def slices(given: Under, vocab: int, chunk: int):
    """(begin, end, the arguments as they apply to columns [begin, end)) for each slice of the vocabulary."""
    for begin in range(0, vocab, chunk):
        end = min(vocab, begin + chunk)
        boosted = None if given.boosted is None else given.boosted[begin:end]
        kept = None if given.kept is None else given.kept[:, begin:end]
        yield begin, end, given._replace(boosted=boosted, kept=kept)


def slice_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, begin: int, end: int, buffer: Tensor) -> Tensor:
    """Columns [begin, end) of the logits, in `buffer`."""
    z = buffer[: hidden.shape[0] * (end - begin)].view(hidden.shape[0], end - begin)
    if bias is None:
        return torch.mm(hidden, weight[begin:end].t(), out=z)
    return torch.addmm(bias[begin:end], hidden, weight[begin:end].t(), out=z)


@torch.no_grad()
def _forward(hidden, weight, bias, *rest):
    *given, chunk, entropy, lse, sum_p2 = rest
    given, rows, vocab = Under(*given), hidden.shape[0], weight.shape[0]
    options = {"dtype": accumulator(hidden), "device": hidden.device}
    logp, stats, state = (torch.empty(rows, *extra, **options) for extra in ((), (2,), (5,)))
    extras = [torch.empty(rows if asked else 0, **options) for asked in (entropy, lse, sum_p2)]
    outputs = (logp, *(e if asked else None for e, asked in zip(extras, (entropy, lse, sum_p2), strict=True)))
    chunk = columns(hidden, vocab, chunk)
    buffer = hidden.new_empty(rows * chunk)
    for begin, end, part in slices(given, vocab, chunk):
        z = slice_logits(hidden, weight, bias, begin, end, buffer)
        _op.ops.token_logprob_slice_(z, *part, begin, vocab, state, *outputs, stats)
    return logp, *extras, stats


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b in the accumulator's type where the device has such a product."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda and a.dtype.itemsize == 2 else torch.mm(a, b)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a @ b, where total is in the accumulator's type; some rows at a time, so that no second total exists."""
    if total.dtype == a.dtype:
        total.addmm_(a, b)
        return
    for part, rows in zip(total.split(4096), a.split(4096), strict=True):
        part += product(rows, b)


@torch.no_grad()
def _backward(hidden, weight, bias, *rest):
    *given, chunk, stats, entropy, sum_p2, g, h, q, s, needs = rest
    given, rows, vocab = Under(*given), hidden.shape[0], weight.shape[0]
    need_hidden, need_weight, need_bias = needs
    grad_hidden = hidden.new_zeros(hidden.shape if need_hidden else 0, dtype=accumulator(hidden))
    grad_weight = torch.empty(weight.shape if need_weight else 0, dtype=weight.dtype, device=weight.device)
    grad_bias = weight.new_empty(vocab if need_bias else 0)
    chunk = columns(hidden, vocab, chunk)
    buffer = hidden.new_empty(rows * chunk)
    for begin, end, part in slices(given, vocab, chunk):
        z = slice_logits(hidden, weight, bias, begin, end, buffer)
        _op.ops.token_logprob_backward_(z, *part, stats, entropy, sum_p2, g, h, q, s, begin, vocab)
        if need_hidden:
            add_product(grad_hidden, z, weight[begin:end])
        if need_weight:
            torch.mm(z.t(), hidden, out=grad_weight[begin:end])
        if need_bias:
            torch.sum(z, 0, out=grad_bias[begin:end])
    return grad_hidden.to(hidden.dtype), grad_weight, grad_bias


library.impl("linear_logprob", _forward, "CompositeExplicitAutograd")
library.impl("linear_logprob_backward", _backward, "CompositeExplicitAutograd")


@torch.library.register_fake("warpup::linear_logprob")
def _(hidden, weight, bias, *rest):
    options = {"dtype": accumulator(hidden), "device": hidden.device}
    rows = hidden.shape[0]
    extras = (torch.empty(rows if asked else 0, **options) for asked in rest[-3:])
    return torch.empty(rows, **options), *extras, torch.empty((rows, 2), **options)


@torch.library.register_fake("warpup::linear_logprob_backward")
def _(hidden, weight, bias, *rest):
    need_hidden, need_weight, need_bias = rest[-1]
    return (
        hidden.new_empty(hidden.shape if need_hidden else 0),
        torch.empty(weight.shape if need_weight else 0, dtype=weight.dtype, device=weight.device),
        weight.new_empty(weight.shape[0] if need_bias else 0),
    )


class LinearLogprob(torch.autograd.Function):
    @staticmethod
    def forward(hidden, weight, bias, chunk, wanted, *given):
        return torch.ops.warpup.linear_logprob(hidden, weight, bias, *given, chunk, *wanted)

    @staticmethod
    def setup_context(ctx, inputs, output):
        hidden, weight, bias, ctx.chunk, ctx.wanted, *given = inputs
        _, *extras, stats = output
        ctx.mark_non_differentiable(stats, *(e for e, asked in zip(extras, ctx.wanted, strict=True) if not asked))
        ctx.set_materialize_grads(False)
        ctx.scalars = [None if isinstance(v, Tensor) else v for v in given]
        entropy, _, sum_p2 = (e if asked else None for e, asked in zip(extras, ctx.wanted, strict=True))
        tensors = (v if isinstance(v, Tensor) else None for v in given)
        ctx.save_for_backward(hidden, weight, bias, stats, entropy, sum_p2, *tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        hidden, weight, bias, stats, entropy, sum_p2, *tensors = ctx.saved_tensors
        given = [s if t is None else t for s, t in zip(ctx.scalars, tensors, strict=True)]
        grads = [grads[0], *(g if asked else None for g, asked in zip(grads[1:4], ctx.wanted, strict=True))]
        rest = (None,) * (2 + len(given))
        if all(g is None for g in grads):
            return (None,) * 3 + rest
        needs = list(ctx.needs_input_grad[:3])
        found = torch.ops.warpup.linear_logprob_backward(
            hidden, weight, bias, *given, ctx.chunk, stats, entropy, sum_p2, *grads, needs
        )
        return (*(g if needed else None for g, needed in zip(found, needs, strict=True)), *rest)


def next_tokens(ids: Tensor, cu_seqlens: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """The targets of packed sequences: each row's the next id of its sequence, of a sequence's last row none.

    ids (N,) int64; cu_seqlens (S + 1,) from 0 to N, sequence i is rows [cu_seqlens[i], cu_seqlens[i + 1]). Raises
    ValueError on others, but on a GPU, where checking would synchronise."""
    if ids.dim() != 1 or cu_seqlens.dim() != 1 or cu_seqlens.is_floating_point() or cu_seqlens.device != ids.device:
        raise ValueError(
            f"linear_logprob: with cu_seqlens, (S + 1,) integers on {ids.device}, targets must be (N,), got "
            f"{tuple(cu_seqlens.shape)} {cu_seqlens.dtype} on {cu_seqlens.device} and {tuple(ids.shape)}"
        )
    if not (ids.is_cuda or torch.compiler.is_compiling()):
        cu = cu_seqlens.tolist()
        if not cu or cu[0] != 0 or cu[-1] != len(ids) or cu != sorted(cu):
            raise ValueError(f"linear_logprob: cu_seqlens must rise from 0 to {len(ids)}, got {cu}")
    shifted = torch.cat([ids[1:], ids.new_full((min(1, len(ids)),), ignore_index)])
    starts = torch.zeros(len(ids) + 1, dtype=torch.bool, device=ids.device).index_fill(0, cu_seqlens.long(), True)
    return shifted.masked_fill(starts[1:], ignore_index)


def reference_linear_logprob(hidden, weight, targets, *, bias=None, chunk=None, cu_seqlens=None, **options):
    """`linear_logprob` in plain torch: all logits, then `reference_token_logprob`."""
    if cu_seqlens is not None:
        targets = next_tokens(targets, cu_seqlens, options.get("ignore_index", IGNORE_INDEX))
    return reference_token_logprob(torch.nn.functional.linear(hidden, weight, bias), targets, **options)


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    temperature: float | Tensor = 1.0,
    entropy: bool = False,
    lse: bool = False,
    sum_p2: bool = False,
    delta: float | Tensor = 0.0,
    token_set: Sequence[int] | Tensor | None = None,
    kept_mask: Tensor | None = None,
    ignore_index: int = IGNORE_INDEX,
    cu_seqlens: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor | tuple[Tensor, ...]:
    """`token_logprob(hidden @ weight.T + bias, targets)`, and its replay of a sampler, without the logits.

    Time: the GEMMs of the plain way and one more, for the logits that the backward makes again. Memory beyond inputs
    and gradients: one slice of the logits, and for 16-bit inputs the gradient of `hidden` in float32.

    Args:
        hidden: (..., H) float32, bfloat16, float16 or float64; under autocast all three are cast to its type.
        weight: (V, H), of the same dtype: an output layer's weight, tied or not; frozen (no gradient, and no work for
            one), or composed, as with LoRA.
        targets: (...,) int64 in [0, V), or `ignore_index`; beside `cu_seqlens` the packed ids (N,) themselves.
        bias: (V,), of the same dtype.
        temperature, entropy, lse, sum_p2, ignore_index: as in `token_logprob`.
        delta, token_set, kept_mask: as in `replay_logprob`.
        cu_seqlens: (S + 1,) int32 or int64 from 0 to N, of packed sequences: each row is scored for the next id of its
            sequence, and the last row of a sequence, which has none, gives zeros.
        chunk: columns of the vocabulary in a slice; None: as many as make 32 MiB of logits on a CPU, 512 on a GPU.

    Returns:
        `logp` (...,) in float32 (float64 for float64), or a tuple of it and what was asked for, in the order (logp,
        entropy, lse, sum_p2). Gradients of all of them reach hidden, weight and bias. For 16-bit inputs the logits are
        rounded to 16 bits, as the plain way rounds them.

    Raises:
        ValueError: a shape, dtype or device does not fit, and as `token_logprob` and `replay_logprob`.
    """
    hidden, weight, bias = autocast(hidden, weight, bias)
    check_linear("linear_logprob", hidden, weight, bias, targets)
    if cu_seqlens is not None:
        targets = next_tokens(targets, cu_seqlens, ignore_index)
    vocab, rows = weight.shape[0], targets.numel()
    given = under("linear_logprob", vocab, targets, temperature, ignore_index, delta, token_set, kept_mask).flat()
    if chunk is not None and chunk < 1:
        raise ValueError(f"linear_logprob: chunk must be at least 1, got {chunk}")
    wanted = Wanted(entropy, lse, sum_p2)
    tensors = (hidden.reshape(rows, hidden.shape[-1]), weight, bias)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors):
        *results, _ = LinearLogprob.apply(*tensors, chunk or 0, wanted, *given)
    else:
        *results, _ = torch.ops.warpup.linear_logprob(*tensors, *given, chunk or 0, *wanted)
    found = wanted.pick(*results)
    return tuple(r.view(targets.shape) for r in found) if any(wanted) else found.view(targets.shape)


def check_linear(op: str, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> None:
    """Raises ValueError, before any product is made, if the operands do not fit each other."""
    if hidden.dim() < 1 or weight.dim() != 2 or hidden.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"{op}: hidden must be (..., H) and weight (V, H), got {tuple(hidden.shape)} and {tuple(weight.shape)}"
        )
    if targets.shape != hidden.shape[:-1] or targets.dtype != torch.int64:
        raise ValueError(
            f"{op}: targets must be int64 of shape {tuple(hidden.shape[:-1])}, got {targets.dtype} of shape "
            f"{tuple(targets.shape)}"
        )
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{op}: bias must have shape ({weight.shape[0]},), got {tuple(bias.shape)}")
    if hidden.device.type not in CHUNK_BYTES:
        raise ValueError(f"{op}: warpup has kernels for CPU and CUDA tensors only, hidden is on {hidden.device}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype, tensor.device) != (hidden.dtype, hidden.device):
            raise ValueError(
                f"{op}: {name} must be {hidden.dtype} on {hidden.device} like hidden, "
                f"got {tensor.dtype} on {tensor.device}"
            )
