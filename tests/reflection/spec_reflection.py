"""Case table of `reflection`: the state of requests, their schedules, and the step that draws a token."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.support.case import Case, Inputs, New, Thunk, name_of
from warpup import arrays as core
from warpup.reflection import apply_schedule as reflection
from warpup.reflection import sample_step as reflection_sample
from warpup.reflection.batch import marker_row

MARKERS = torch.tensor([marker_row(m) for m in ((3,), (4, 3, 4), (5, 5), (6,))], dtype=torch.int32)
RING = 4
NAMES = ("state", "schedules", "sets", "knots", "markers", "sampling")


def bits(schedules: Any) -> Any:
    """Schedules travel through the case table as int64, so that nothing rounds the codes among their columns."""
    if isinstance(schedules, Tensor):
        return schedules.view(torch.float64 if schedules.dtype == torch.int64 else torch.int64)
    return schedules.view("float64" if "int64" in str(schedules.dtype) else "int64")


def random_tables(slots: int, vocab: int, ids: int, generator) -> dict[str, Tensor]:
    """Every wave, anchor, phase and unit, in states that a request can be in."""

    def draw(high, *shape):
        return torch.randint(high, shape or (slots,), generator=generator)

    state = torch.zeros(slots, 1 + RING, reflection.FIELDS, dtype=torch.int32)
    prompt = draw(4)
    seen = prompt + draw(60) - (draw(8) == 0) * prompt
    state[:, 0, 0], state[:, 0, 1], state[:, 0, 2] = seen, prompt, draw(12) == 0
    state[:, 0, 3] = (seen - RING + 1).clamp(min=0)
    state[:, 1:, 0], state[:, 1:, 1] = draw(3, slots, RING), draw(5, slots, RING) == 0
    state[:, 1:, 2], state[:, 1:, 3] = draw(3, slots, RING), draw(6, slots, RING) - 1
    sets = torch.stack([torch.randperm(vocab, generator=generator)[:ids].sort().values for _ in range(2)])
    knots = torch.tensor([[0.0, -1.0], [10.0, 2.0], [11.0, 0.5], [40.0, -3.0]], dtype=torch.float64)
    columns = {
        "wave": draw(5), "amplitude": torch.randn(slots, generator=generator, dtype=torch.float64) * 3,
        "period": 4 + draw(30), "shift": torch.rand(slots, generator=generator, dtype=torch.float64),
        "offset": draw(9), "begin": draw(4) - 2, "end": 20 + 40 * draw(2), "anchor": draw(3), "phases": draw(15) + 1,
        "unit": draw(2), "set": ids * draw(2), "set_size": torch.full((slots,), ids), "knots": draw(2),
        "knots_size": 1 + draw(3),
    }  # fmt: skip
    schedules = torch.zeros(slots, len(reflection.SCHEDULE), dtype=torch.float64)
    for name, values in columns.items():
        schedules[:, reflection.SCHEDULE.index(name)] = values.double()
    return {
        "state": state, "schedules": bits(schedules), "sets": sets.flatten().int(), "knots": knots, "markers": MARKERS,
        "sampling": bits(torch.tensor([reflection_sample.sampling_row()] * slots, dtype=torch.float64)),
    }  # fmt: skip


def tables_of(x: Inputs) -> reflection.ReflectionTables:
    middle = (x[name] for name in NAMES[2:-1])
    return reflection.ReflectionTables(x["state"], bits(x["schedules"]), *middle, bits(x["sampling"]))


def to(device: str, inputs: Inputs) -> Inputs:
    return {k: v.to(device) if isinstance(v, Tensor) else v for k, v in inputs.items()}


def no_backward() -> tuple:
    return ()


def filled(new: New, like: Any) -> Any:
    """An output array that begins as a copy: what an op changes in place."""
    out = new(tuple(like.shape), name_of(like.dtype))
    if isinstance(out, Tensor):
        out.copy_(like)
    else:
        out[...] = np.asarray(like)
    return out


# ---- reflection_state_update_ ---------------------------------------------------------------------------------------


def update_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(rows, width). Variants: step (a token each); prompts (begun anew, ragged, padded on the left); drafts (some are
    taken back first, some rows stand for nothing)."""
    rows, width = size
    generator = torch.Generator().manual_seed(seed)
    inputs: Inputs = random_tables(rows, 9, 3, generator)
    width = 1 if variant == "step" else width
    dtype = torch.int64 if dtype.is_floating_point else dtype
    inputs |= {
        "tokens": torch.randint(9, (rows, width), generator=generator).to(dtype),
        "slots": torch.randperm(rows, generator=generator),
    }
    optional: Inputs = dict.fromkeys(("first", "count", "prompt", "rollback"))
    if variant == "prompts":
        padding = torch.randint(width, (rows,), generator=generator)
        prompt = torch.randint(-1, width, (rows,), generator=generator)
        optional |= {"first": padding, "count": width - padding, "prompt": prompt}
    if variant == "drafts":
        inputs["slots"][::5] = -1
        seen = inputs["state"][inputs["slots"].clamp(min=0), 0, 0].long()
        optional["rollback"] = torch.minimum(torch.randint(RING, (rows,), generator=generator), seen)
    return to(device, inputs | optional)


