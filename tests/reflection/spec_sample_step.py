"""Case table of `sample_step`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.reflection.inputs import RING, bits, no_backward, random_tables, tables_of, to
from tests.support.case import Case, Inputs, New, Thunk, name_of
from warpup import arrays as core
from warpup.reflection.sample_step import SampledStep, reference_sample_step, sample_step
from warpup.reflection.sampling import SAMPLING

ALONGSIDE = ("tuned", "base", "seen", "counts", "bias", "back")


def sample_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(rows, V, ids). Variants: plain (temperatures, no filter); filters (some of top-k, top-p, min-p, some greedy);
    more (the other filters, a bias that rules tokens out, frequency penalties); all (the first filters, bias and
    penalties, a scale and a soft cap, emulated fine-tuning, some rows behind drafts or of no request, -inf logits)."""
    rows, vocab, ids = size
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def normal():
        return (3 * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)).to(dtype)

    inputs: Inputs = random_tables(rows, vocab, ids, generator)
    inputs |= {
        "logits": normal(),
        "slots": torch.arange(rows),
        "stream": 0,
        "scale": 1.0,
        "softcap": None,
        **dict.fromkeys(ALONGSIDE),
    }
    sampling = bits(inputs["sampling"]).clone()
    column = dict(zip(SAMPLING, sampling.T, strict=True))
    for phase in ("think", "answer", "code"):
        column[phase].copy_((0.3 + uniform(rows)) * (uniform(rows) > 0.2 * (variant != "plain")))
    column["seed"].copy_((uniform(rows) * 2**53).floor())
    if variant in ("more", "all"):
        inputs["bias"] = torch.where(uniform(rows, vocab) < 0.2, -torch.inf, uniform(rows, vocab)).float()
        inputs["counts"] = torch.randint(4, (rows, vocab), generator=generator).int()
        column["frequency"].copy_(uniform(rows))
    if variant == "more":
        column["top_h"].copy_((0.1 + 0.8 * uniform(rows)) * (uniform(rows) < 0.5))
        column["typical_p"].copy_(torch.where(uniform(rows) < 0.5, 0.1 + 0.8 * uniform(rows), 1.0))
        for name in ("epsilon_cutoff", "eta_cutoff"):
            column[name].copy_(0.05 * uniform(rows) * (uniform(rows) < 0.5))
    if variant in ("filters", "all"):
        column["top_k"].copy_((uniform(rows) * vocab).floor() * (uniform(rows) < 0.5))
        column["top_p"].copy_(torch.where(uniform(rows) < 0.5, uniform(rows), 1.0))
        column["min_p"].copy_(uniform(rows) * 0.3 * (uniform(rows) < 0.3))
    if variant == "all":
        inputs["logits"][uniform(rows, vocab) < 0.1] = -torch.inf
        inputs |= {"tuned": normal(), "base": normal(), "stream": 3, "scale": 1.1, "softcap": 5.0}
        inputs["slots"] = torch.randint(-1, rows, (rows,), generator=generator)
        inputs["back"] = torch.randint(RING, (rows,), generator=generator)
        inputs["seen"] = torch.randint(4, (rows, vocab), generator=generator).to(torch.uint8)
        column["repetition"].copy_(1 + uniform(rows))
        column["presence"].copy_(uniform(rows))
        column["beta"].copy_(0.5 * uniform(rows))
    return to(device, inputs | {"sampling": bits(sampling)})


def sampled(function):
    def call(logits, slots, stream, scale, softcap, **inputs):
        alongside = {name: inputs.pop(name) for name in ALONGSIDE}
        return function(logits, tables_of(inputs), slots, stream=stream, scale=scale, softcap=softcap, **alongside)

    return call


def sample_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    state, schedules, sets, knots, _, sampling = tables_of(x)
    tables, form = (state, schedules, sets, knots, sampling, x["slots"]), (x["scale"], x["softcap"] or 0.0)
    rest = (*(x[name] for name in ("tuned", "base", "back", "seen", "counts", "bias", "stream")), *form)
    return [("sample_step", (x["logits"], *tables, *rest))]


def sample_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    rows, dtype = tuple(x["slots"].shape), name_of(x["logits"].dtype)
    acc = "float64" if dtype == "float64" else "float32"
    dtypes = ("int64", acc, acc, acc, acc, "float32", "float32", acc, acc)
    names = SampledStep._fields
    outputs = {name: new(rows, kind) for name, kind in zip(names, dtypes, strict=True)}
    given = {name: x[name] for name in ("state", "sets", "knots", "slots", "stream", *ALONGSIDE)}
    given |= {"scale": x["scale"], "softcap": x["softcap"] or 0.0}
    given |= {name: bits(x[name]) for name in ("schedules", "sampling")}
    if isinstance(x["logits"], Tensor) and x["logits"].is_cuda:
        given["scratch"] = new(tuple(x["logits"].shape), acc)

    def forward():
        core.sample_step(x["logits"], **given, **outputs)
        return tuple(outputs.values())

    return forward, no_backward


CASES = [
    Case(
        op="sample_step",
        family="reflection",
        call=sampled(sample_step),
        reference=sampled(reference_sample_step),
        sizes={
            "grad": (3, 7, 2),
            "small": (40, 131, 6),
            "threads": (200, 2500, 9),
            "overhead": (2, 16, 2),
            "bench": (64, 151936, 16),
        },
        variants=("plain", "filters", "more", "all"),
        inputs=sample_inputs,
        differentiable=(),
        raw=sample_raw,
        core=sample_core,
        bytes=lambda x: (x["logits"].numel() * x["logits"].element_size(), 0),
    ),
]
