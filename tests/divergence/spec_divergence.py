"""Case table of `divergence`: from the logits of both sides."""

from __future__ import annotations

from typing import Any

import torch

import warpup
from tests.support.case import Case, Inputs, New, Thunk, name_of
from tests.support.inputs import moved_to
from warpup import arrays as core
from warpup.divergence.divergence import DIVERGENCES, reference_divergence

SIZES = {"grad": (3, 7), "small": (5, 131), "threads": (64, 3000), "overhead": (2, 16), "bench": (512, 32000)}

FORMS = {"scale": 1.0, "softcap": 0.0, "teacher_scale": 1.0, "teacher_softcap": 0.0}  # as raw ops take none


def row_options(size, generator) -> Inputs:
    mask = torch.rand(size[:-1], generator=generator) < 0.7
    mask.view(-1)[:2] = torch.tensor([False, True])
    return {"mask": mask, "temperature": torch.rand(size[:-1], generator=generator) + 0.5}


def temperature_of(x: Inputs) -> tuple:
    t = x["temperature"]
    return (None, t) if isinstance(t, float) else (t, 1.0)


def divergence_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: each kind; and each again with a masked row, `-inf` logits on one side and on both, a temperature a
    row, a scale and a soft cap of each side."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = ((2 * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype) for _ in range(2))
    kind, _, special = variant.partition("+")
    inputs: Inputs = {"student_logits": student, "teacher_logits": teacher, "kind": kind, "temperature": 1.5}
    inputs |= {"beta": 0.3 if kind == "jsd" else None, "mask": None, "targets": None}
    if kind == "logit_swap":
        inputs["targets"] = torch.randint(size[-1], size[:-1], generator=generator)
    if special:
        inputs |= row_options(size, generator)
        inputs |= {"scale": 1.2, "softcap": 3.0, "teacher_scale": 0.9, "teacher_softcap": 4.0}
        student[..., [1, 3]] = -torch.inf
        teacher[..., [2, 3]] = -torch.inf
    return moved_to(device, inputs)


def _divergence_arguments(x: Inputs) -> tuple:
    per_row, scalar = temperature_of(x)
    tensors = (x["student_logits"], x["teacher_logits"], per_row, x["mask"], x["targets"])
    forms = tuple(x.get(name, off) for name, off in FORMS.items())
    return (*tensors, x["kind"], scalar, 0.5 if x["beta"] is None else x["beta"], *forms)


def divergence_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    arguments = _divergence_arguments(x)
    value, stats = ops.divergence(*arguments)
    backward = (*arguments, stats, value)
    return [
        ("divergence", arguments),
        ("divergence_backward", backward),
        ("divergence_backward_", (backward[0].clone(), *backward[1:])),
    ]


def divergence_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    *tensors, kind, scalar, beta, _, _, _, _ = _divergence_arguments(x)
    shape, dtype = tuple(tensors[0].shape), name_of(tensors[0].dtype)
    acc = "float64" if dtype == "float64" else "float32"
    value, stats, grad = new(shape[:-1], acc), new((*shape[:-1], 6), acc), new(shape, dtype)
    common = {"kind": kind, "temperature_scalar": scalar, "beta": beta, "stats": stats}
    common |= {name: x[name] for name in FORMS if name in x}

    def forward():
        core.divergence(*tensors, value=value, **common)
        return (value,)

    def backward():
        core.divergence_backward(*tensors, grad_value=gradients[0], grad_student=grad, **common)
        return (grad,)

    return forward, backward


def divergence_bytes(x: Inputs) -> tuple[int, int]:
    size = x["student_logits"].numel() * x["student_logits"].element_size()
    return 2 * size, 3 * size


CASES = [
    Case(
        op="divergence",
        family="divergence",
        call=warpup.divergence,
        reference=reference_divergence,
        sizes=SIZES,
        variants=tuple(kind + special for special in ("", "+special") for kind in DIVERGENCES),
        inputs=divergence_inputs,
        differentiable=("student_logits",),
        raw=divergence_raw,
        core=divergence_core,
        bytes=divergence_bytes,
    ),
]
