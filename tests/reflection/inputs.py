"""What the specs of this family share: the tables of requests in every state that they can be in."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.support.case import Inputs, New, name_of
from warpup.reflection.apply_schedule import FIELDS, SCHEDULE, ReflectionTables
from warpup.reflection.batch import marker_row
from warpup.reflection.sampling import sampling_row

MARKERS = torch.tensor([marker_row(m) for m in ((3,), (4, 3, 4), (5, 5, 7), (6,))], dtype=torch.int32)
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

    state = torch.zeros(slots, 1 + RING, FIELDS, dtype=torch.int32)
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
    schedules = torch.zeros(slots, len(SCHEDULE), dtype=torch.float64)
    for name, values in columns.items():
        schedules[:, SCHEDULE.index(name)] = values.double()
    return {
        "state": state, "schedules": bits(schedules), "sets": sets.flatten().int(), "knots": knots, "markers": MARKERS,
        "sampling": bits(torch.tensor([sampling_row()] * slots, dtype=torch.float64)),
    }  # fmt: skip


def tables_of(x: Inputs) -> ReflectionTables:
    middle = (x[name] for name in NAMES[2:-1])
    return ReflectionTables(x["state"], bits(x["schedules"]), *middle, bits(x["sampling"]))


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
