"""What CyclicReflex is compared with, on the same machinery: TIP and NoWait are schedules, s1 and AlphaOne replace
drawn tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from warpup.reflection.apply_schedule import PHASES
from warpup.reflection.batch import ReflectionBatch
from warpup.reflection.schedule import ReflectionSchedule
from warpup.reflection.tokens import ReflectionTokens

NO_WAIT_WORDS = (
    "wait", "alternatively", "hmm", "but", "however", "alternative", "another", "check", "double-check", "oh", "maybe",
    "verify", "other", "again", "now",
)  # fmt: skip
THINK = PHASES.index("think")


def cyclic_reflex(tokens, amplitude: float = 5.0, period: float = 1200, **options) -> ReflectionSchedule:
    """CyclicReflex: a triangle wave over the generated tokens, until the thinking ends."""
    return ReflectionSchedule("triangle", amplitude, period, tokens=tokens, **options)


def thought_switch_penalty(tokens, alpha: float = 3.0, beta: int = 600, **options) -> ReflectionSchedule:
    """TIP: -alpha on the tokens that switch thoughts while t < thought start + beta."""
    return ReflectionSchedule("constant", -alpha, tokens=tokens, anchor="reflection", window=(0, beta), **options)


def no_wait(tokens, **options) -> ReflectionSchedule:
    """NoWait: the tokens, every variant of NO_WAIT_WORDS, are never drawn."""
    return ReflectionSchedule("constant", -math.inf, tokens=tokens, phase="any", **options)


class BudgetForcing:
    """s1: the first `times` ends of thinking are replaced by `wait` (a token id). Needs an end marker of one token.

        tokens = forcing(tokens, slots)        # what was drawn, before batch.update(tokens, slots)

    Exact whatever the sampler is: it looks at the draw, not at the logits. Counts live on the device.
    """

    def __init__(self, batch: ReflectionBatch, wait: int, times: int = 1):
        end = batch.markers[1]
        if len(end) != 1:
            raise ValueError(f"s1 replaces an end of thinking of one token, this tokenizer has {len(end)}")
        if times < 1:
            raise ValueError(f"times: expected at least 1, got {times}; without s1, do not make one")
        self.batch, self.end, self.wait, self.times = batch, end[0], wait, times
        self.forced = torch.zeros(batch.slots, dtype=torch.int64, device=batch.device)

    def begin(self, slots: Tensor) -> None:
        self.forced[slots] = 0

    def __call__(self, tokens: Tensor, slots: Tensor | None = None) -> Tensor:
        slots = torch.arange(len(tokens), device=tokens.device) if slots is None else slots
        thinking = self.batch.progress(slots).phase == THINK
        replace = thinking & (tokens == self.end) & (self.forced[slots] < self.times)
        self.forced[slots] += replace
        return torch.where(replace, self.wait, tokens)


class AlphaOne:
    """AlphaOne: up to alpha * `budget` tokens of thought, a line's end is followed by `wait` with a probability that
    falls linearly to 0 there; afterwards a `wait` that is drawn becomes the end of thinking.

    newlines: ids of tokens that end a line. Use: tokens = alpha(tokens, previous, uniforms, slots), where `previous`
    (B,) are the tokens before these and `uniforms` (B,) numbers in [0, 1).
    """

    def __init__(
        self,
        batch: ReflectionBatch,
        wait: int | ReflectionTokens,
        newlines: Sequence[int],
        budget: int,
        alpha: float = 1.4,
        start: float = 0.4,
    ):
        end = batch.markers[1]
        if len(end) != 1:
            raise ValueError(f"AlphaOne writes an end of thinking of one token, this tokenizer has {len(end)}")
        if not (budget > 0 and 0 < alpha < math.inf and 0 <= start <= 1):
            raise ValueError(
                f"expected budget and alpha above 0 and start, a probability, in [0, 1], got {budget}, {alpha}, {start}"
            )
        self.batch, self.end, self.budget, self.alpha, self.start = batch, end[0], budget, alpha, start
        ids = wait.ids if isinstance(wait, ReflectionTokens) else (wait,)
        self.wait = torch.tensor(ids, device=batch.device)
        self.newlines = torch.tensor(list(newlines), device=batch.device)

    def chance(self, generated: Tensor) -> Tensor:
        """Of a `wait` after a line's end: `start` at first, 0 from alpha * budget tokens on."""
        return (self.start * (1 - generated / (self.alpha * self.budget))).clamp(min=0)

    def __call__(self, tokens: Tensor, previous: Tensor, uniforms: Tensor, slots: Tensor | None = None) -> Tensor:
        at = self.batch.progress(torch.arange(len(tokens), device=tokens.device) if slots is None else slots)
        thinking = at.phase == THINK
        late = at.generated >= self.alpha * self.budget
        slow = torch.isin(previous, self.newlines) & (uniforms < self.chance(at.generated))
        tokens = torch.where(thinking & ~late & slow, self.wait[0], tokens)
        return torch.where(thinking & late & torch.isin(tokens, self.wait), self.end, tokens)
