"""Thinking budgets: after so many tokens of thinking its end is written for the model, and before that a warning.

What is written is decided before the draw, by what was said so far. So a token that the model drew has the probability
that the model gave it, and a written one has probability 1: a loss leaves it out and stays exact.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import KW_ONLY, asdict, dataclass
from dataclasses import replace as replaced
from numbers import Integral
from typing import Any, TypeGuard

from warpup.reflection.tokens import LONGEST_MARKER, ReflectionTokens, find_markers

NEVER = 1 << 62  # tokens: no request comes so far
LARGEST_ID = 1 << 31  # no vocabulary is as large; a tensor holds all below it


@dataclass(frozen=True)
class ThinkingBudget:
    """How many tokens a request may think; then its thinking is closed: `message` and `think_end` are forced, a token
    at a step.

    tokens: counted from the first `think_start` of the request on, those of a warning included; 0 closes at once.
        Thinking that begins again later is the same budget's: once that is spent it is closed where it begins.
    think_start, think_end: the markers, as of `ReflectionTokens`. Without a `think_start` a request thinks from its
        first token on.
    message: ids that are forced before `think_end`, beyond the budget.
    warn_at, warning: ids that are forced once so many tokens are thought, such as "I have to come to an end."
    probe_every, probe_below, probe_least: every so many tokens of thinking the model is asked how sure it would be of
        its answer: the entropy, in nats, of the token behind the closing, which is not kept. Once its moving variance
        is below `probe_below`, from the `probe_least`-th probe on, more thinking changes nothing and is closed.

    Source: the budgets of vLLM and llama.cpp; the probe: entropy after </think> (EAT, arXiv 2509.26522).
    """

    tokens: int
    _: KW_ONLY
    think_end: Sequence[int]
    think_start: Sequence[int] = ()
    message: Sequence[int] = ()
    warn_at: int | None = None
    warning: Sequence[int] = ()
    probe_every: int | None = None
    probe_below: float | None = None
    probe_least: int = 10

    def __post_init__(self):
        for name in ("think_end", "think_start", "message", "warning"):
            given = getattr(self, name)
            ids = () if isinstance(given, str) else tuple(given)
            if isinstance(given, str) or not all(is_whole(i) and 0 <= i < LARGEST_ID for i in ids):
                raise ValueError(f"{name}: expected token ids, 0 or more, got {given!r}")
            object.__setattr__(self, name, tuple(map(int, ids)))
        for name in ("tokens", "warn_at", "probe_every", "probe_least"):
            value = getattr(self, name)
            if value is None and name in ("warn_at", "probe_every"):
                continue
            if not is_whole(value) or (name == "tokens" and not 0 <= value < NEVER):
                raise ValueError(f"{name}: expected a whole number of at least 0, got {value!r}")
            object.__setattr__(self, name, int(value))
        if not 0 < len(self.think_end) <= LONGEST_MARKER or len(self.think_start) > LONGEST_MARKER:
            raise ValueError(
                f"think_start, think_end: expected at most {LONGEST_MARKER} ids, of the end at least one, got "
                f"{list(self.think_start)} and {list(self.think_end)}"
            )
        if first_at(self.think_end, self.closing) < len(self.message):
            raise ValueError("message: the end of thinking is in it; it is forced behind the message anyway")
        if first_at(self.think_end, self.warning) < len(self.warning):
            raise ValueError("warning: the end of thinking is in it; a text that ends the thinking is the message")
        for name, text in (("message", self.closing), ("warning", self.warning)):
            if begins_again(self.think_start, text):
                raise ValueError(f"{name}: it would begin the thinking anew, got {list(text)}")
        if (self.warn_at is None) == bool(self.warning):
            raise ValueError("warn_at, warning: a warning has both, a place and a text")
        if self.warn_at is not None and not 0 <= self.warn_at <= self.tokens - len(self.warning):
            raise ValueError(
                f"warn_at: expected 0 to {self.tokens - len(self.warning)}, so that the warning's {len(self.warning)} "
                f"tokens are within the budget of {self.tokens}, got {self.warn_at}"
            )
        if (self.probe_every is None) != (self.probe_below is None):
            raise ValueError("probe_every, probe_below: a probe has both, a distance in tokens and a variance")
        if self.probe_every is None or self.probe_below is None:
            if self.probe_least != type(self).probe_least:
                raise ValueError("probe_least: there is no probe; set probe_every and probe_below")
            return
        if not 0 < self.probe_below < math.inf or self.probe_least < 2:
            raise ValueError(
                "probe_below, probe_least: expected a variance above 0 and at least 2 probes, which have one, got "
                f"{self.probe_below} and {self.probe_least}"
            )
        if not 0 < self.probe_every * self.probe_least < self.tokens:
            raise ValueError(
                f"probe_every: expected {self.probe_least} times at least one token to come before the budget's end, "
                f"{self.tokens}, got {self.probe_every}; all of probe_least have to fit into it"
            )

    def check_vocabulary(self, size: int) -> None:
        """Raises ValueError where a vocabulary of this size lacks a token that would be forced."""
        for name, ids in (("think_end", self.think_end), ("message", self.message), ("warning", self.warning)):
            if max(ids, default=-1) >= size:
                raise ValueError(f"{name}: expected token ids below {size}, the vocabulary's size, got {list(ids)}")

    @property
    def closing(self) -> tuple[int, ...]:
        """All that is forced when the budget is spent."""
        return (*self.message, *self.think_end)

    @property
    def markers(self) -> ReflectionTokens:
        """The markers, as a `ReflectionBatch` takes them."""
        return ReflectionTokens((), tuple(self.think_start), tuple(self.think_end))

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer,
        tokens: int,
        *,
        message: str = "",
        warn_at: int | None = None,
        warning: str = "",
        think: tuple[str, str] | None = None,
        **probe: Any,
    ) -> ThinkingBudget:
        """A budget with texts in place of ids. think: begin and end marker of thinking; None finds them among those
        that models use. probe: `probe_every` and so on. Raises ValueError where there are no markers, and as the class
        does."""
        start, end = find_markers(tokenizer, think, None)[:2]
        if not end:
            raise ValueError("think: the tokenizer has no markers of thinking that are known; give them")
        ids = [tuple(tokenizer.encode(text, add_special_tokens=False)) if text else () for text in (message, warning)]
        texts = {"message": ids[0], "warn_at": warn_at, "warning": ids[1]}
        return cls(tokens, think_end=end, think_start=start, **texts, **probe)

    def replace(self, **fields) -> ThinkingBudget:
        return replaced(self, **fields)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> ThinkingBudget:
        """Raises ValueError on what is no budget."""
        try:
            return cls(**json.loads(text))
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"not the JSON of a ThinkingBudget: {error}") from None


def is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)


def first_at(pattern: Sequence[int], text: Sequence[int]) -> int:
    """Where the pattern is first in the text; the text's length where it is not."""
    places = range(len(text) - len(pattern) + 1)
    return next((i for i in places if tuple(text[i : i + len(pattern)]) == tuple(pattern)), len(text))


def begins_again(start: Sequence[int], text: Sequence[int]) -> bool:
    """Whether a text that is forced could complete the marker of the start, alone or behind what the model wrote."""
    tails = any(tuple(text[:k]) == tuple(start[-k:]) for k in range(1, len(start)) if len(text) >= k)
    return bool(start) and (tails or first_at(start, text) < len(text))
