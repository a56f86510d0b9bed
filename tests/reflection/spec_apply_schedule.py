"""Case table of `apply_schedule_` and `reflection_state_update_`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.reflection.inputs import RING, bits, filled, no_backward, random_tables, tables_of, to
from tests.support.case import Case, Inputs, New, Thunk
from warpup import arrays as core
from warpup.reflection.apply_schedule import (
    FIELDS,
    apply_schedule_,
    reference_apply_schedule_,
    reference_reflection_state_update_,
    reflection_state_update_,
)

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
    return rows * (ids * (4 + 2 * x["logits"].element_size()) + 8 * 16 + 4 * 3 * FIELDS), 0


CASES = [
    Case(
        op="reflection_state_update_",
        family="reflection",
        call=updated(reflection_state_update_),
        reference=updated(reference_reflection_state_update_),
        sizes={"grad": (3, 5), "small": (11, 13), "threads": (300, 40), "overhead": (2, 1), "bench": (256, 1)},
        variants=("step", "prompts", "drafts"),
        inputs=update_inputs,
        differentiable=(),
        raw=update_raw,
        core=update_core,
        bytes=lambda x: (x["tokens"].numel() * (8 + 2 * 4 * FIELDS), 0),
        dtypes=(torch.int64, torch.int32),
    ),
    Case(
        op="apply_schedule_",
        family="reflection",
        call=applied(apply_schedule_),
        reference=applied(reference_apply_schedule_),
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
