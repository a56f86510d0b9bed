"""`divergence` from hidden states: chunks of rows, each chunk's logits by the library GEMM, so that neither model's
[N, V] logits ever exist at once.

The GEMMs are nearly all of the time: 2 forward, and backward these 2 again, then dX and dW.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup import _op
from warpup._op import accumulator, autocast, once_differentiable
from warpup.divergence.divergence import per_row, reference_divergence
from warpup.logprob.linear_logprob import add_product

# Of one chunk's logits, each side: on the CPU both fit the last-level cache of a server, on a GPU the GEMMs are large
# enough to fill it.
CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 256 << 20}


def reference_linear_divergence(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor, **options
) -> Tensor:
    """`linear_divergence` in plain torch, through both logits."""
    options.pop("chunk", None)
    teacher = teacher_hidden.detach() @ teacher_weight.detach().t()
    return reference_divergence(student_hidden @ student_weight.t(), teacher, **options)


class _Chunks:
    """Both sides' logits, chunk by chunk in the same two buffers."""

    def __init__(self, student_hidden, student_weight, teacher_hidden, teacher_weight, rows, chunk):
        n, vocab = student_hidden.shape[0], student_weight.shape[0]
        per_chunk = CHUNK_BYTES.get(student_hidden.device.type, 256 << 20) // student_hidden.element_size()
        self.step = min(chunk or max(1, per_chunk // max(vocab, 1)), max(n, 1))
        self.sides = ((student_hidden, student_weight), (teacher_hidden, teacher_weight))
        self.buffers = [hidden.new_empty(self.step, vocab) for hidden, _ in self.sides]
        self.rows = rows  # temperature, mask, targets

    def __iter__(self):
        n = self.sides[0][0].shape[0]
        for begin in range(0, n, self.step):
            at = slice(begin, min(begin + self.step, n))
            logits = [b[: at.stop - begin] for b in self.buffers]
            for (hidden, weight), out in zip(self.sides, logits, strict=True):
                torch.mm(hidden[at], weight.t(), out=out)
            yield at, (*logits, *(None if r is None else r[at] for r in self.rows))


@torch.library.custom_op("warpup::linear_divergence", mutates_args=())
def _forward(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor,
    temperature: Tensor | None, mask: Tensor | None, targets: Tensor | None, kind: str, temperature_scalar: float,
    beta: float, chunk: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    n, dtype = student_hidden.shape[0], accumulator(student_hidden)
    value, stats = (student_hidden.new_empty(shape, dtype=dtype) for shape in ((n,), (n, 6)))
    sides = (student_hidden, student_weight, teacher_hidden, teacher_weight)
    for at, inputs in _Chunks(*sides, (temperature, mask, targets), chunk):
        value[at], stats[at] = _op.ops.divergence(*inputs, kind, temperature_scalar, beta)
    return value, stats


@_forward.register_fake
def _(student_hidden, *_):
    n, dtype = student_hidden.shape[0], accumulator(student_hidden)
    return tuple(student_hidden.new_empty(shape, dtype=dtype) for shape in ((n,), (n, 6)))


@torch.library.custom_op("warpup::linear_divergence_backward", mutates_args=())
def _backward(
    student_hidden: Tensor, student_weight: Tensor, teacher_hidden: Tensor, teacher_weight: Tensor,
    temperature: Tensor | None, mask: Tensor | None, targets: Tensor | None, kind: str, temperature_scalar: float,
    beta: float, chunk: int, stats: Tensor, grad_value: Tensor, for_hidden: bool, for_weight: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of the student's hidden states and weight; an empty tensor for one that is not asked for."""
    hidden, weight, dtype = student_hidden, student_weight, accumulator(student_hidden)
    grad_hidden = torch.empty_like(hidden) if for_hidden else hidden.new_empty(0)
    total = torch.zeros(weight.shape if for_weight else 0, dtype=dtype, device=weight.device)
    sides = (hidden, weight, teacher_hidden, teacher_weight)
    for at, inputs in _Chunks(*sides, (temperature, mask, targets), chunk):
        gradient = inputs[0]  # written over the logits
        _op.ops.divergence_backward_(*inputs, kind, temperature_scalar, beta, stats[at], grad_value[at])
        if for_hidden:
            torch.mm(gradient, weight, out=grad_hidden[at])
        if for_weight:
            add_product(total, gradient.t(), hidden[at])
    return grad_hidden, total if total.dtype == weight.dtype else total.to(weight.dtype)


@_backward.register_fake
def _(student_hidden, student_weight, *args):
    *_, for_hidden, for_weight = args
    hidden = torch.empty_like(student_hidden) if for_hidden else student_hidden.new_empty(0)
    return hidden, student_weight.new_empty(student_weight.shape if for_weight else 0)


class LinearDivergence(torch.autograd.Function):
    @staticmethod
    def forward(student_hidden, student_weight, teacher_hidden, teacher_weight, temperature, mask, targets, *options):
        return _forward(
            student_hidden, student_weight, teacher_hidden, teacher_weight, temperature, mask, targets, *options
        )

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, kind, temperature_scalar, beta, chunk = inputs
        ctx.options = (kind, temperature_scalar, beta, chunk)
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_value, _):
        if grad_value is None:
            return (None,) * 11
        *tensors, stats = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:2]
        grads = _backward(*tensors, *ctx.options, stats, grad_value, *wanted)
        return (*(g if w else None for g, w in zip(grads, wanted, strict=True)), *(None,) * 9)


def linear_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    kind: str = "forward",
    temperature: float | Tensor = 1.0,
    beta: float = 0.5,
    mask: Tensor | None = None,
    targets: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """`divergence(student_hidden @ student_weight.T, teacher_hidden @ teacher_weight.T, ...)` without either logits.

    Rows go through in chunks: two library GEMMs and the fused kernel. The backward makes a chunk's logits again, writes
    their gradient over them, and adds its product to the weight's gradient in float32. Memory beside inputs and
    gradients: two chunks of logits, and the weight's gradient in float32 where the weight is 16-bit.

    Args:
        student_hidden, student_weight: (..., Hs) and (V, Hs), of one dtype. Either may be frozen (no `requires_grad`):
            then its gradient costs nothing.
        teacher_hidden, teacher_weight: (..., Ht) and (V, Ht) of the student's dtype; Ht may differ from Hs. Constants.
        kind, temperature, beta, mask, targets: as for `divergence`.
        chunk: rows at once; None keeps each side's chunk of logits near 32 MiB on the CPU, 256 MiB on a GPU.

    Returns:
        (...,) in float32 (float64 for float64), differentiable with respect to `student_hidden` and `student_weight`.

    Raises:
        ValueError: shapes or dtypes that do not fit, `chunk` below 1, or what `divergence` raises.

    Source: the chunking is Liger-Kernel's (arXiv 2410.10989), but for the recomputation, which leaves the forward free
    of gradients, and the float32 sum over chunks.
    """
    op, lead = "linear_divergence", student_hidden.shape[:-1]
    student_hidden, student_weight, teacher_hidden, teacher_weight = autocast(
        student_hidden, student_weight, teacher_hidden, teacher_weight
    )
    for name, x in (
        ("student_weight", student_weight), ("teacher_hidden", teacher_hidden), ("teacher_weight", teacher_weight)
    ):  # fmt: skip
        if x.dtype != student_hidden.dtype:
            raise ValueError(f"{op}: {name} must be {student_hidden.dtype} like student_hidden, got {x.dtype}")
    for side, hidden, weight in (
        ("student", student_hidden, student_weight), ("teacher", teacher_hidden, teacher_weight)
    ):  # fmt: skip
        if weight.dim() != 2 or hidden.dim() < 1 or weight.shape[1] != hidden.shape[-1]:
            raise ValueError(
                f"{op}: {side}_weight must have shape (V, H) for {side}_hidden (..., H), got {tuple(weight.shape)} and "
                f"{tuple(hidden.shape)}"
            )
    if teacher_hidden.shape[:-1] != lead or teacher_weight.shape[0] != student_weight.shape[0]:
        raise ValueError(
            f"{op}: student and teacher must agree in rows and vocabulary, got "
            f"{tuple(student_hidden.shape)} x {tuple(student_weight.shape)} and "
            f"{tuple(teacher_hidden.shape)} x {tuple(teacher_weight.shape)}"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"{op}: chunk must be at least 1, got {chunk}")
    temperature, scalar = per_row(temperature, lead)
    for name, x in (("temperature", temperature), ("mask", mask), ("targets", targets)):
        if x is not None and x.shape != lead:
            raise ValueError(f"{op}: {name} must have shape {tuple(lead)}, got {tuple(x.shape)}")
    flat = [None if x is None else x.reshape(-1) for x in (temperature, mask, targets)]
    hidden = [h.reshape(-1, h.shape[-1]) for h in (student_hidden, teacher_hidden)]
    args = (hidden[0], student_weight, hidden[1], teacher_weight, *flat, kind, scalar, float(beta), chunk or 0)
    if (student_hidden.requires_grad or student_weight.requires_grad) and torch.is_grad_enabled():
        value, _ = LinearDivergence.apply(*args)
    else:
        value, _ = _forward(*args)
    return value.reshape(lead)
