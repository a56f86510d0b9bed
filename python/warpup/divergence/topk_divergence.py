"""Divergence of a student's next-token distributions from a teacher that gives its top K tokens.

Contract, numerics and bytes moved: csrc/divergence/topk_divergence.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup import _op
from warpup._arguments import explained
from warpup._op import accumulator
from warpup.divergence.divergence import divided


def reference_topk_divergence(
    student_logits: Tensor, teacher_ids: Tensor, teacher_logp: Tensor, *, temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """`topk_divergence` in plain torch."""
    x, t = divided(student_logits, temperature), teacher_logp.detach().to(accumulator(student_logits))
    counted = (x != -torch.inf).any(-1)
    counted = (counted if mask is None else counted & mask).unsqueeze(-1)
    log_p = torch.log_softmax(x.masked_fill(~counted, 0.0), -1)
    s = log_p.gather(-1, teacher_ids.where(counted, 0))
    out = (s == -torch.inf) | (t == -torch.inf) | ~counted
    return (t.exp() * (t - s)).masked_fill(out, 0.0).sum(-1)


@_op.fake("topk_divergence")
def _(student, ids, logp, temperature, mask, temperature_scalar):
    options = {"dtype": accumulator(student), "device": student.device}
    return torch.empty(student.shape[:-1], **options), torch.empty((*student.shape[:-1], 3), **options)


_topk_divergence = _op.differentiable("topk_divergence", strided=True, leading=True, own_row=True)


@explained
def topk_divergence(
    student_logits: Tensor,
    teacher_ids: Tensor,
    teacher_logp: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """Forward KL over the K tokens that a teacher lists: `sum_k pT_k (log pT_k - log pS[id_k])`, in nats.

    Nothing is renormalised: pS is the softmax over the whole vocabulary, and pT sums to what the teacher lists, so the
    value is below the full KL by the unlisted tokens' share and may be negative. Renormalise `teacher_logp` before the
    call (`teacher_logp.log_softmax(-1)`) for a proper KL on the listed tokens of the teacher.

    Args:
        student_logits: (..., V) as for `divergence`.
        teacher_ids: (..., K) int64 in [0, V); a token listed twice counts twice.
        teacher_logp: (..., K) floating, the teacher's log-probs at the same temperature; `-inf` counts for nothing (for
            rows that list fewer than K). It gets no gradient.
        temperature: of the student, as for `divergence`.
        mask: (...,) bool; False gives value 0 and a zero gradient.

    Returns:
        (...,) in float32 (float64 for float64), differentiable with respect to `student_logits`.

    Raises:
        ValueError: a shape, dtype, device or stride does not fit, the temperature is not above 0, or (CPU only) an id
            is out of range. On CUDA, where checking would synchronise, such a row gives NaN.
    """
    each, scalar = _op.per_row(temperature, student_logits.shape[:-1])
    logp = teacher_logp.detach().to(accumulator(student_logits)).contiguous()
    return _topk_divergence(student_logits, teacher_ids.contiguous(), logp, each, mask, scalar)[0]