def updated(function):
    def call(tokens, slots, first, count, prompt, rollback, **tables):
        mine = tables_of({**tables, "state": tables["state"].clone()})
        function(mine, tokens, slots, first=first, count=count, prompt=prompt, rollback=rollback)
        return mine.state

    return call


OPTIONAL = ("first", "count", "prompt", "rollback")


def update_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    state, schedules, sets, _, markers, _ = tables_of(x)
    arguments = (state.clone(), schedules, sets, markers, x["tokens"], x["slots"], *(x[name] for name in OPTIONAL))
    return [("reflection_state_update_", arguments)]


def update_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    state, schedules = filled(new, x["state"]), bits(x["schedules"])

    def forward():
        optional = {name: x[name] for name in OPTIONAL}
        core.reflection_state_update_(state, schedules, x["sets"], x["markers"], x["tokens"], x["slots"], **optional)
        return (state,)

    return forward, no_backward


# ---- apply_schedule_ ------------------------------------------------------------------------------------------------


def apply_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(rows, V, ids). Variants: plain; rows (of several requests, behind drafts or of none, a temperature each)."""
    rows, vocab, ids = size
    generator = torch.Generator().manual_seed(seed)
    inputs: Inputs = random_tables(rows, vocab, ids, generator)
    logits = 3 * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)
    inputs |= {"logits": logits.to(dtype), "slots": torch.arange(rows), "back": None, "temperature": 0.7}
    if variant == "rows":
        inputs["slots"] = torch.randint(-1, rows, (rows,), generator=generator)
        inputs["back"] = torch.randint(RING + 1, (rows,), generator=generator)
        inputs["temperature"] = 0.5 + torch.rand(rows, generator=generator)
    return to(device, inputs)


def applied(function):
    def call(logits, slots, back, temperature, **tables):
        changed = logits.clone()
        return changed, function(changed, tables_of(tables), slots, back=back, temperature=temperature)

    return call


def apply_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    per_row = isinstance(x["temperature"], Tensor)
    temperature = (x["temperature"], 1.0) if per_row else (None, x["temperature"])
    return [("apply_schedule_", (x["logits"].clone(), *tables_of(x)[:4], x["slots"], x["back"], *temperature))]


def apply_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    logits, delta = filled(new, x["logits"]), new(tuple(x["slots"].shape), "float32")
    schedules, scalar = bits(x["schedules"]), isinstance(x["temperature"], float)
    temperature = {"temperature_scalar" if scalar else "temperature": x["temperature"]}

    def forward():
        arrays = (x["state"], schedules, x["sets"], x["knots"], x["slots"], x["back"])
        core.apply_schedule_(logits, *arrays, delta=delta, **temperature)
        return logits, delta

    return forward, no_backward


def apply_bytes(x: Inputs) -> tuple[int, int]:
    rows, ids = len(x["slots"]), x["sets"].shape[0] // 2
    return rows * (ids * (4 + 2 * x["logits"].element_size()) + 8 * 16 + 4 * 3 * reflection.FIELDS), 0


# ---- sample_step ----------------------------------------------------------------------------------------------------

ALONGSIDE = ("tuned", "base", "seen", "back")


def sample_inputs(size, dtype, device, seed, variant) -> Inputs:
    """(rows, V, ids). Variants: plain (temperatures, no filter); filters (some of top-k, top-p, min-p, some greedy);
    all (those, emulated fine-tuning, penalties, some rows behind drafts or of no request, -inf logits)."""
    rows, vocab, ids = size
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    def normal():
        return (3 * torch.randn(rows, vocab, generator=generator, dtype=torch.float64)).to(dtype)

    inputs: Inputs = random_tables(rows, vocab, ids, generator)
    inputs |= {"logits": normal(), "slots": torch.arange(rows), "stream": 0, **dict.fromkeys(ALONGSIDE)}
    sampling = bits(inputs["sampling"]).clone()
    column = dict(zip(reflection_sample.SAMPLING, sampling.T, strict=True))
    for phase in ("think", "answer", "code"):
        column[phase].copy_((0.3 + uniform(rows)) * (uniform(rows) > 0.2 * (variant != "plain")))
    column["seed"].copy_((uniform(rows) * 2**53).floor())
    if variant != "plain":
        column["top_k"].copy_((uniform(rows) * vocab).floor() * (uniform(rows) < 0.5))
        column["top_p"].copy_(torch.where(uniform(rows) < 0.5, uniform(rows), 1.0))
        column["min_p"].copy_(uniform(rows) * 0.3 * (uniform(rows) < 0.3))
    if variant == "all":
        inputs["logits"][uniform(rows, vocab) < 0.1] = -torch.inf
        inputs |= {"tuned": normal(), "base": normal(), "stream": 3}
        inputs["slots"] = torch.randint(-1, rows, (rows,), generator=generator)
        inputs["back"] = torch.randint(RING, (rows,), generator=generator)
        inputs["seen"] = torch.randint(4, (rows, vocab), generator=generator).to(torch.uint8)
        column["repetition"].copy_(1 + uniform(rows))
        column["presence"].copy_(uniform(rows))
        column["beta"].copy_(0.5 * uniform(rows))
    return to(device, inputs | {"sampling": bits(sampling)})


def sampled(function):
    def call(logits, slots, stream, tuned, base, seen, back, **tables):
        return function(logits, tables_of(tables), slots, tuned=tuned, base=base, seen=seen, back=back, stream=stream)

    return call


def sample_raw(ops: Any, x: Inputs) -> list[tuple[str, tuple]]:
    state, schedules, sets, knots, _, sampling = tables_of(x)
    tables = (state, schedules, sets, knots, sampling, x["slots"])
    return [("sample_step", (x["logits"], x["tuned"], x["base"], *tables, x["back"], x["seen"], x["stream"]))]


def sample_core(x: Inputs, gradients: tuple, new: New) -> tuple[Thunk, Thunk]:
    rows, dtype = tuple(x["slots"].shape), name_of(x["logits"].dtype)
    acc = "float64" if dtype == "float64" else "float32"
    dtypes = ("int64", acc, acc, acc, acc, "float32", "float32")
    names = reflection_sample.SampledStep._fields
    outputs = {name: new(rows, kind) for name, kind in zip(names, dtypes, strict=True)}
    given = {name: x[name] for name in ("state", "sets", "knots", "slots", "stream", *ALONGSIDE)}
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
        call=sampled(reflection_sample.sample_step),
        reference=sampled(reflection_sample.reference_sample_step),
        sizes={
            "grad": (3, 7, 2),
            "small": (40, 131, 6),
            "threads": (200, 2500, 9),
            "overhead": (2, 16, 2),
            "bench": (64, 151936, 16),
        },
        variants=("plain", "filters", "all"),
        inputs=sample_inputs,
        differentiable=(),
        raw=sample_raw,
        core=sample_core,
        bytes=lambda x: (x["logits"].numel() * x["logits"].element_size(), 0),
    ),
    Case(
        op="reflection_state_update_",
        family="reflection",
        call=updated(reflection.reflection_state_update_),
        reference=updated(reflection.reference_reflection_state_update_),
        sizes={"grad": (3, 5), "small": (11, 13), "threads": (300, 40), "overhead": (2, 1), "bench": (256, 1)},
        variants=("step", "prompts", "drafts"),
        inputs=update_inputs,
        differentiable=(),
        raw=update_raw,
        core=update_core,
        bytes=lambda x: (x["tokens"].numel() * (8 + 2 * 4 * reflection.FIELDS), 0),
        dtypes=(torch.int64, torch.int32),
    ),
    Case(
        op="apply_schedule_",
        family="reflection",
        call=applied(reflection.apply_schedule_),
        reference=applied(reflection.reference_apply_schedule_),
        sizes={
            "grad": (3, 7, 2),
            "small": (40, 131, 6),
            "threads": (2000, 40, 9),
            "overhead": (2, 16, 2),
            "bench": (64, 151936, 16),
        },
        variants=("plain", "rows"),
        inputs=apply_inputs,
        differentiable=(),
        raw=apply_raw,
        core=apply_core,
        bytes=apply_bytes,
    ),
]
