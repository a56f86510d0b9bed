"""`apply_schedule_` and `reflection_state_update_`: the state of each request's decoding in device tables, and the
schedule that it puts on the logits of some tokens.

Contract, numerics and bytes moved: csrc/reflection/apply_schedule.h. The tables are filled by `warpup.reflection`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from warpup import _op
from warpup._arguments import explained
from warpup._op import accumulator

FIELDS = 10  # of a state: phase, code, think_start, last_reflection, reflections, matched (4), spare
MARKER = 8  # tokens of a marker, at most
WAVES = ("off", "triangle", "constant", "cosine", "table")
ANCHORS = ("generation", "think", "reflection")
PHASES = ("prompt", "think", "answer", "code")
SCHEDULE = (
    "wave", "amplitude", "period", "shift", "offset", "begin", "end", "anchor", "phases", "unit",
    "set", "set_size", "knots", "knots_size", "spare_0", "spare_1",
)  # fmt: skip


class ReflectionTables(NamedTuple):
    """What the kernels read and write, indexed by slot: shapes never change, so a CUDA graph may hold them."""

    state: Tensor  # (S, 1 + ring, 10) int32
    schedules: Tensor  # (S, 16) float64, the columns SCHEDULE
    sets: Tensor  # (M,) int32: the token sets, each sorted
    knots: Tensor  # (N, 2) float64: (t, delta) of the table waves
    markers: Tensor  # (4, 2, 9) int32: begin and end of thinking, of code
    sampling: Tensor  # (S, 16) float64: how each request samples, the columns `sample_step.SAMPLING`


# ---- reference ------------------------------------------------------------------------------------------------------


def schedule_of(tables: ReflectionTables, slot: int) -> dict[str, float]:
    return dict(zip(SCHEDULE, tables.schedules[slot].tolist(), strict=True))


def set_of(tables: ReflectionTables, s: dict[str, float]) -> list[int]:
    return tables.sets[round(s["set"]) : round(s["set"] + s["set_size"])].tolist()


def progress_of(tables: ReflectionTables, slot: int, back: int) -> tuple[int, int, list[int]]:
    """Phase, generated tokens and state of a slot, `back` tokens ago."""
    seen, prompt, lost, oldest = tables.state[slot, 0, :4].tolist()
    ring = tables.state.shape[1] - 1
    generated = seen - back - prompt
    if lost or back < 0 or seen - back < oldest:
        return -1, 0, [0] * FIELDS
    d = tables.state[slot, 1 + (seen - back) % ring].tolist()
    return (0 if generated < 0 else 3 if d[1] else d[0] or 1), max(generated, 0), d


def reference_wave(s: dict[str, float], knots: list[list[float]], t: float) -> float:
    """The closed forms, in float64."""
    a, c = s["amplitude"], s["period"]
    u = t + s["shift"] * c
    match WAVES[round(s["wave"])]:
        case "triangle":
            return a * abs(4 * ((u - c / 4) % c) / c - 2) - a
        case "cosine":
            return a * math.cos(2 * math.pi * (u - c / 4) / c)
        case "constant":
            return a
        case "table":
            mine = knots[round(s["knots"]) : round(s["knots"] + s["knots_size"])]
            after = [i for i, (x, _) in enumerate(mine) if x > u]
            i = after[0] if after else len(mine)
            if i in (0, len(mine)):
                return mine[min(i, len(mine) - 1)][1] if mine else 0.0
            (x0, y0), (x1, y1) = mine[i - 1], mine[i]
            return y0 + (y1 - y0) * (u - x0) / (x1 - x0)
    return 0.0


def delta_of(tables: ReflectionTables, slot: int, back: int, temperature: float) -> float:
    phase, generated, d = progress_of(tables, slot, back)
    s = schedule_of(tables, slot)
    if phase < 0 or not round(s["phases"]) >> phase & 1:
        return 0.0
    anchor = {"generation": 0, "think": d[2], "reflection": d[2] if d[3] < 0 else d[3]}[ANCHORS[round(s["anchor"])]]
    t = generated - anchor + (0 if anchor else s["offset"])
    if not s["begin"] <= t < s["end"]:
        return 0.0
    return reference_wave(s, tables.knots.tolist(), t) * (temperature if s["unit"] else 1)


def reference_apply_schedule_(logits, tables, slots, *, back=None, temperature=1.0) -> Tensor:
    """`apply_schedule_` as a loop over rows: the oracle of the tests."""
    temperatures = temperature.tolist() if isinstance(temperature, Tensor) else [temperature] * len(logits)
    backs = [0] * len(logits) if back is None else back.tolist()
    rows = zip(slots.tolist(), backs, temperatures, strict=True)
    deltas = [delta_of(tables, slot, back, t) if slot >= 0 else 0.0 for slot, back, t in rows]
    wide = accumulator(logits)
    delta = torch.tensor(deltas, dtype=torch.float32, device=logits.device).to(wide)  # rounded, as it is handed out
    for r, slot in enumerate(slots.tolist()):
        if slot < 0 or delta[r] == 0:
            continue
        ids = [i for i in set_of(tables, schedule_of(tables, slot)) if 0 <= i < logits.shape[1]]
        logits[r, ids] = (logits[r, ids].to(wide) + delta[r]).to(logits.dtype)
    return delta


def reference_reflection_state_update_(
    tables, tokens, slots, *, first=None, count=None, prompt=None, rollback=None
) -> None:
    """`reflection_state_update_` as loops: the oracle of the tests."""
    ring = tables.state.shape[1] - 1
    markers = tables.markers.tolist()
    for r, slot in enumerate(slots.tolist()):
        if slot < 0:
            continue
        header = tables.state[slot, 0]
        if prompt is not None and prompt[r] >= 0:
            header[:4] = torch.tensor([0, int(prompt[r]), 0, 0])
            tables.state[slot, 1] = torch.tensor([0, 0, 0, -1, 0, 0, 0, 0, 0, 0])
        elif rollback is not None and rollback[r] > 0:
            header[2] |= int(rollback[r] > header[0] - header[3])
            header[0] -= 0 if header[2] else int(rollback[r])
        if header[2]:
            continue
        s = schedule_of(tables, slot)
        chosen = set(set_of(tables, s))
        begin = 0 if first is None else int(first[r])
        end = tokens.shape[1] if count is None else begin + int(count[r])
        seen, prompt_length = header[:2].tolist()
        d = tables.state[slot, 1 + seen % ring].tolist()
        for token in tokens[r, begin:end].tolist():
            seen += 1
            generated = seen - prompt_length
            phase = 3 if d[1] else d[0] or 1
            if generated > 0 and round(s["phases"]) >> phase & 1 and token in chosen:
                d[3], d[4] = generated, d[4] + 1
            ended = [False] * 4
            for m, (ids, border) in enumerate(markers):
                pattern = ids[: ids.index(-1)]
                if not pattern:
                    continue
                k = d[5 + m]
                while k and pattern[k] != token:
                    k = border[k]
                k += pattern[k] == token
                ended[m] = k == len(pattern)
                d[5 + m] = border[k] if ended[m] else k
            if ended[0]:
                d[0], d[2] = 1, max(generated, 0)
            d[0] = 2 if ended[1] else d[0]
            d[1] = 0 if ended[3] else 1 if ended[2] else d[1]
            tables.state[slot, 1 + seen % ring] = torch.tensor(d, dtype=torch.int32)
        header[0], header[3] = seen, max(int(header[3]), seen - ring + 1)


# ---- ops ------------------------------------------------------------------------------------------------------------


@_op.fake("reflection_state_update_")
def _(state, *rest):
    return None


@_op.fake("apply_schedule_")
def _(logits, *rest):
    return logits.new_empty(logits.shape[0], dtype=torch.float32)


@explained
def reflection_state_update_(
    tables: ReflectionTables,
    tokens: Tensor,
    slots: Tensor,
    *,
    first: Tensor | None = None,
    count: Tensor | None = None,
    prompt: Tensor | None = None,
    rollback: Tensor | None = None,
) -> None:
    """Follow requests through tokens that they took: phase, position, thought start, last reflection token, in place.

    Args:
        tables: see `ReflectionTables`; `tables.state` is written. Each slot at most once a call.
        tokens: (R, W) int64 or int32, any strides: of a decode step W = 1, of a prompt (or to rebuild a preempted
            request) all of its ids. Ids are not checked: a negative one is no token of a set or a marker.
        slots: (R,) int64, the slot of each row; -1 for a row of no request.
        first, count: (R,) int64, which of a row's tokens are taken, `count` from `first` on: all where not given.
            (Left padding: first = the padding's length.)
        prompt: (R,) int64: 0 or more begins the slot anew, whose first so many tokens are the prompt; -1 continues it.
        rollback: (R,) int64, tokens to forget before the new ones are taken: rejected drafts, at most
            ring - 1 since the most that the slot held. 0 where a slot begins anew.

    Raises:
        ValueError: a shape, dtype or device does not fit; on the CPU also a slot, range or rollback out of bounds. On
            CUDA, where checking would synchronize, such a slot does nothing, and after too long a rollback is off until
            it begins anew.

    Source: the definition; phases as in CyclicReflex and GRPO-ATS.
    """
    state, schedules, sets, _, markers, _ = tables
    _op.ops.reflection_state_update_(state, schedules, sets, markers, tokens, slots, first, count, prompt, rollback)
    _op.wrote(state)


@explained
def apply_schedule_(
    logits: Tensor,
    tables: ReflectionTables,
    slots: Tensor,
    *,
    back: Tensor | None = None,
    temperature: float | Tensor = 1.0,
) -> Tensor:
    """Add each request's scheduled delta to the logits of its reflection tokens, in place: O(B |R|), no host sync.

    Args:
        logits: (B, V) float32, bfloat16, float16 or float64, V of stride 1; before any division by a temperature.
        tables: what `reflection_state_update_` followed the requests in.
        slots: (B,) int64, the request of each row; -1 leaves the row alone. A request may have several rows.
        back: (B,) int64, the row's logits follow the token that many before the slot's last: rows of draft tokens.
        temperature: a number or (B,) float32: what the logits will be divided by; schedules of unit "nat" need it.

    Returns:
        delta (B,) float32, what was added: with the temperature all that `replay_logprob` needs. A row whose delta is
        0 keeps its bits.

    Raises:
        ValueError: a shape, dtype, stride or device does not fit, rows of the logits share memory, the logits are (a
            view of) a leaf that requires a gradient, outside of `torch.no_grad()`; on the CPU also a slot out of range.

    Source: CyclicReflex (triangle), TIP (constant); see `warpup.reflection.ReflectionSchedule` for the waves.
    """
    _op.check_written("apply_schedule_", "logits", logits)
    if logits.requires_grad and torch.is_grad_enabled() and (logits if logits._base is None else logits._base).is_leaf:
        raise ValueError(
            "apply_schedule_: logits are (a view of) a leaf that requires a gradient, which cannot be written in "
            "place; call it under torch.no_grad(), or on a clone"
        )
    per_row = isinstance(temperature, Tensor)
    if not per_row and temperature < 0:
        raise ValueError(f"apply_schedule_: temperature must be at least 0, got {temperature}")
    delta = _op.ops.apply_schedule_(
        logits,
        *tables[:4],
        slots,
        back,
        temperature if per_row else None,
        1.0 if per_row else float(temperature),
    )
    _op.wrote(logits)
    return delta
