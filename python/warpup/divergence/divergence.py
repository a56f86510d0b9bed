"""Divergence of a student's next-token distributions from a teacher's, straight from the logits of both.

Contract, numerics and bytes moved: csrc/divergence/divergence.h; the formulas: divergence_math.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from warpup import _autograd, _op
from warpup._arguments import explained
from warpup._op import accumulator
from warpup.logprob.logit_form import form_of, formed

DIVERGENCES = ("forward", "reverse", "jeffreys", "jsd", "symmetric_ce", "logit_swap", "binary")


def times_t2(value: Tensor, temperature: float | Tensor) -> Tensor:
    """value * temperature^2."""
    return value * (temperature.to(value.dtype) if isinstance(temperature, Tensor) else temperature) ** 2


def divided(logits: Tensor, temperature: float | Tensor, scale: float = 1.0, softcap: float | None = None) -> Tensor:
    """logits / temperature in the accumulator's type, for the references; of logits still to be scaled and capped."""
    x = formed(logits.to(accumulator(logits)), scale, softcap)
    return x / (temperature.to(x.dtype).unsqueeze(-1) if isinstance(temperature, Tensor) else temperature)


# ---- divergence -----------------------------------------------------------------------------------------------------


def reference_divergence(
    student_logits: Tensor, teacher_logits: Tensor, *, kind: str = "forward", temperature: float | Tensor = 1.0,
    beta: float | None = None, mask: Tensor | None = None, targets: Tensor | None = None, scale_by_t2: bool = False,
    scale: float = 1.0, softcap: float | None = None, teacher_scale: float = 1.0, teacher_softcap: float | None = None,
) -> Tensor:  # fmt: skip
    """`divergence` in plain torch: the oracle of the tests (in float64) and the eager peer of the benchmarks."""
    beta = 0.5 if beta is None else beta
    x_s = divided(student_logits, temperature, scale, softcap)
    x_t = divided(teacher_logits.detach(), temperature, teacher_scale, teacher_softcap)
    counted = x_s.new_ones(x_s.shape[:-1], dtype=torch.bool) if mask is None else mask
    if kind != "binary":
        counted = counted & (x_s != -torch.inf).any(-1) & (x_t != -torch.inf).any(-1)
    x_s, x_t = (x.masked_fill(~counted.unsqueeze(-1), 0.0) for x in (x_s, x_t))
    if kind == "logit_swap" and targets is not None and x_t.shape[-1] > 0:
        y, top = targets.where(counted, 0).unsqueeze(-1), x_t.argmax(-1, keepdim=True)
        x_t = x_t.scatter(-1, top, x_t.gather(-1, y)).scatter(-1, y, x_t.amax(-1, keepdim=True))
    no_s, no_t = x_s == -torch.inf, x_t == -torch.inf

    def zero(x: Tensor, where: Tensor) -> Tensor:
        return x.masked_fill(where, 0.0)

    if kind == "binary":
        x_s, x_t = zero(x_s, no_s), x_t.clamp_min(-1e4)  # 1e4: sigmoid = 0, without the NaN of 0 * inf
        log_sigmoid = torch.nn.functional.logsigmoid  # softplus is cut off at 20
        yes = torch.sigmoid(x_t) * (log_sigmoid(x_t) - log_sigmoid(x_s))
        no = torch.sigmoid(-x_t) * (log_sigmoid(-x_t) - log_sigmoid(-x_s))
        value = zero(yes + no, no_s).sum(-1)
    else:
        s, t = torch.log_softmax(x_s, -1), torch.log_softmax(x_t, -1)
        p_s, p_t, s, t = s.exp(), t.exp(), zero(s, no_s), zero(t, no_t)
        if kind == "jsd" and 0 < beta < 1:
            m = (beta * p_t + (1 - beta) * p_s).clamp_min(torch.finfo(p_s.dtype).tiny).log()
            value = (beta * p_t * (t - m) + (1 - beta) * p_s * (s - m)).sum(-1)
        elif kind == "symmetric_ce":
            value = -0.5 * (p_t * s + p_s * t).sum(-1)
        else:
            d = zero(s - t, no_s | no_t)
            forward, reverse = {"reverse": (0, 1), "jeffreys": (1, 1), "jsd": (1 - beta, beta)}.get(kind, (1, 0))
            value = ((reverse * p_s - forward * p_t) * d).sum(-1)
    value = torch.where(counted, value, 0.0)
    return times_t2(value, temperature) if scale_by_t2 else value


@_op.fake("divergence")
def _(student, *_):
    options = {"dtype": accumulator(student), "device": student.device}
    return torch.empty(student.shape[:-1], **options), torch.empty((*student.shape[:-1], 6), **options)


_divergence = _autograd.differentiable("divergence", strided=True, leading=True, own_row=True)
_divergence_inplace = _autograd.differentiable(
    "divergence", backward="divergence_backward_", strided=True, leading=True, own_row=True
)


