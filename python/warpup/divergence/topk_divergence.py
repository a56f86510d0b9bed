"""Divergence of a student's next-token distributions from a teacher that gives its top K tokens.

Contract, numerics and bytes moved: csrc/divergence/topk_divergence.h; the formulas: topk_divergence_math.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup import _autograd, _op
from warpup._arguments import explained
from warpup._op import accumulator
from warpup.divergence.divergence import divided
from warpup.logprob.logit_form import form_of

TOPK_DIVERGENCES = ("forward", "reverse", "jsd", "mixed")
LEAST_TAIL = 1e-7  # of a teacher: log-probs in float32 do not tell less from 0


def reference_topk_divergence(
    student_logits: Tensor, teacher_ids: Tensor, teacher_logp: Tensor, *, kind: str = "forward",
    beta: float | None = None, tail: bool = False, temperature: float | Tensor = 1.0, mask: Tensor | None = None,
    scale: float = 1.0, softcap: float | None = None,
) -> Tensor:  # fmt: skip
    """`topk_divergence` in plain torch: the oracle of the tests (in float64) and the eager peer of the benchmarks."""
    x, t = divided(student_logits, temperature, scale, softcap), teacher_logp.detach().to(accumulator(student_logits))
    counted = (x != -torch.inf).any(-1)
    counted = (counted if mask is None else counted & mask).unsqueeze(-1)
    log_p = torch.log_softmax(x.masked_fill(~counted, 0.0), -1)
    ids, listed = teacher_ids.where(counted, 0), (t != -torch.inf) & counted
    s = log_p.gather(-1, ids)
    if tail:
        held = torch.zeros_like(log_p).scatter_add(-1, ids, listed.to(log_p.dtype)) > 0
        rest = log_p.exp().masked_fill(held, 0.0).sum(-1, keepdim=True)
        log_rest = rest.where(rest > 0, 1.0).log().where(rest > 0, -torch.inf)
        of_teacher = 1 - t.double().exp().where(listed, 0.0).sum(-1, keepdim=True)
        s = torch.cat([s, log_rest], -1)
        t = torch.cat([t, of_teacher.clamp_min(LEAST_TAIL).log().to(t.dtype)], -1)
        listed = torch.cat([listed, counted], -1)
    finite = listed & (s != -torch.inf)
    s, t = s.where(finite, 0.0), t.where(listed, 0.0)
    p_s, p_t = s.exp().where(finite, 0.0), t.exp().where(listed, 0.0)
    b = 0.5 if beta is None else beta
    if kind == "jsd" and 0 < b < 1:
        m = (b * p_t + (1 - b) * p_s).clamp_min(torch.finfo(p_s.dtype).tiny).log()
        return (b * p_t * (t - m) + (1 - b) * p_s * (s - m)).sum(-1)
    forward = {"forward": 1.0, "reverse": 0.0, "jsd": 1 - b, "mixed": b}[kind]
    return ((forward * p_t - (1 - forward) * p_s) * (t - s)).where(finite, 0.0).sum(-1)


@_op.fake("topk_divergence")
def _(student, *_):
    options = {"dtype": accumulator(student), "device": student.device}
    return torch.empty(student.shape[:-1], **options), torch.empty((*student.shape[:-1], 6), **options)


_topk_divergence = _autograd.differentiable("topk_divergence", strided=True, leading=True, own_row=True)


@explained
def topk_divergence(
    student_logits: Tensor,
    teacher_ids: Tensor,
    teacher_logp: Tensor,
    *,
    kind: str = "forward",
    beta: float | None = None,
    tail: bool = False,
    temperature: float | Tensor = 1.0,
    mask: Tensor | None = None,
    scale: float = 1.0,
    softcap: float | None = None,
) -> Tensor:
    """Divergence of the student's distribution from what a teacher lists of its own, K tokens a row, in nats; the
    teacher is a constant.

    With pT of the listed tokens as given, pS of the softmax over the whole vocabulary, sums over the list:

    - `forward`: sum pT (log pT - log pS).
    - `reverse`: sum pS (log pS - log pT).
    - `jsd`: beta sum pT log(pT / m) + (1 - beta) sum pS log(pS / m), m = beta pT + (1 - beta) pS; `forward` at beta 0
      and `reverse` at 1, as of `divergence`.
    - `mixed`: beta times `forward` plus (1 - beta) times `reverse`.

    Nothing is renormalised: pT sums to what the teacher lists, so the value may be negative, and all kinds but
    `forward` are lowered too by taking probability from the list. `tail` cures both: all that is not listed is one
    outcome more, with what is left of 1 on each side, and the value is the divergence of K + 1 outcomes, at least 0.
    (For the list alone, renormalised on both sides, take `divergence` of the listed logits.)

    Args:
        student_logits: (..., V) as for `divergence`.
        teacher_ids: (..., K) int64 in [0, V); a token listed twice counts twice.
        teacher_logp: (..., K) floating, the teacher's log-probs at the same temperature; `-inf` is not listed (for rows
            that list fewer than K). It gets no gradient. At most 0, which is not looked at: of logits or probabilities
            in its place the value means nothing.
        kind: one of the above.
        beta: in [0, 1], the teacher's share, for `jsd` and `mixed` alone; None takes .5.
        tail: count what is not listed. The student's is summed over these tokens and has all its digits; the teacher's
            is 1 less what it lists, at least 1e-7.
        temperature: of the student, as for `divergence`.
        mask: (...,) bool; False gives value 0 and a zero gradient.
        scale, softcap: what the student does to the product of its output layer, as in `token_logprob`.

    Returns:
        (...,) in float32 (float64 for float64), differentiable with respect to `student_logits`.

    Raises:
        ValueError: a shape, dtype, device or stride does not fit, an unknown kind, `beta` outside of [0, 1] or with a
            kind that has none, the temperature is not above 0, or (CPU only) an id is out of range. On CUDA, where
            checking would synchronise, such a row gives NaN.

    Source: `forward`: verl's `forward_kl_topk`; with `tail`: TRL's server distillation and SDPO (arXiv 2601.20802);
    `mixed`: NeMo-RL's `mixed_kl_weight`.
    """
    if beta is not None and kind not in ("jsd", "mixed"):
        raise ValueError(f"topk_divergence: beta belongs to kinds 'jsd' and 'mixed', not to {kind!r}")
    each, scalar = _op.per_row(temperature, student_logits.shape[:-1])
    logp = teacher_logp.detach().to(accumulator(student_logits)).contiguous()
    options = (kind, scalar, 0.5 if beta is None else float(beta), tail, *form_of("topk_divergence", scale, softcap))
    return _topk_divergence(student_logits, teacher_ids.contiguous(), logp, each, mask, *options)[0]
