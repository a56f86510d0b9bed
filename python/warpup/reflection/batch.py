"""Requests of one decoding batch and their schedules, in device tables of fixed size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from warpup.reflection.apply_schedule import (
    FIELDS,
    MARKER,
    SCHEDULE,
    ReflectionTables,
    apply_schedule_,
    reflection_state_update_,
)
from warpup.reflection.sample_step import SampledStep, sample_step
from warpup.reflection.sampling import SAMPLING, sampling_row
from warpup.reflection.schedule import ReflectionSchedule
from warpup.reflection.tokens import ReflectionTokens

# What schedules have in tables of their own, in the order of `ReflectionSchedule.row`.
PLACED = {"sets": lambda s: ReflectionTokens.of(s.tokens).ids, "knots": lambda s: tuple(s.table)}


class Progress(NamedTuple):
    """How far requests are, one value a row, int64: `phase` indexes `warpup.reflection.apply_schedule.PHASES`."""

    phase: Tensor
    generated: Tensor
    think_start: Tensor
    last_reflection: Tensor  # -1: none yet
    reflections: Tensor


class ReflectionBatch:
    """Follows `slots` requests and puts their schedules on logits.

    schedule: of each request that brings none of its own; None: off. tokens: the markers, where there is no schedule
    to take them from; all schedules of a batch share the markers. ring: tokens that can be taken back, and one. ids,
    knots: room for those of different schedules; a captured CUDA graph holds the tables, so they never grow.

        batch = ReflectionBatch(64, schedule)
        batch.begin(range(64), prompts)
        delta = batch.apply_(logits)        # before the division by the temperature
        batch.update(tokens)                # (B,) what was sampled
    """

    def __init__(
        self,
        slots: int,
        schedule: ReflectionSchedule | None = None,
        *,
        tokens: ReflectionTokens | None = None,
        ring: int = 16,
        ids: int = 4096,
        knots: int = 256,
        device: torch.device | str = "cpu",
    ):
        if slots < 1 or ring < 1:
            raise ValueError(f"expected at least one slot and a ring of at least 1, got {slots} and {ring}")
        self.slots, self.device = slots, torch.device(device)
        given = ReflectionTokens.of(tokens or (schedule.tokens if schedule else ()))
        self.default = schedule or ReflectionSchedule("off", tokens=given)
        self.markers = given.markers
        self.tables = ReflectionTables(
            torch.zeros(slots, 1 + ring, FIELDS, dtype=torch.int32, device=device),
            torch.zeros(slots, len(SCHEDULE), dtype=torch.float64, device=device),
            torch.zeros(ids, dtype=torch.int32, device=device),
            torch.zeros(knots, 2, dtype=torch.float64, device=device),
            torch.tensor([marker_row(m) for m in self.markers], dtype=torch.int32, device=device),
            torch.zeros(slots, len(SAMPLING), dtype=torch.float64, device=device),
        )
        self.tables.state[:, :, 3] = -1
        self.tables.state[:, 0, 3] = 0
        self._all = torch.arange(slots, device=device)
        self.schedules: dict[int, ReflectionSchedule] = {}  # of each slot
        self._places: dict[tuple, int] = {}  # where an id set or a table of knots is
        self._used = {"sets": 0, "knots": 0}
        self.set_schedule(range(slots), self.default)
        self.set_sampling(range(slots))

    @property
    def ring(self) -> int:
        return self.tables.state.shape[1] - 1

    def set_schedule(self, slots: Sequence[int], schedule: ReflectionSchedule) -> None:
        """Puts these slots under a schedule from the next token on. Raises ValueError where its markers are not the
        batch's, or the tables are full."""
        tokens = ReflectionTokens.of(schedule.tokens)
        if tokens.markers != self.markers and any(tokens.markers):
            raise ValueError(f"the schedule's markers {tokens.markers} are not the batch's {self.markers}")
        slots = slots.tolist() if isinstance(slots, Tensor) else list(slots)
        schedules = self.schedules | dict.fromkeys(slots, schedule)
        row = schedule.row(*(self._place(name, schedule, schedules) for name in PLACED))
        self.schedules = schedules
        self.tables.schedules[self.index(slots)] = torch.tensor(row, dtype=torch.float64).to(self.device)

    def _place(self, name: str, schedule: ReflectionSchedule, schedules: Mapping[int, ReflectionSchedule]) -> int:
        """Where the schedule's values are in the table of that name. `schedules`: of all slots, this one included."""
        values = PLACED[name](schedule)
        if not values:
            return 0
        if (name, values) not in self._places:
            table = getattr(self.tables, name)
            if self._used[name] + len(values) > len(table):
                self._make_room(name, len(values), schedules)
            begin = self._used[name]
            table[begin : begin + len(values)] = torch.tensor(values, dtype=table.dtype).to(self.device)
            self._places[name, values] = begin
            self._used[name] = begin + len(values)
        return self._places[name, values]

    def _make_room(self, name: str, count: int, schedules: Mapping[int, ReflectionSchedule]) -> None:
        """Forgets what no slot's schedule has any more, and moves the rest together, for `count` more values."""
        used = {PLACED[name](schedule) for schedule in schedules.values()}
        kept = [values for kind, values in self._places if kind == name and values in used]
        table, begin = getattr(self.tables, name), 0
        left = len(table) - sum(map(len, kept))
        if left < count:
            raise ValueError(f"no room for {count} more {name}, {left} are left: make it larger")
        self._places = {place: at for place, at in self._places.items() if place[0] != name}
        for values in kept:
            table[begin : begin + len(values)] = torch.tensor(values, dtype=table.dtype).to(self.device)
            self._places[name, values] = begin
            begin += len(values)
        self._used[name] = begin
        begins = [self._places.get((name, PLACED[name](schedules[slot])), 0) for slot in range(self.slots)]
        column = SCHEDULE.index("set" if name == "sets" else "knots")
        self.tables.schedules[:, column] = torch.tensor(begins, dtype=torch.float64).to(self.device)

    def index(self, slots: Sequence[int] | Tensor) -> Tensor:
        """The slots as a tensor on the device."""
        return slots if isinstance(slots, Tensor) else torch.tensor(list(slots), device=self.device)

    def begin(
        self,
        slots: Sequence[int],
        prompts: Sequence[Sequence[int]],
        generated: Sequence[Sequence[int]] | None = None,
        schedule: ReflectionSchedule | None = None,
    ) -> None:
        """Puts requests into slots, whatever was there: their prompts and, after a preemption, what they had
        generated, as lists of token ids; under `schedule` or the default."""
        slots = list(slots)
        generated = generated or [()] * len(slots)
        rows = [[*p, *g] for p, g in zip(prompts, generated, strict=True)]
        width = max([len(row) for row in rows], default=0)
        padded = torch.tensor([row + [0] * (width - len(row)) for row in rows], dtype=torch.int64)
        counts = torch.tensor([[len(row) for row in rows], [len(p) for p in prompts]]).to(self.device)
        self.set_schedule(slots, schedule or self.default)
        reflection_state_update_(
            self.tables, padded.view(len(rows), width).to(self.device), self.index(slots), count=counts[0],
            prompt=counts[1],
        )  # fmt: skip

    def begin_padded(self, slots: Sequence[int], ids: Tensor, padding: Tensor, prompt: Tensor) -> None:
        """The same for ids (R, W) padded on the left by `padding` (R,); `prompt` (R,) tokens are a row's prompt."""
        count = ids.shape[1] - padding
        reflection_state_update_(self.tables, ids, self.index(slots), first=padding, count=count, prompt=prompt)

    def end(self, slots: Sequence[int]) -> None:
        """Leaves slots without a schedule."""
        self.set_schedule(slots, ReflectionSchedule("off", tokens=ReflectionTokens((), *self.markers)))

    def update(
        self, tokens: Tensor, slots: Tensor | None = None, *, rollback: Tensor | None = None, count=None
    ) -> None:
        """Takes (B,) or (B, W) tokens, after `rollback` (B,) others are taken back; slots default to 0..B-1."""
        tokens = tokens.unsqueeze(1) if tokens.dim() == 1 else tokens
        slots = self._all[: len(tokens)] if slots is None else slots
        reflection_state_update_(self.tables, tokens, slots, rollback=rollback, count=count)

    def rollback(self, slots: Tensor, count: Tensor) -> None:
        """Takes back the last `count` (B,) tokens: drafts that were rejected."""
        empty = torch.empty(len(slots), 0, dtype=torch.int64, device=self.device)
        reflection_state_update_(self.tables, empty, slots, rollback=count)

    def apply_(self, logits: Tensor, slots: Tensor | None = None, *, back=None, temperature: float | Tensor = 1.0):
        """`apply_schedule_` on (B, V) logits; slots default to 0..B-1. Returns delta (B,)."""
        slots = self._all[: len(logits)] if slots is None else slots
        return apply_schedule_(logits, self.tables, slots, back=back, temperature=temperature)

    def set_sampling(self, slots: Sequence[int], temperature: float | Mapping[str, float] = 1.0, **options) -> None:
        """How these slots sample; the options are those of `sampling_row`, the defaults plain sampling at T = 1."""
        row = torch.tensor(sampling_row(temperature, **options), dtype=torch.float64).to(self.device)
        self.tables.sampling[self.index(slots)] = row

    def sample(self, logits: Tensor, slots: Tensor | None = None, **options) -> SampledStep:
        """`sample_step` on (B, V) logits, which stay as they are; `update` takes what comes of it."""
        slots = self._all[: len(logits)] if slots is None else slots
        return sample_step(logits, self.tables, slots, **options)

    def progress(self, slots: Tensor | None = None) -> Progress:
        """How far requests are, read on the device."""
        state = self.tables.state[self._all if slots is None else slots].long()
        seen, prompt = state[:, 0, 0], state[:, 0, 1]
        d = state[torch.arange(len(state), device=self.device), 1 + seen % self.ring]
        phase = torch.where(d[:, 1] > 0, 3, torch.where(d[:, 0] == 0, 1, d[:, 0]))
        phase = torch.where(seen < prompt, 0, phase)
        return Progress(phase, (seen - prompt).clamp(min=0), d[:, 2], d[:, 3], d[:, 4])


def marker_row(ids: Sequence[int]) -> list[list[int]]:
    """A marker's ids and, for each prefix, the longest border: what still matches where the next token does not."""
    border = [0] * (MARKER + 1)
    for n in range(2, len(ids) + 1):
        border[n] = max(k for k in range(n) if tuple(ids[:k]) == tuple(ids[n - k : n]))
    return [[*ids, *[-1] * (MARKER + 1 - len(ids))], border]
