"""Requests of a serving engine by its own names for them, which come and go, and their slots in a `ReflectionBatch`:
reflection schedules and thinking budgets."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from warpup.reflection import BudgetState, ReflectionBatch, ReflectionSchedule, ReflectionTokens, ThinkingBudget

ROOM = 128  # ids of a text that a budget forces


@dataclass
class Followed:
    """A request: its lists are the engine's own, which it extends."""

    slot: int
    prompt: Sequence[int]
    output: Sequence[int]
    schedule: ReflectionSchedule | None
    budget: ThinkingBudget | None
    seen: int | None = None  # tokens of `output` that its slot has; None: it has not begun


class Requests:
    """Follows requests by catching up with their lists of token ids.

    A list that became shorter (rejected drafts) is followed back, as far as the ring reaches, else the slot is rebuilt.
    remedy: what to do where a list has a placeholder in the place of a token.
    """

    def __init__(
        self, capacity: int, schedule: ReflectionSchedule | None = None, device: torch.device | str = "cpu", remedy=""
    ):  # fmt: skip
        self.batch: ReflectionBatch | None = None  # made with the first request, which brings the markers
        self.capacity, self.default, self.device, self.remedy = capacity, schedule, device, remedy
        self.known: dict[Hashable, Followed] = {}
        self.free = list(range(capacity - 1, -1, -1))

    def start(
        self,
        key: Hashable,
        prompt: Sequence[int],
        output: Sequence[int],
        schedule: ReflectionSchedule | None = None,
        budget: ThinkingBudget | None = None,
    ) -> None:
        """Its lists are read when it is next caught up with. Without schedule and budget the request is left alone."""
        self.stop(key)
        schedule = schedule or self.default
        if schedule is None and budget is None:
            return
        if not self.free:
            raise RuntimeError(f"more than {self.capacity} requests at once; make a processor of more slots")
        if self.batch is None:
            markers = markers_of(schedule, budget)
            self.batch = ReflectionBatch(self.capacity, tokens=markers, device=self.device, **room(self.capacity))
            self.state = BudgetState(self.batch, room=ROOM)
        self.known[key] = Followed(self.free.pop(), prompt, output, schedule, budget)

    def stop(self, key: Hashable) -> None:
        if key in self.known:
            self.free.append(self.known.pop(key).slot)

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
        """Takes every token that came since the last call. Raises ValueError where one is not known yet."""
        if self.batch is None:
            return
        fresh, slots, drop = [], [], []
        for key, request in self.known.items():
            length, seen = len(request.output), request.seen
            if length == seen:
                continue
            if seen is not None and length < seen - self.batch.ring + 1:
                seen = None  # too far back
            tokens = list(request.output[seen:])
            if any(token < 0 for token in tokens):
                raise ValueError(f"request {key}: the engine has a placeholder where a token should be: {self.remedy}")
            if seen is None:
                self.batch.begin([request.slot], [list(request.prompt)], [tokens], request.schedule)
                self.state.set([request.slot], request.budget)
                if request.budget is not None and tokens:
                    said = torch.tensor([[*request.prompt, *tokens]], device=self.device)
                    self.state.begin([request.slot], said, said.new_full((1,), len(request.prompt)))
            else:
                fresh.append(tokens), slots.append(request.slot), drop.append(max(seen - length, 0))
            request.seen = length
        if not slots:
            return
        width = max(map(len, fresh))
        rows = [row + [0] * (width - len(row)) for row in fresh]
        counts = torch.tensor([slots, drop, [len(row) for row in fresh]]).to(self.device)
        tokens = torch.tensor(rows, dtype=torch.int64).view(len(rows), width).to(self.device)
        self.batch.update(tokens, counts[0], rollback=counts[1], count=counts[2])
        self.state.follow(counts[0])

    def slots(self, keys: Sequence[Hashable]) -> Tensor:
        """Their slots, -1 for who is under no schedule."""
        return torch.tensor([self.known[k].slot if k in self.known else -1 for k in keys], dtype=torch.int64).to(
            self.device
        )

    def apply_(self, logits: Tensor, keys: Sequence[Hashable]) -> Tensor:
        """Row i of logits (B, V) is the next token of `keys[i]`. Returns delta (B,)."""
        if self.batch is None:
            return torch.zeros(len(keys), device=logits.device)
        slots = self.slots(keys)
        delta = self.batch.apply_(logits, slots)
        if any(request.budget for request in self.known.values()):
            self.state.force_(logits, slots)
        return delta

    def forced(self, keys: Sequence[Hashable]) -> Tensor:
        """(len(keys),) int64: the token that each one's budget asks for next, -1 where it is free."""
        return self.state.forced(self.slots(keys))


def room(slots: int) -> dict[str, Any]:
    """Of a batch's tables, where each request may have tokens and knots of its own: 64 of each."""
    return {"ids": max(4096, 64 * slots), "knots": max(256, 64 * slots)}


def asked_by(parameters: Mapping[str, Any], name: str) -> tuple[ReflectionSchedule | None, ThinkingBudget | None]:
    """The schedule and the budget among the parameters of a request, which the engine calls `name`. ValueError on one
    that is none, by its place."""
    try:
        schedule = schedule_from(parameters.get(key := "reflection"))
        return schedule, budget_from(parameters.get(key := "thinking_budget"))
    except ValueError as error:
        raise ValueError(f"{name}[{key!r}]: {error}") from error


def schedule_from(given) -> ReflectionSchedule | None:
    """A schedule as it comes with a request: itself, its JSON, or nothing. Raises ValueError."""
    if given is None or isinstance(given, ReflectionSchedule):
        return given
    if not isinstance(given, str):
        raise ValueError(f"a request's schedule is its JSON (ReflectionSchedule.to_json), got {type(given).__name__}")
    return ReflectionSchedule.from_json(given)


def budget_from(given) -> ThinkingBudget | None:
    """A thinking budget as it comes with a request, likewise."""
    if given is None:
        return None
    if not isinstance(given, str | ThinkingBudget):
        raise ValueError(
            f"a request's thinking budget is its JSON (ThinkingBudget.to_json), got {type(given).__name__}"
        )
    budget = ThinkingBudget.from_json(given) if isinstance(given, str) else given
    check_probe(budget)
    longest = max(len(budget.closing), len(budget.warning))
    if longest > ROOM:
        raise ValueError(f"a thinking budget's texts have at most {ROOM} tokens here, got {longest}")
    return budget


def markers_of(schedule: ReflectionSchedule | None, budget: ThinkingBudget | None) -> ReflectionTokens:
    """The markers of a request's schedule and budget. Raises ValueError where they have different ones of thinking."""
    tokens = ReflectionTokens(()) if schedule is None else ReflectionTokens.of(schedule.tokens)
    if budget is None:
        return ReflectionTokens((), *tokens.markers)
    if any(tokens.markers) and tokens.markers[:2] != budget.markers.markers[:2]:
        raise ValueError(
            f"a request's schedule and thinking budget share their markers, got {tokens.markers[:2]} and "
            f"{budget.markers.markers[:2]}"
        )
    return ReflectionTokens((), *budget.markers.markers[:2], *tokens.markers[2:])


def check_probe(budget: ThinkingBudget | None) -> None:
    """Raise ValueError on a budget that asks for forward passes, which a logits processor cannot make."""
    if budget is not None and budget.probe_every is not None:
        raise ValueError(
            "probe_every: a probe is a forward pass of its own, which no logits processor has; leave it out"
        )
