"""Requests of a serving engine by its own names for them, which come and go, and their slots in a `ReflectionBatch`."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from warpup.reflection import ReflectionBatch, ReflectionSchedule


class Requests:
    """Follows requests by catching up with their lists of token ids, which the engine extends.

    A list that became shorter (rejected drafts) is followed back, as far as the ring reaches, else the slot is rebuilt.
    """

    def __init__(self, capacity: int, schedule: ReflectionSchedule | None = None, device: torch.device | str = "cpu"):
        self.batch: ReflectionBatch | None = None  # made with the first schedule, which brings the markers
        self.capacity, self.default, self.device = capacity, schedule, device
        self.known: dict[Hashable, tuple[int, Sequence[int], Sequence[int], int]] = {}  # slot, prompt, output, seen
        self.free = list(range(capacity - 1, -1, -1))

    def start(self, key: Hashable, prompt: Sequence[int], output: Sequence[int], schedule=None) -> None:
        """`output` is kept: the engine appends to it. Under no schedule the request is left alone."""
        self.stop(key)
        schedule = schedule or self.default
        if schedule is None:
            return
        if not self.free:
            raise RuntimeError(f"more than {self.capacity} requests at once; make a processor of more slots")
        if self.batch is None:
            self.batch = ReflectionBatch(self.capacity, schedule, device=self.device)
        slot = self.free.pop()
        self.batch.begin([slot], [list(prompt)], [list(output)], schedule)
        self.known[key] = (slot, prompt, output, len(output))

    def stop(self, key: Hashable) -> None:
        if key in self.known:
            self.free.append(self.known.pop(key)[0])

    def move(self, source: Hashable, target: Hashable, *, swap: bool = False) -> None:
        """The request called `source` is called `target` now, and where they swap the other way round too."""
        mine, other = self.known.pop(source, None), self.known.get(target)
        if not swap:
            self.stop(target)
        for key, request in ((target, mine), (source, other if swap else None)):
            if request is not None:
                self.known[key] = request
            elif swap and key == target:
                self.known.pop(key, None)

    def catch_up(self) -> None:
        """Takes every token that came since the last call."""
        if self.batch is None:
            return
        fresh, slots, drop = [], [], []
        for key, (slot, prompt, output, seen) in self.known.items():
            if len(output) == seen:
                continue
            if len(output) < seen - self.batch.ring + 1:
                self.batch.begin([slot], [list(prompt)], [list(output)], self.batch.schedules[slot])
            else:
                fresh.append(list(output[seen:])), slots.append(slot), drop.append(max(seen - len(output), 0))
            self.known[key] = (slot, prompt, output, len(output))
        if not slots:
            return
        width = max(map(len, fresh))
        tokens = torch.tensor([row + [0] * (width - len(row)) for row in fresh], dtype=torch.int64).view(-1, width)
        counts = torch.tensor([slots, drop, [len(row) for row in fresh]]).to(self.device)
        self.batch.update(tokens.to(self.device), counts[0], rollback=counts[1], count=counts[2])

    def slots(self, keys: Sequence[Hashable]) -> Tensor:
        """Their slots, -1 for who is under no schedule."""
        return torch.tensor([self.known[k][0] if k in self.known else -1 for k in keys], dtype=torch.int64).to(
            self.device
        )

    def apply_(self, logits: Tensor, keys: Sequence[Hashable]) -> Tensor:
        """Row i of logits (B, V) is the next token of `keys[i]`. Returns delta (B,)."""
        if self.batch is None:
            return torch.zeros(len(keys), device=logits.device)
        return self.batch.apply_(logits, self.slots(keys))


def schedule_from(given) -> ReflectionSchedule | None:
    """A schedule as it comes with a request: itself, its JSON, or nothing. Raises ValueError."""
    if given is None or isinstance(given, ReflectionSchedule):
        return given
    if not isinstance(given, str):
        raise ValueError(f"a request's schedule is its JSON (ReflectionSchedule.to_json), got {type(given).__name__}")
    return ReflectionSchedule.from_json(given)
