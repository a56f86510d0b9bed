"""`divergence` from hidden states: chunks of rows, each chunk's logits by the library GEMM, so that neither model's
[N, V] logits ever exist at once.

The GEMMs are nearly all of the time: 2 forward, and backward these 2 again, then dX and dW.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup import _op
from warpup._arguments import explained
from warpup._op import accumulator, autocast
from warpup._products import add_mm, mm
from warpup.divergence.divergence import check_kind, forms_of, reference_divergence

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
                mm(hidden[at], weight.t(), out)
            yield at, (*logits, *(None if r is None else r[at] for r in self.rows))


# ---- raw ops --------------------------------------------------------------------------------------------------------

INPUTS = (
    "Tensor student_hidden, Tensor student_weight, Tensor teacher_hidden, Tensor teacher_weight, Tensor? temperature, "
    "Tensor? mask, Tensor? targets, str kind, float temperature_scalar, float beta, float scale, float softcap, "
    "float teacher_scale, float teacher_softcap, int chunk"
)


@_op.composite(f"linear_divergence({INPUTS}) -> (Tensor value, Tensor stats)")
def _forward(student_hidden, student_weight, teacher_hidden, teacher_weight, temperature, mask, targets, *rest):
    *options, chunk = rest
    value, stats = _outputs(student_hidden)
    sides = (student_hidden, student_weight, teacher_hidden, teacher_weight)
    for at, inputs in _Chunks(*sides, (temperature, mask, targets), chunk):
        value[at], stats[at] = _op.ops.divergence(*inputs, *options)
    return value, stats


@_op.fake("linear_divergence")
def _outputs(student_hidden, *_):
    n, dtype = student_hidden.shape[0], accumulator(student_hidden)
    return tuple(student_hidden.new_empty(shape, dtype=dtype) for shape in ((n,), (n, 6)))


@_op.composite(
    f"linear_divergence_backward({INPUTS}, Tensor stats, Tensor grad_value, bool[] needs) "
    "-> (Tensor grad_student_hidden, Tensor grad_student_weight)"
)
def _backward(student_hidden, student_weight, teacher_hidden, teacher_weight, temperature, mask, targets, *rest):
    """A gradient that is not needed comes back without elements."""
    *options, chunk, stats, grad_value, needs = rest
    need_hidden, need_weight = needs
    hidden, weight, dtype = student_hidden, student_weight, accumulator(student_hidden)
    grad_hidden = hidden.new_empty(hidden.shape if need_hidden else 0)
    grad_weight = torch.zeros(weight.shape if need_weight else 0, dtype=dtype, device=weight.device)
    sides = (hidden, weight, teacher_hidden, teacher_weight)
    for at, inputs in _Chunks(*sides, (temperature, mask, targets), chunk):
        gradient = inputs[0]  # written over the logits
        _op.ops.divergence_backward_(*inputs, *options, stats[at], grad_value[at])
        if need_hidden:
            mm(gradient, weight, grad_hidden[at])
        if need_weight:
            add_mm(grad_weight, gradient.t(), hidden[at])
    return grad_hidden, grad_weight if grad_weight.dtype == weight.dtype else grad_weight.to(weight.dtype)


_linear_divergence = _op.differentiable("linear_divergence", strided=True)


# ---- linear_divergence ----------------------------------------------------------------------------------------------


@explained
def linear_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    kind: str = "forward",
    temperature: float | Tensor = 1.0,
    beta: float | None = None,
    mask: Tensor | None = None,
    targets: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
    teacher_scale: float = 1.0,
    teacher_softcap: float | None = None,
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
        kind, temperature, beta, mask, targets, scale, softcap, teacher_scale, teacher_softcap: as for `divergence`.
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
            f"{op}: teacher_hidden x teacher_weight must have the rows and the vocabulary of student_hidden x "
            f"student_weight, got {tuple(student_hidden.shape)} x {tuple(student_weight.shape)} and "
            f"{tuple(teacher_hidden.shape)} x {tuple(teacher_weight.shape)}"
        )
    if chunk is not None and chunk < 1:
        raise ValueError(f"{op}: chunk must be at least 1, got {chunk}")
    beta = check_kind(op, kind, beta, targets)
    forms = forms_of(op, scale, softcap, teacher_scale, teacher_softcap)
    each, scalar = _op.per_row(temperature, lead)
    for name, x in (("temperature", each), ("mask", mask), ("targets", targets)):
        if x is not None and x.shape != lead:
            raise ValueError(f"{op}: {name} must have shape {tuple(lead)}, got {tuple(x.shape)}")
    flat = [None if x is None else x.reshape(-1) for x in (each, mask, targets)]
    hidden = [h.reshape(-1, h.shape[-1]) for h in (student_hidden, teacher_hidden)]
    value, _ = _linear_divergence(
        hidden[0], student_weight, hidden[1], teacher_weight, *flat, kind, scalar, beta, *forms, chunk or 0
    )
    return value.reshape(lead)
