"""Rewards of a completion's shape: how long it is, and whether it has the asked-for form."""

import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from warpup.data.verify import answer_block

from .answers import Grade


def overlong(completion: str, example: Mapping, *, length: int, max_length: int, buffer: int) -> float:
    """0 up to `max_length - buffer` tokens, then falling in a line to -1 at `max_length` and beyond: a punishment to be
    added to a reward, so that what is about to be cut off is not better than what ends in time.

    Source: "soft overlong punishment" of DAPO (arXiv 2503.14476, equation 13), there with 20,480 and 4,096 tokens.
    """
    if not 0 < buffer <= max_length:
        raise ValueError(f"buffer: expected 1 to max_length = {max_length} tokens, got {buffer}")
    return -min(1.0, max(0, length - (max_length - buffer)) / buffer)


def cosine_length(
    completion: str,
    example: Mapping,
    *,
    length: int,
    finished: bool,
    max_length: int,
    check: str | Callable = "warpup.rewards:number",
    correct: tuple[float, float] = (2.0, 1.0),
    wrong: tuple[float, float] = (-10.0, 0.0),
    exceeded: float = -10.0,
) -> Grade:
    """A right answer is worth more if it is short, a wrong one less, along half a cosine.

    correct, wrong: the reward at length 0 and at `max_length` tokens, with `half_cosine` between them. exceeded: the
    reward of a completion that is not finished, or longer. check: the reward that says what is right: one that is
    called with (completion, example) and tells `correct`, or gives more than 0 for what is right.

    Source: arXiv 2502.03373, table of its default values. "A Practical Two-Stage Recipe" takes (1, .1) and (-1, -.1).
    """
    if max_length < 1:
        raise ValueError(f"max_length: expected at least 1 token, got {max_length}")
    right = judge(check, completion, example)
    if not finished or length > max_length:
        return Grade(exceeded, right)
    return Grade(half_cosine(length, max_length, *(correct if right else wrong)), right)


def half_cosine(length: int, longest: int, start: float, end: float) -> float:
    """From `start` at length 0 to `end` at the longest: end + (start - end) (1 + cos(pi length / longest)) / 2."""
    return end + (start - end) * (1 + math.cos(math.pi * length / longest)) / 2


def judge(check: str | Callable, completion: str, example: Mapping) -> bool:
    """Whether a reward, by name or itself, takes a completion for right: it says `correct`, or gives more than 0."""
    verdict = _loaded(check)(completion, example)
    return bool(getattr(verdict, "correct", getattr(verdict, "reward", verdict) > 0))


def think_answer(completion: str, example: Mapping) -> float:
    """1 for `<think> ... </think> <answer> ... </answer>` alone (the first tag may be in the prompt), else 0."""
    return float(answer_block(completion) is not None)


def pattern(completion: str, example: Mapping, *, regex: str) -> float:
    """1 if the whole completion matches a regular expression (`.` matches a new line too), else 0."""
    return float(re.fullmatch(regex, completion, re.DOTALL) is not None)


@functools.cache
def _loaded(check: str | Callable) -> Callable[[str, Mapping], Any]:
    from warpup.train.rewards.loading import load_reward

    return load_reward(check)
