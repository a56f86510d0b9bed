"""`divergence` from hidden states: chunks of rows, each chunk's logits by the library GEMM, so that neither model's
[N, V] logits ever exist at once.

The GEMMs are nearly all of the time: 2 forward, and backward these 2 again, then dX and dW.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from warpup import _autograd, _op
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
    bias, teacher_bias, _ = (options.pop(name, None) for name in ("bias", "teacher_bias", "chunk"))
    teacher = linear(teacher_hidden, teacher_weight, teacher_bias).detach()
    return reference_divergence(linear(student_hidden, student_weight, bias), teacher, **options)


class _Chunks:
    """Both sides' logits, chunk by chunk in the same two buffers."""

    def __init__(self, operands: Sequence[Any], rows: Sequence[Tensor | None], chunk: int):
        student_hidden, student_weight, student_bias, teacher_hidden, teacher_weight, teacher_bias = operands
        n, vocab = student_hidden.shape[0], student_weight.shape[0]
        per_chunk = CHUNK_BYTES.get(student_hidden.device.type, 256 << 20) // student_hidden.element_size()
        self.step = min(chunk or max(1, per_chunk // max(vocab, 1)), max(n, 1))
        self.sides = (
            (student_hidden, student_weight, student_bias), (teacher_hidden, teacher_weight, teacher_bias)
        )  # fmt: skip
        self.buffers = [hidden.new_empty(self.step, vocab) for hidden, *_ in self.sides]
        self.rows = rows  # temperature, mask, targets

    def __iter__(self) -> Iterator[tuple[slice, tuple[Any, ...]]]:
        """(a chunk's rows, its inputs of `divergence`: both logits, temperature, mask, targets)."""
        n = self.sides[0][0].shape[0]
        for begin in range(0, n, self.step):
            at = slice(begin, min(begin + self.step, n))
            logits = [b[: at.stop - begin] for b in self.buffers]
            for (hidden, weight, bias), out in zip(self.sides, logits, strict=True):
                mm(hidden[at], weight.t(), out, bias)
            yield at, (*logits, *(None if r is None else r[at] for r in self.rows))


# ---- raw ops --------------------------------------------------------------------------------------------------------

INPUTS = (
    "Tensor student_hidden, Tensor student_weight, Tensor? student_bias, Tensor teacher_hidden, Tensor teacher_weight, "
    "Tensor? teacher_bias, Tensor? temperature, Tensor? mask, Tensor? targets, str kind, float temperature_scalar, "
    "float beta, float scale, float softcap, float teacher_scale, float teacher_softcap, int chunk"
)


@_op.composite(f"linear_divergence({INPUTS}) -> (Tensor value, Tensor stats)")
def _forward(*arguments):
    sides, rows, (*options, chunk) = arguments[:6], arguments[6:9], arguments[9:]
    student_hidden = sides[0]
    value, stats = _outputs(student_hidden)
    for at, inputs in _Chunks(sides, rows, chunk):
        value[at], stats[at] = _op.ops.divergence(*inputs, *options)
    return value, stats


@_op.fake("linear_divergence")
def _outputs(student_hidden, *_):
    n, dtype = student_hidden.shape[0], accumulator(student_hidden)
    return tuple(student_hidden.new_empty(shape, dtype=dtype) for shape in ((n,), (n, 6)))


@_op.composite(
    f"linear_divergence_backward({INPUTS}, Tensor stats, Tensor grad_value, bool[] needs) "
    "-> (Tensor grad_student_hidden, Tensor grad_student_weight, Tensor grad_student_bias)"
)
def _backward(*arguments):
    """A gradient that is not needed comes back without elements."""
    sides, rows, (*options, chunk, stats, grad_value, needs) = arguments[:6], arguments[6:9], arguments[9:]
    need_hidden, need_weight, need_bias = needs
    hidden, weight, dtype = sides[0], sides[1], accumulator(sides[0])
    grad_hidden = hidden.new_empty(hidden.shape if need_hidden else 0)
    grad_weight = torch.zeros(weight.shape if need_weight else 0, dtype=dtype, device=weight.device)
    grad_bias = torch.zeros(weight.shape[:1] if need_bias else 0, dtype=dtype, device=weight.device)
    for at, inputs in _Chunks(sides, rows, chunk):
        gradient = inputs[0]  # written over the logits
        _op.ops.divergence_backward_(*inputs, *options, stats[at], grad_value[at])
        if need_hidden:
            mm(gradient, weight, grad_hidden[at])
        if need_weight:
            add_mm(grad_weight, gradient.t(), hidden[at])
        if need_bias:
            grad_bias += gradient.sum(0, dtype=dtype)
    return grad_hidden, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)


_linear_divergence = _autograd.differentiable("linear_divergence", strided=True)


# ---- linear_divergence ----------------------------------------------------------------------------------------------


@explained
def linear_divergence(
    student_hidden: Tensor,
    student_weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    *,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
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
    """`divergence(student_hidden @ student_weight.T + bias, teacher_hidden @ teacher_weight.T + teacher_bias, ...)`
    without either logits.

    Rows go through in chunks: two library GEMMs and the fused kernel. The backward makes a chunk's logits again, writes
    their gradient over them, and adds its product to the weight's gradient in float32. Memory beside inputs and
    gradients: two chunks of logits, and the weight's gradient in float32 where the weight is 16-bit.

    Args:
        student_hidden, student_weight: (..., Hs) and (V, Hs), of one dtype. Either may be frozen (no `requires_grad`):
            then its gradient costs nothing.
        teacher_hidden, teacher_weight: (..., Ht) and (V, Ht) of the student's dtype; Ht may differ from Hs. Constants.
        bias, teacher_bias: (V,) of the same dtype.
        kind, temperature, beta, mask, targets, scale, softcap, teacher_scale, teacher_softcap: as for `divergence`.
        chunk: rows at once; None keeps each side's chunk of logits near 32 MiB on the CPU, 256 MiB on a GPU.

    Returns:
        (...,) in float32 (float64 for float64), differentiable with respect to `student_hidden`, `student_weight` and
        `bias`.

    Raises:
        ValueError: shapes or dtypes that do not fit, `chunk` below 1, or what `divergence` raises.

    Source: the chunking is Liger-Kernel's (arXiv 2410.10989), but for the recomputation, which leaves the forward free
    of gradients, and the float32 sum over chunks.
    """
    op, lead = "linear_divergence", student_hidden.shape[:-1]
    student_hidden, student_weight, bias, teacher_hidden, teacher_weight, teacher_bias = autocast(
        student_hidden, student_weight, bias, teacher_hidden, teacher_weight, teacher_bias
    )
    for name, x in (
        ("student_weight", student_weight), ("teacher_hidden", teacher_hidden), ("teacher_weight", teacher_weight),
        ("bias", bias), ("teacher_bias", teacher_bias),
    ):  # fmt: skip
        if x is not None and name.endswith("bias") and x.shape != student_weight.shape[:1]:
            raise ValueError(f"{op}: {name} must have shape {tuple(student_weight.shape[:1])}, got {tuple(x.shape)}")
        if x is not None and x.dtype != student_hidden.dtype:
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
    hidden = [h.reshape(-1, h.shape[-1]) for h in (student_hidden, teacher_hidden.detach())]
    value, _ = _linear_divergence(
        hidden[0],
        student_weight,
        bias,
        hidden[1],
        teacher_weight.detach(),  # a tensor of its own: torch.compile traces no Function that is given one twice
        None if teacher_bias is None else teacher_bias.detach(),
        *flat,
        kind,
        scalar,
        beta,
        *forms,
        chunk or 0,
    )
    return value.reshape(lead)
