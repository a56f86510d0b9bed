"""The rewards of a stage: several functions with weights, called safely, their failures counted and never hidden."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import TrainError
from .calls import Call, Completion, Outcome, Signature, attempt, attempt_together
from .loading import load_reward, reward_name
from .workers import Workers

VERIFIER = "warpup.data:verify"

Reward = str | Callable  # a function, or the name of one


@dataclass
class Scores:
    """Scores of N completions.

    rewards: N floats, the weighted sum over the reward functions that gave one; NaN where one failed or all abstained.
    correct, format_ok: 1.0, 0.0 or NaN where no function tells; the first that does counts.
    token_rewards: for each completion one float a token, whose sum is its reward, or None where that is NaN; a reward
    of the completion as a whole stands at its last token. None in place of the list if no function rewards tokens.
    columns: for each function its N rewards before weighting, by its name; NaN where it failed or abstained.
    errors: one line for each failure. abstained: how often a function returned None.
    """

    rewards: list[float] = field(default_factory=list)
    correct: list[float] = field(default_factory=list)
    format_ok: list[float] = field(default_factory=list)
    token_rewards: list[list[float] | None] | None = None
    columns: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    abstained: int = 0

    def table(self) -> list[list[float]]:
        """(N, C) the columns side by side, as `warpup.advantage.gdpo` normalizes them; a row without a reward is all
        NaN."""
        rows = zip(*self.columns.values(), strict=True)
        return [
            [math.nan] * len(row) if math.isnan(reward) else list(row)
            for reward, row in zip(self.rewards, rows, strict=True)
        ]

    def extend(self, other: "Scores") -> None:
        """Append the scores of more completions by the same reward functions."""
        if self.token_rewards is not None or other.token_rewards is not None:
            before, more = self.token_rewards, other.token_rewards
            self.token_rewards = [*(before or [None] * len(self.rewards)), *(more or [None] * len(other.rewards))]
        for name in ("rewards", "correct", "format_ok", "errors"):
            getattr(self, name).extend(getattr(other, name))
        for name, column in other.columns.items():
            self.columns.setdefault(name, []).extend(column)
        self.abstained += other.abstained


class RewardSet:
    """Reward functions with weights, loaded and ready to be called; TrainError on what cannot be.

    rewards: one, or several. weights: one number each (None: 1). timeout: seconds that a call may take, then it is
    stopped and counts as failed; a call in this process cannot be stopped, so it takes workers, or an `async def`.
    workers: processes that call the functions; 0: they are called here, one after another. `async def` functions are
    awaited here, all at once.
    """

    def __init__(
        self,
        rewards: Reward | Sequence[Reward],
        weights: Sequence[float] | None = None,
        *,
        timeout: float | None = None,
        workers: int = 0,
    ):
        given = [rewards] if isinstance(rewards, str) or callable(rewards) else list(rewards)
        if not given:
            raise TrainError("reward: expected at least one function, got an empty list")
        self.weights = [1.0] * len(given) if weights is None else [float(weight) for weight in weights]
        if len(self.weights) != len(given) or not all(map(math.isfinite, self.weights)):
            raise TrainError(f"reward_weights: expected {len(given)} finite numbers, one a reward, got {weights}")
        if timeout is not None and not timeout > 0:
            raise TrainError(f"reward_timeout: expected more than 0 seconds, got {timeout!r}")
        if workers < 0:
            raise TrainError(f"reward_workers: expected at least 0, got {workers!r}")
        self.functions = [load_reward(reward) for reward in given]
        self.signatures = [Signature.of(function) for function in self.functions]
        self.names = short_names([reward_name(reward) for reward in given])
        self.timeout, self.workers = timeout, Workers(given, workers) if workers else None
        for name, signature in zip(self.names, self.signatures, strict=True):
            if timeout is not None and not workers and not signature.asynchronous:
                raise TrainError(
                    f"reward_timeout: a call of {name} in this process cannot be stopped; set reward_workers to at "
                    "least 1, or write it with `async def`"
                )

    def score(self, completions: Sequence[Completion], examples: Sequence[Mapping], *, group: int = 1) -> Scores:
        """Score N completions with their N examples; `group` completions in a row belong to one prompt.

        An exception or a value that is not finite becomes NaN and an error line; None is an abstention, NaN and
        counted. Raises TrainError if every single call of a function failed: then the function is at fault, not a
        completion.
        """
        if len(completions) != len(examples) or len(completions) % group:
            raise ValueError(f"{len(completions)} completions, {len(examples)} examples, groups of {group}")
        from .. import ranks  # and with it torch, which settings are checked without

        # Functions may count, cost money or answer differently the next time: one rank asks for all.
        return ranks.from_first(lambda: self._score(completions, examples, group))

    def _score(self, completions: Sequence[Completion], examples: Sequence[Mapping], group: int) -> Scores:
        scores, found = Scores(), []
        for number, name in enumerate(self.names):
            calls = list(self.signatures[number].calls(completions, examples, group))
            column = [outcome for outcomes in self._call(number, calls) for outcome in outcomes]
            errors = [outcome.error for outcome in column if outcome.error is not None]
            if completions and len(errors) == len(completions):
                raise TrainError(
                    f"the reward function {name} failed on all {len(completions)} completions of a step; first: "
                    f"{errors[0]}"
                )
            scores.columns[name] = [outcome.reward for outcome in column]
            scores.errors += errors if len(self.names) == 1 else [f"{name}: {error}" for error in errors]
            scores.abstained += sum(outcome.abstained for outcome in column)
            found.append(column)
        by_token = any(outcome.token_rewards is not None for column in found for outcome in column)
        scores.token_rewards = [] if by_token else None
        for said, completion in zip(zip(*found, strict=True), completions, strict=True):
            total, tokens = self._together(said, completion.length)
            scores.rewards.append(total)
            for name in ("correct", "format_ok"):
                told = (value for value in (getattr(outcome, name) for outcome in said) if not math.isnan(value))
                getattr(scores, name).append(next(told, math.nan))
            if scores.token_rewards is not None:
                scores.token_rewards.append(tokens)
        return scores

    def _call(self, number: int, calls: list[Call]) -> list[list[Outcome]]:
        function, signature = self.functions[number], self.signatures[number]
        if signature.asynchronous:
            return attempt_together(function, signature, calls, self.timeout)
        if self.workers:
            return self.workers.map(number, calls, self.timeout)
        return [attempt(function, signature, call) for call in calls]

    def _together(self, said: Sequence[Outcome], length: int) -> tuple[float, list[float] | None]:
        """Weighted sum of one completion's outcomes, and the same sum token by token."""
        given = [(w, o) for w, o in zip(self.weights, said, strict=True) if not o.abstained]
        if not given or any(outcome.error is not None for _, outcome in given):
            return math.nan, None
        tokens = [0.0] * length
        for weight, outcome in given:
            by_token = outcome.token_rewards or [0.0] * (length - 1) + [outcome.reward]
            tokens = [token + weight * reward for token, reward in zip(tokens, by_token, strict=True)]
        return math.fsum(weight * outcome.reward for weight, outcome in given), tokens


def short_names(names: Sequence[str]) -> list[str]:
    """The functions' own names, with their place where two are called alike, with a number where that is alike too."""
    short = [name.partition("(")[0].rpartition(":")[2] for name in names]
    short = [s if short.count(s) == 1 else name for s, name in zip(short, names, strict=True)]
    return [s if short.count(s) == 1 else f"{s} {short[: i + 1].count(s)}" for i, s in enumerate(short)]
