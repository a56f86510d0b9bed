"""Case table of `logprob`: log-probabilities from hidden states."""

from __future__ import annotations

from typing import Any

import torch

import warpup
from tests.logprob.spec_token_logprob import flags_of, saved_and_gradients, targets_and_options, tokens_of
from tests.support.case import Case, Inputs
from tests.support.inputs import moved_to
from warpup._products import library_has
from warpup.logprob.linear_logprob import reference_linear_logprob


def linear_logprob_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(N, H, V); the variants of `targets_and_options`, all but `plain` with a bias and slices that do not divide V."""
    generator = torch.Generator().manual_seed(seed)
    rows, width, vocab = size
    hidden, weight = (torch.randn(n, width, generator=generator, dtype=torch.float64) for n in (rows, vocab))
    options = targets_and_options(torch.empty(rows, vocab), generator, variant)
    inputs = {"hidden": hidden.to(dtype), "weight": (2 * weight / width**0.5).to(dtype), **options}
    if variant != "plain":
        inputs |= {"bias": torch.randn(vocab, generator=generator).to(dtype), "chunk": 5}
    else:
        inputs["bias"] = torch.zeros(vocab, dtype=dtype)
    return moved_to(device, inputs)


def linear_logprob_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    arguments = (x["hidden"], x["weight"], x["bias"], *tokens_of(x, x["weight"].shape[0]), x.get("chunk", 64))
    widen = not library_has(x["hidden"].dtype, x["hidden"].device)
    found = ops.linear_logprob(*arguments, *flags_of(x), widen)
    return [
        ("linear_logprob", (*arguments, *flags_of(x), widen)),
        ("linear_logprob_backward", (*arguments, *saved_and_gradients(x, found), [True, True, True])),
    ]


def linear_logprob_bytes(x: Inputs) -> tuple[int, int]:
    size = sum(x[k].numel() * x[k].element_size() for k in ("hidden", "weight"))
    return size, 2 * size


CASES = [
    Case(
        op="linear_logprob",
        family="logprob",
        call=warpup.linear_logprob,
        reference=reference_linear_logprob,
        sizes={
            "grad": (3, 4, 7),
            "small": (5, 19, 131),
            "threads": (64, 32, 3000),
            "overhead": (2, 4, 16),
            "bench": (2048, 1024, 32000),
        },
        variants=("plain", "ignored", "entropy", "several", "all"),
        inputs=linear_logprob_inputs,
        differentiable=("hidden", "weight", "bias"),
        raw=linear_logprob_raw,
        core=None,
        products=True,
        bytes=linear_logprob_bytes,
    ),
]
