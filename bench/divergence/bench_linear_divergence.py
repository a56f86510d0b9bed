"""Family `divergence`: from hidden states, beside the products alone, what makes the logits, TRL's function of its
distillation trainer, and Liger-Kernel's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import warpup
from bench.harness.measure import Comparison, Work, compiled, differentiable
from bench.harness.timing import Candidate
from tests.support.cases import gradients_of
from warpup.divergence.linear_divergence import reference_linear_divergence

SHAPES = {"cpu": (512, 32000, 512, 1024), "cuda": (8192, 151936, 2048, 4096), "quick": (8, 300, 16, 24)}


def cases(device: str, size: str) -> Iterator[Comparison]:
    for kind in ("forward", "jsd"):
        name = f"linear_divergence {kind} forward+backward fp32 {list(SHAPES[size])}"
        yield Comparison(name, partial(linear_divergence, device, SHAPES[size], kind))


def test_linear_divergence(case, measure):
    measure(case)


def gemms(student_hidden, student_weight, teacher_hidden, teacher_weight, kind, beta):
    """What any implementation that keeps no logits must multiply, in the same chunks: the floor, not a result."""
    del kind, beta
    n, vocab = student_hidden.shape[0], student_weight.shape[0]
    step = max(1, (32 << 20) // student_hidden.element_size() // vocab) if student_hidden.device.type == "cpu" else n
    dw = torch.zeros_like(student_weight)
    buffers = [student_hidden.new_empty(min(step, n), vocab) for _ in range(2)]
    dx = torch.empty_like(student_hidden)
    for backward in (False, True):
        for begin in range(0, n, step):
            at = slice(begin, min(begin + step, n))
            s, t = (b[: at.stop - begin] for b in buffers)
            torch.mm(student_hidden[at], student_weight.t(), out=s)
            torch.mm(teacher_hidden[at], teacher_weight.t(), out=t)
            if backward:
                torch.mm(s, student_weight, out=dx[at])
                dw.addmm_(s.t(), student_hidden[at])
    return dx, dw


def liger(beta):
    """Liger-Kernel's fused linear jsd, soft loss alone: the mean over tokens, so it is only timed where it runs."""
    try:
        from liger_kernel.chunked_loss.jsd_loss import LigerFusedLinearJSDFunction as function
    except ImportError:
        return None

    def call(student_hidden, student_weight, teacher_hidden, teacher_weight, **_):
        labels = torch.zeros(student_hidden.shape[0], dtype=torch.int64, device=student_hidden.device)
        arguments = (student_hidden, student_weight, teacher_hidden, teacher_weight, labels)
        loss = function.apply(*arguments, None, None, 0.0, 1.0, beta, -100, 1.0, False, 256)
        return loss[0] if isinstance(loss, tuple) else loss

    return call


def trl(beta):
    """What TRL's distillation trainer calls (1.16); beta 0 is the forward divergence."""
    try:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction as function
    except ImportError:
        return None
    return lambda student_hidden, student_weight, teacher_hidden, teacher_weight, **_: function.apply(
        student_hidden, student_weight, None, teacher_hidden, teacher_weight, None, beta
    )[0]


def linear_divergence(device, shape, kind) -> Work:
    n, vocab, h_s, h_t = shape
    generator = torch.Generator(device).manual_seed(0)
    sizes = {"student_hidden": (n, h_s), "student_weight": (vocab, h_s)}
    sizes |= {"teacher_hidden": (n, h_t), "teacher_weight": (vocab, h_t)}
    inputs = {k: torch.randn(v, generator=generator, device=device) for k, v in sizes.items()}
    inputs |= {k: inputs[k] * inputs[k].shape[-1] ** -0.5 for k in ("student_weight", "teacher_weight")}
    inputs |= {"kind": kind, "beta": 0.3 if kind == "jsd" else None}
    wrt = ("student_hidden", "student_weight")
    functions = {"warpup": warpup.linear_divergence, "eager": reference_linear_divergence}
    functions["torch.compile"] = compiled(reference_linear_divergence)
    if peer := trl(inputs["beta"] or 0.0):
        functions["TRL chunked"] = peer
    candidates = {name: differentiable(f, inputs, wrt, "forward+backward") for name, f in functions.items()}
    candidates["its GEMMs alone"] = Candidate(lambda: gemms(**inputs), result=None)
    if kind == "jsd" and liger(0.3):
        peer = differentiable(liger(0.3), inputs, wrt, "forward+backward")
        candidates["Liger-Kernel (mean, other scale)"] = Candidate(peer.run, setup=peer.setup, result=None)

    def reference():
        exact = {
            k: v.double().requires_grad_(k in wrt) if isinstance(v, torch.Tensor) else v for k, v in inputs.items()
        }
        value = reference_linear_divergence(**exact)
        gradient = gradients_of([torch.empty(n, device=device)])[0].double()
        return (value.detach(), *torch.autograd.grad(value, [exact[k] for k in wrt], gradient))

    flops = 2 * n * vocab * (4 * h_s + 2 * h_t)
    size = sum(v.numel() * v.element_size() for v in inputs.values() if isinstance(v, torch.Tensor))
    return Work(candidates, bytes=2 * size, reference=reference, flops=flops)
