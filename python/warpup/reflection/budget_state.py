"""Requests under thinking budgets, in device tables beside those of a `ReflectionBatch`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from warpup.reflection.batch import ReflectionBatch
from warpup.reflection.budget import NEVER, ThinkingBudget

WEIGHT = 0.2  # of the newest probe, in the moving mean and variance
FORCED = 1e9  # a logit beside which every other one has probability 0, at any temperature


class BudgetState:
    """Budgets of the requests in a batch's slots, on its device.

        state = BudgetState(batch, budget)
        batch.begin(range(64), prompts)
        step = batch.sample(logits)
        forced = state.forced()                                     # -1: the token is the model's own
        batch.update(torch.where(forced < 0, step.token, forced))

    budget: of all slots; None: none. room: for the ids of a text. What is forced follows from the batch's own state,
    so it is right after a rollback too; here is only where each request began to think, and what its probes said.
    Nothing waits for the device.
    """

    def __init__(self, batch: ReflectionBatch, budget: ThinkingBudget | None = None, *, room: int = 64):
        rows, device = batch.slots + 1, batch.device  # slot -1, a row of no request, is the last one
        self.batch, self.room = batch, room if budget is None else max(room, len(budget.closing), len(budget.warning))
        self.limit = torch.full((rows,), NEVER, device=device)
        self.warn_at = torch.full((rows,), NEVER, device=device)
        self.closing, self.warning = (torch.full((rows, self.room), -1, device=device) for _ in range(2))
        self.began = torch.full((rows,), -1, device=device)  # generated tokens when thinking first began; -1: not yet
        self.probe_every = torch.full((rows,), NEVER, device=device)
        self.probe_below = torch.zeros(rows, device=device)
        self.probes, self.least = (torch.zeros(rows, dtype=torch.int64, device=device) for _ in range(2))
        self.mean, self.variance = (torch.zeros(rows, device=device) for _ in range(2))  # of the entropies, moving
        if budget is not None:
            self.set(range(batch.slots), budget)

    def set(self, slots: Sequence[int], budget: ThinkingBudget | None) -> None:
        """New requests are in these slots, under this budget. Raises ValueError where its markers are not the batch's,
        or a text has more than `room` ids."""
        texts = {"closing": budget.closing, "warning": budget.warning} if budget else {}
        if budget and budget.markers.markers[:2] != self.batch.markers[:2]:
            raise ValueError(
                f"the budget's markers {budget.markers.markers[:2]} are not the batch's {self.batch.markers[:2]}"
            )
        for name, ids in texts.items():
            if len(ids) > self.room:
                raise ValueError(f"{name}: {len(ids)} ids, there is room for {self.room}; give BudgetState more")
        at = self.batch.index(slots)
        self.began[at], self.probes[at] = -1, 0
        self.limit[at], self.warn_at[at], self.probe_every[at] = NEVER, NEVER, NEVER
        if budget is None:
            return
        self.limit[at] = budget.tokens
        if budget.warn_at is not None:
            self.warn_at[at] = budget.warn_at
        if budget.probe_every is not None and budget.probe_below is not None:
            self.probe_every[at], self.probe_below[at] = budget.probe_every, budget.probe_below
            self.least[at] = budget.probe_least
        for name, ids in texts.items():
            row = torch.tensor([*ids, *[-1] * (self.room - len(ids))])
            getattr(self, name)[at] = row.to(self.batch.device)

    def begin(self, slots: Sequence[int] | Tensor, ids: Tensor, prompt: Tensor, count: Tensor | None = None) -> None:
        """Requests that come with tokens behind their prompts, as after a preemption: where each first began to think
        is looked up. ids (R, W) int64, of a row the first `prompt` (R,) of `count` (R,) tokens, by default all."""
        ids = torch.nn.functional.pad(ids, (0, 1), value=-1)  # of a prompt of embeddings there may be no ids at all
        place = torch.arange(ids.shape[1], device=ids.device)
        starts, ends = (_ends_of(marker, ids) for marker in self.batch.markers[:2])
        if count is not None:
            starts &= place < count[:, None]
        asked = place < prompt[:, None]
        last_start, last_end = (torch.where(found & asked, place, -1).amax(1) for found in (starts, ends))
        thinks = last_start > last_end if self.batch.markers[0] else last_end < 0
        first = torch.where(starts & ~asked, place, NEVER).amin(1) + 1 - prompt
        began = torch.where(thinks, 0, torch.where(first < ids.shape[1] + 1, first, -1))
        self.began[self.batch.index(slots)] = began

    def forced(self, slots: Tensor | None = None) -> Tensor:
        """(B,) int64: what the next token of each request must be, -1 where it is free; slots (B,) int64, -1 for a row
        of no request, by default 0 to S - 1."""
        slots = self._slots(slots)
        thinking, generated, start = self.follow(slots)
        began = self.began[slots]
        # Closed where the budget is spent; where thinking began again after that, from there on.
        late = generated - torch.maximum(began + self.limit[slots], start)
        warned = began + self.warn_at[slots]
        since = generated - warned
        warning = torch.where(start <= warned, _at(self.warning[slots], since), -1)
        return torch.where(thinking, torch.where(late >= 0, _at(self.closing[slots], late), warning), -1)

    def force_(self, logits: Tensor, slots: Tensor | None = None) -> Tensor:
        """Make what is forced certain in these logits (B, V), in place. Returns `forced`."""
        forced = self.forced(slots)
        make_certain_(logits, forced)
        return forced

    def due(self, slots: Tensor | None = None) -> Tensor:
        """(B,) bool: whose next token is a probe's turn. The probe itself is a forward pass of the caller's: behind
        what was said it reads the budget's closing, and the cache is left as it was."""
        slots = self._slots(slots)
        free = self.forced(slots) < 0
        thinking, generated, _ = self.follow(slots)
        thought = generated - self.began[slots]
        return thinking & free & (thought > 0) & (thought % self.probe_every[slots] == 0)

    def observe(self, entropy: Tensor, due: Tensor, slots: Tensor | None = None) -> None:
        """What the probes of the rows `due` (B,) said: the entropy (B,), in nats, of the token behind the closing.
        Where it has settled, what comes next is the closing."""
        slots = self._slots(slots)
        entropy, probes = entropy.to(self.mean.dtype), self.probes[slots] + due
        mean = torch.where(probes == 1, entropy, self.mean[slots] + WEIGHT * (entropy - self.mean[slots]))
        before = torch.where(probes == 1, 0.0, self.variance[slots])
        variance = before + WEIGHT * ((entropy - mean).square() - before)
        self.probes[slots] = probes
        self.mean[slots] = torch.where(due, mean, self.mean[slots])
        self.variance[slots] = torch.where(due, variance, self.variance[slots])
        settled = due & (probes >= self.least[slots]) & (variance < self.probe_below[slots])
        _, generated, _ = self.follow(slots)
        self.limit[slots] = torch.where(settled, generated - self.began[slots], self.limit[slots])

    def _slots(self, slots: Tensor | None) -> Tensor:
        return torch.arange(self.batch.slots, device=self.batch.device) if slots is None else slots

    def follow(self, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Whether each request thinks, its generated tokens, and how many those were when its thinking began, the last
        time. Notes the first time, so it is called after a rollback, where others do not before more tokens come."""
        held = slots.clamp(min=0)
        state = self.batch.tables.state[held].long()
        seen, prompt, lost = state[:, 0, :3].unbind(1)
        now = state[torch.arange(len(slots), device=slots.device), 1 + seen % self.batch.ring]
        generated, phase, start = seen - prompt, now[:, 0], now[:, 2]
        # The state's phase: 0 before any marker, 1 thinking, 2 after it. Where thinking has no start marker, 0 is 1.
        thinking = (phase == 1) if self.batch.markers[0] else (phase != 2)
        thinking &= (lost == 0) & (generated >= 0) & (slots >= 0)
        began = self.began[slots]
        began = torch.where(began > start, -1, began)  # it was taken back
        self.began[slots] = torch.where(thinking & (began < 0), start, began)
        return thinking, generated, start


def make_certain_(logits: Tensor, forced: Tensor) -> Tensor:
    """The logits (B, V), in place, beside each row's forced token (B,) every other one has probability 0; -1: none. A
    token that the vocabulary lacks is none either: one request's must not end a server (`check_vocabulary` tells)."""
    forced = torch.where(forced < logits.shape[1], forced, -1)
    at = forced.clamp(min=0).unsqueeze(1)
    most = min(FORCED, torch.finfo(logits.dtype).max)
    return logits.scatter_(1, at, torch.where(forced.unsqueeze(1) < 0, logits.gather(1, at), most))


def _ends_of(marker: Sequence[int], ids: Tensor) -> Tensor:
    """Of ids' shape, bool: the places where a marker ends."""
    found = torch.zeros_like(ids, dtype=torch.bool)
    if 0 < len(marker) <= ids.shape[1]:
        windows = ids.unfold(1, len(marker), 1) == torch.tensor(marker, device=ids.device)
        found[:, len(marker) - 1 :] = windows.all(2)
    return found


def _at(texts: Tensor, places: Tensor) -> Tensor:
    """The id at each row's place; -1 before and behind the text."""
    ids = texts.gather(1, places.clamp(0, texts.shape[1] - 1).unsqueeze(1)).squeeze(1)
    return torch.where((places >= 0) & (places < texts.shape[1]), ids, -1)
