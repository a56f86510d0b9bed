"""Case table of `logprob`: log-probabilities from logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import warpup
from case import Case, Inputs, New, Thunk, name_of
from warpup._native import core
from warpup.ops import logprob


def token_logprob_inputs(size, dtype, device, seed, variant) -> Inputs:
    """Variants: plain; ignored (an ignored row, `-inf` logits); entropy (the same, entropies, a temperature a row)."""
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(size, generator=generator, dtype=torch.float64)).to(dtype)
    targets = torch.randint(size[-1], size[:-1], generator=generator)
    inputs: Inputs = {"logits": logits, "targets": targets, "temperature": 1.0, "entropy": False}
    if variant != "plain":
        logits[..., 1] = -torch.inf
        targets[targets == 1] = 0
        targets.view(-1)[0] = logprob.IGNORE_INDEX
    if variant == "entropy":
        inputs |= {"entropy": True, "temperature": torch.rand(size[:-1], generator=generator) + 0.5}
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def _token_logprob_arguments(x: Inputs) -> tuple:
    per_row = None if isinstance(x["temperature"], float) else x["temperature"]
    return x["logits"], x["targets"], per_row, x["temperature"] if per_row is None else 1.0, logprob.IGNORE_INDEX


def token_logprob_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    arguments = _token_logprob_arguments(x)
    logp, entropy, stats = ops.token_logprob(*arguments, x["entropy"])
    saved = (stats, entropy, logp, entropy) if x["entropy"] else (stats, None, logp, None)
    inplace = (arguments[0].clone(), *arguments[1:], *saved)
    return [
        ("token_logprob", (*arguments, x["entropy"])),
        ("token_logprob_backward", (*arguments, *saved)),
        ("token_logprob_backward_", inplace),
    ]


def token_logprob_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    *positional, scalar, ignore_index = _token_logprob_arguments(x)
    shape, dtype = tuple(x["logits"].shape), name_of(x["logits"].dtype)
    acc = "float64" if dtype == "float64" else "float32"
    logp, stats, grad = new(shape[:-1], acc), new((*shape[:-1], 2), acc), new(shape, dtype)
    entropy = new(shape[:-1], acc) if x["entropy"] else None
    common = {"temperature_scalar": scalar, "ignore_index": ignore_index, "stats": stats, "entropy": entropy}
    grads = dict(zip(("grad_logp", "grad_entropy"), gradients, strict=False))

    def forward():
        core.token_logprob(*positional, logp=logp, **common)
        return (logp, entropy) if x["entropy"] else (logp,)

    def backward():
        core.token_logprob_backward(*positional, grad_logits=grad, **grads, **common)
        return (grad,)

    return forward, backward


def token_logprob_bytes(x: Inputs) -> tuple[int, int]:
    size = x["logits"].numel() * x["logits"].element_size()
    return size, 2 * size


CASES = [
    Case(
        op="token_logprob",
        family="logprob",
        call=warpup.token_logprob,
        reference=logprob.reference_token_logprob,
        sizes={"grad": (3, 7), "small": (5, 131), "threads": (64, 3000), "overhead": (2, 16), "bench": (1024, 32000)},
        variants=("plain", "ignored", "entropy"),
        inputs=token_logprob_inputs,
        differentiable=("logits",),
        raw=token_logprob_raw,
        core=token_logprob_core,
        bytes=token_logprob_bytes,
    ),
]
