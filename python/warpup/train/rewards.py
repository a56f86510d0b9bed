"""Reward functions: found by name, called safely, their failures counted and never hidden."""

import importlib
import importlib.util
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import TrainError
from .reward_calls import Completion, Outcome, Signature, failure, name_of, outcomes

VERIFIER = "warpup.data:verify"


def load_reward(reward: str | Callable) -> Callable:
    """The function itself, or the one that `module:function` or `file.py:function` names; TrainError if there is none.

    A reward function takes (completion: str, example: dict) and returns a number, or an object with `.reward` and
    optionally `.correct` and `.format_ok`, such as `warpup.data.Verdict`; see `reward_calls.py` for what else it may
    take and return.
    """
    if callable(reward):
        Signature.of(reward)
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
    Signature.of(function)
    return function


def reward_name(reward: str | Callable) -> str:
    """How a reward is written into a run's config."""
    return reward if isinstance(reward, str) else name_of(reward)


@dataclass
class Scores:
    """Scores of N completions.

    rewards: N floats, NaN where the reward function failed or abstained. correct, format_ok: 1.0, 0.0 or NaN where it
    does not tell. token_rewards: for each completion one float a token, whose sum is its reward, or None; a reward
    that was given to the completion as a whole stands at its last token. None in place of the list if no function
    rewards tokens. errors: one line for each failure. abstained: how often a function returned None.
    """

    rewards: list[float] = field(default_factory=list)
    correct: list[float] = field(default_factory=list)
    format_ok: list[float] = field(default_factory=list)
    token_rewards: list[list[float] | None] | None = None
    errors: list[str] = field(default_factory=list)
    abstained: int = 0

    def extend(self, other: "Scores") -> None:
        """Append the scores of more completions."""
        if self.token_rewards is not None or other.token_rewards is not None:
            before, more = self.token_rewards, other.token_rewards
            self.token_rewards = [*(before or [None] * len(self.rewards)), *(more or [None] * len(other.rewards))]
        for name in ("rewards", "correct", "format_ok", "errors"):
            getattr(self, name).extend(getattr(other, name))
        self.abstained += other.abstained


def score(
    reward: Callable, completions: Sequence[Completion], examples: Sequence[Mapping], *, group: int = 1
) -> Scores:
    """Score N completions with their N examples; `group` completions in a row belong to one prompt.

    An exception or a value that is not finite becomes NaN and an error line; None is an abstention, NaN and counted.
    Raises TrainError if every single call failed: then the function is at fault, not a completion.
    """
    if len(completions) != len(examples) or len(completions) % group:
        raise ValueError(f"{len(completions)} completions, {len(examples)} examples, groups of {group}")
    signature, found = Signature.of(reward), []
    for call in signature.calls(completions, examples, group):
        try:
            result = reward(*call.args, **call.kwargs)
        except Exception as error:  # a user's function may raise anything
            found += [Outcome(error=failure(error))] * len(call.rows)
            continue
        found += outcomes(result, [completions[row].length for row in call.rows], signature.grouped)
    scores = Scores(
        rewards=[outcome.reward for outcome in found],
        correct=[outcome.correct for outcome in found],
        format_ok=[outcome.format_ok for outcome in found],
        errors=[outcome.error for outcome in found if outcome.error is not None],
        abstained=sum(outcome.abstained for outcome in found),
    )
    if any(outcome.token_rewards is not None for outcome in found):
        scores.token_rewards = [_by_token(o, c.length) for o, c in zip(found, completions, strict=True)]
    if completions and len(scores.errors) == len(completions):
        raise TrainError(
            f"the reward function failed on all {len(completions)} completions of a step; first: {scores.errors[0]}"
        )
    return scores


def _by_token(outcome: Outcome, length: int) -> list[float] | None:
    if outcome.token_rewards is not None or math.isnan(outcome.reward):
        return outcome.token_rewards
    return [0.0] * (length - 1) + [outcome.reward]