def forms_of(
    op: str, scale: float, softcap: float | None, teacher_scale: float, teacher_softcap: float | None
) -> tuple[float, float, float, float]:
    """The forms of both sides' logits as the raw ops take them."""
    return *form_of(op, scale, softcap), *form_of(op, teacher_scale, teacher_softcap, "teacher_")


def check_kind(op: str, kind: str, beta: float | None, targets: Tensor | None) -> float:
    """beta, .5 where it is not given. An option that the kind would ignore raises ValueError."""
    if beta is not None and kind != "jsd":
        raise ValueError(f"{op}: beta belongs to kind 'jsd', not to {kind!r}")
    if targets is not None and kind != "logit_swap":
        raise ValueError(f"{op}: targets belong to kind 'logit_swap', not to {kind!r}")
    return 0.5 if beta is None else float(beta)


@explained
def divergence(
    student_logits: Tensor,
    teacher_logits: Tensor,
    *,
    kind: str = "forward",
    temperature: float | Tensor = 1.0,
    beta: float | None = None,
    mask: Tensor | None = None,
    targets: Tensor | None = None,
    scale_by_t2: bool = False,
    scale: float = 1.0,
    softcap: float | None = None,
    teacher_scale: float = 1.0,
    teacher_softcap: float | None = None,
    inplace_backward: bool = False,
) -> Tensor:
    """Divergence of the student's distribution from the teacher's at each token, in nats; the teacher is a constant.

    With p = softmax(logits / temperature), S the student, T the teacher, sums over the vocabulary:

    - `forward`: KL(pT || pS) = sum pT (log pT - log pS).
    - `reverse`: KL(pS || pT).
    - `jeffreys`: the sum of both.
    - `jsd`: beta KL(pT || m) + (1 - beta) KL(pS || m), m = beta pT + (1 - beta) pS. As in GKD and TRL's
      `generalized_jsd_loss`, beta = 0 is `forward` and beta = 1 `reverse`, not the 0 that the sum would give.
    - `symmetric_ce`: -sum pT log pS / 2 - sum pS log pT / 2.
    - `logit_swap`: KL(p~ || pS), p~ the teacher after its largest logit (the first of equals) and that of the target
      have changed places. The method's loss is NLL + a times this, a about .3; the NLL is the caller's.
    - `binary`: the sum of KL(Bernoulli(sigmoid(zT / temperature)) || Bernoulli(sigmoid(zS / temperature))); no softmax.
      The published loss has the factor temperature^2: `scale_by_t2`.

    A token that only one side rules out (a logit of `-inf`) would make some of these infinite: its infinite term is
    left out, value and gradient are those of the remaining sum. One pass over both logits each way, no [..., V]
    temporary but the gradient.

    Args:
        student_logits: (..., V) float32, bfloat16, float16 or float64. V has stride 1; the leading dimensions may be
            strided (`logits[:, :-1]` is not copied).
        teacher_logits: the same shape, dtype and device.
        kind: one of the above.
        temperature: a number above 0, or a float32 tensor, (...,) with one value a row or with one for all. It gets no
            gradient.
        beta: in [0, 1], for `jsd` alone: the teacher's share of the mixture; None takes .5.
        mask: (...,) bool. False gives value 0 and a zero gradient, whatever stands in the row; so does a row where one
            side's logits are all `-inf` (but for `binary`).
        targets: (...,) int64 in [0, V), for `logit_swap` alone; anything in masked rows.
        scale_by_t2: multiply by temperature^2, which keeps the size of the gradient over temperatures (Hinton 2015).
        scale, softcap: what the student does to the product of its output layer, where `student_logits` are that
            product: `softcap * tanh(scale * logits / softcap)`, as in `token_logprob`.
        teacher_scale, teacher_softcap: the same of the teacher, which need not be alike.
        inplace_backward: the backward writes the gradient over `student_logits`, saving a tensor of its size. They must
            not be needed afterwards; a second backward raises.

    Returns:
        (...,) in float32 (float64 for float64), differentiable with respect to `student_logits` only.

    Raises:
        ValueError: a shape, dtype, device or stride does not fit, an unknown kind, `beta` outside of [0, 1] or with a
            kind that has none, the temperature is not above 0, `targets` missing, with a kind that has none, or (CPU
            only) out of range. On CUDA, where checking would
            synchronise, such a row gives NaN.

    Source: GKD (arXiv 2306.13649), TRL GKDTrainer; on teacher hacking (arXiv 2502.02671); Mix-CPT (arXiv 2407.10804);
    dual-head distillation (arXiv 2411.08937).
    """
    beta = check_kind("divergence", kind, beta, targets)
    each, scalar = _op.per_row(temperature, student_logits.shape[:-1])
    if inplace_backward:
        _op.check_written("divergence", "student_logits", student_logits, "leave inplace_backward off")
    forms = forms_of("divergence", scale, softcap, teacher_scale, teacher_softcap)
    run = _divergence_inplace if inplace_backward else _divergence
    value, _ = run(student_logits, teacher_logits, each, mask, targets, kind, scalar, beta, *forms)
    return times_t2(value, temperature) if scale_by_t2 else value
