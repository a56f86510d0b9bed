"""Reward functions: found by name, called safely, their failures counted and never hidden."""

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import TrainError

VERIFIER = "warpup.data:verify"


def load_reward(reward: str | Callable) -> Callable:
    """The function itself, or the one that `module:function` or `file.py:function` names; TrainError if there is none.

    A reward function takes (completion: str, example: dict) and returns a number, or an object with `.reward` and
    optionally `.correct` and `.format_ok`, such as `warpup.data.Verdict`.
    """
    if callable(reward):
        return reward
    place, _, name = str(reward).rpartition(":")
    if not place or not name:
        raise TrainError(f"reward: expected `module:function` or `file.py:function`, got {reward!r}")
    try:
        if place.endswith(".py"):
            if not Path(place).is_file():
                raise TrainError(f"reward: no file {place}")
            spec = importlib.util.spec_from_file_location(Path(place).stem, place)
            assert spec is not None  # it ends in .py
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(place)
    except TrainError:
        raise
    except Exception as error:
        raise TrainError(f"reward: cannot import {place}: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise TrainError(f"reward: {place} has no function {name}")
    return function


def reward_name(reward: str | Callable) -> str:
    """How a reward is written into a run's config."""
    if isinstance(reward, str):
        return reward
    return f"{getattr(reward, '__module__', '?')}:{getattr(reward, '__qualname__', type(reward).__name__)}"


@dataclass
class Scores:
    """Scores of N completions. rewards: N floats, NaN where the reward function failed. correct, format_ok: 1.0, 0.0 or
    NaN where it does not tell. errors: one line for each failure."""

    rewards: list[float] = field(default_factory=list)
    correct: list[float] = field(default_factory=list)
    format_ok: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def score(reward: Callable, completions: Sequence[str], examples: Sequence[Mapping]) -> Scores:
    """Score each completion with its example. An exception or a value that is not finite becomes NaN and an error line.

    Raises TrainError if every single call failed: then the function is at fault, not a completion.
    """
    scores = Scores()
    for completion, example in zip(completions, examples, strict=True):
        value, correct, format_ok = math.nan, math.nan, math.nan
        try:
            result = reward(completion, example)
            value = float(getattr(result, "reward", result))
            correct, format_ok = (float(getattr(result, name, math.nan)) for name in ("correct", "format_ok"))
            if not math.isfinite(value):
                scores.errors.append(f"reward is {value}")
                value = math.nan
        except Exception as error:  # a user's function may raise anything
            scores.errors.append(f"{type(error).__name__}: {error}")
        scores.rewards.append(value)
        scores.correct.append(correct)
        scores.format_ok.append(format_ok)
    if completions and len(scores.errors) == len(completions):
        raise TrainError(
            f"the reward function failed on all {len(completions)} completions of a step; first: {scores.errors[0]}"
        )
    return scores
