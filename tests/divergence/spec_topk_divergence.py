"""Case table of `divergence`: from a teacher's top K tokens."""

from __future__ import annotations

from typing import Any

import torch

import warpup
from tests.divergence.spec_divergence import SIZES, row_options, temperature_of
from tests.support.case import Case, Inputs, New, Thunk, name_of
from tests.support.inputs import moved_to
from warpup import arrays as core
from warpup.divergence.topk_divergence import reference_topk_divergence


def topk_divergence_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: each kind, some with the tail; special (a masked row, `-inf` on either side, a token listed twice, a
    temperature a row, a scale and a soft cap)."""
    generator = torch.Generator().manual_seed(seed)
    student = (2 * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)
    teacher = 2 * torch.randn(size, generator=generator, dtype=torch.float64)
    logp, ids = teacher.log_softmax(-1).topk(min(4, size[-1]))
    kind, *options = variant.split("+")
    inputs: Inputs = {"student_logits": student, "teacher_ids": ids, "temperature": 1.5, "mask": None}
    inputs |= {"kind": kind, "beta": 0.3 if kind in ("jsd", "mixed") else None, "tail": "tail" in options}
    if "special" in options:
        inputs |= row_options(size, generator) | {"scale": 1.2, "softcap": 3.0}
        ids[..., 1] = ids[..., 0]
        logp[..., 2] = -torch.inf
        student.scatter_(-1, ids[..., 3:4], -torch.inf)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    return moved_to(device, {**inputs, "teacher_logp": logp.to(acc)})


def _topk_arguments(x: Inputs) -> tuple:
    per_row, scalar = temperature_of(x)
    tensors = (x["student_logits"], x["teacher_ids"], x["teacher_logp"], per_row, x["mask"])
    beta = 0.5 if x["beta"] is None else x["beta"]
    return *tensors, x["kind"], scalar, beta, x["tail"], x.get("scale", 1.0), x.get("softcap", 0.0)


def topk_divergence_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    arguments = _topk_arguments(x)
    value, stats = ops.topk_divergence(*arguments)
    return [("topk_divergence", arguments), ("topk_divergence_backward", (*arguments, stats, value))]


def topk_divergence_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    *tensors, kind, scalar, beta, tail, scale, softcap = _topk_arguments(x)
    shape, dtype = tuple(tensors[0].shape), name_of(tensors[0].dtype)
    acc = "float64" if dtype == "float64" else "float32"
    value, stats, grad = new(shape[:-1], acc), new((*shape[:-1], 6), acc), new(shape, dtype)
    common = {"kind": kind, "temperature_scalar": scalar, "beta": beta, "tail": tail, "stats": stats}
    common |= {"scale": scale, "softcap": softcap}

    def forward():
        core.topk_divergence(*tensors, value=value, **common)
        return (value,)

    def backward():
        core.topk_divergence_backward(*tensors, grad_value=gradients[0], grad_student=grad, **common)
        return (grad,)

    return forward, backward


def topk_divergence_bytes(x: Inputs) -> tuple[int, int]:
    size = x["student_logits"].numel() * x["student_logits"].element_size()
    return size, 2 * size


VARIANTS = (
    "forward", "reverse+tail", "mixed", "jsd+tail", "forward+special", "jsd+special", "mixed+tail+special",
)  # fmt: skip

CASES = [
    Case(
        op="topk_divergence",
        family="divergence",
        call=warpup.topk_divergence,
        reference=reference_topk_divergence,
        sizes=SIZES,
        variants=VARIANTS,
        inputs=topk_divergence_inputs,
        differentiable=("student_logits",),
        raw=topk_divergence_raw,
        core=topk_divergence_core,
        bytes=topk_divergence_bytes,
    ),
]
