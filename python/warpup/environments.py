"""Environments ready to be named in a config, and what makes one of somebody else's.

environment = "warpup.environments:Retry(reward='warpup.rewards:number', discount=0.5)"

`Retry` gives another try after a wrong answer, with any reward as the judge: that of a task of reasoning-gym too.
`Revise` asks for a second answer whatever the first one was, and pays for what it gained.
`external` stands in front of an environment of OpenEnv, or of any other with gymnasium's `reset` and `step`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from warpup.train.errors import TrainError
from warpup.train.rewards.calls import Completion
from warpup.train.rewards.reward_set import VERIFIER, RewardSet
from warpup.train.sampling.episodes import Turn

Prompt = str | Sequence[Mapping[str, Any]]


class Retry:
    """An answer, and after a wrong one another try, until `rlvr.turns` are over.

    reward: what tells whether an answer is right, by name as in a config. It is right where the reward says so
    (`.correct`), else where it pays at least `right`; where it fails or abstains the episode is left out. It is asked
    with the text of a completion alone.
    say: what a wrong answer is told; discount: a later right answer pays that much of the one before.
    """

    def __init__(
        self,
        reward: str | Callable = VERIFIER,
        say: str = "That is not right. Try again.",
        discount: float = 0.5,
        right: float = 1.0,
    ):
        for name, value in (("discount", discount), ("right", right)):
            if not isinstance(value, int | float):
                raise TrainError(f"Retry: {name} must be a number, got {value!r}")
        if not 0 < discount <= 1:
            raise TrainError(f"Retry: discount must be above 0 and at most 1, got {discount}")
        if not isinstance(say, str):
            raise TrainError(f"Retry: say must be a text, got {say!r}")
        self.judge, self.say, self.discount, self.right = RewardSet(reward), say, discount, right

    def reset(self, example: Mapping[str, Any]) -> Prompt:
        self.example, self.worth = example, 1.0
        return example["prompt"]

    def step(self, completion: str) -> Turn:
        solved = self.solved(completion)
        if math.isnan(solved):
            return Turn(reward=math.nan)
        worth, self.worth = self.worth, self.worth * self.discount
        return Turn(self.say, worth * solved, bool(solved), solved)

    def solved(self, completion: str) -> float:
        """1.0 for a right answer, 0.0 for a wrong one, NaN where the reward fails or abstains."""
        try:
            scores = self.judge.score([Completion(completion, completion, [0], True)], [self.example])
        except TrainError:  # it failed on the one completion that it was asked about
            return math.nan
        reward, correct = scores.rewards[0], scores.correct[0]
        if math.isnan(reward):
            return math.nan
        return float(correct) if not math.isnan(correct) else float(reward >= self.right)


class Revise(Retry):
    """Two answers, whatever the first one was. With r1 and r2, 1 or 0, for whether they are right, the first pays
    first r1 and the second r2 + bonus (r2 - r1): for a second answer it pays most to become right, and to spoil a right
    one costs. Over both, becoming right pays more than being right twice where `bonus` is above `first`.

    reward, say, right: as in `Retry`. bonus: of the second answer's gain. first: 1, or 0 for a stage in which the first
    answer is not to be trained (with a `kl_coef` that holds it). `rlvr.credit = "turn"` and `turns = 2` go with it.

    Source: SCoRe, "Training Language Models to Self-Correct via Reinforcement Learning" (arXiv 2409.12917).
    """

    def __init__(
        self,
        reward: str | Callable = VERIFIER,
        say: str = "There may be an error in this answer. Answer again.",
        bonus: float = 1.0,
        first: float = 1.0,
        right: float = 1.0,
    ):
        super().__init__(reward, say, 1.0, right)
        for name, value in (("bonus", bonus), ("first", first)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise TrainError(f"Revise: {name} must be a number of at least 0, got {value!r}")
        self.bonus, self.first = bonus, first

    def reset(self, example: Mapping[str, Any]) -> Prompt:
        self.before: float | None = None
        return super().reset(example)

    def step(self, completion: str) -> Turn:
        solved = self.solved(completion)
        if self.before is None:
            self.before = solved
            return Turn(self.say, self.first * solved, False, solved)
        return Turn("", solved + self.bonus * (solved - self.before), True, solved)


class Step(NamedTuple):
    """What `reset` or `step` of an environment gave."""

    observation: Any
    reward: float
    done: bool

    @classmethod
    def of(cls, result: Any) -> Step:
        """A tuple of gymnasium (observation, info; or observation, reward, terminated, truncated, info), a result of
        OpenEnv (`.observation`, `.reward`, `.done`), or an observation that has `.reward` and `.done` itself."""
        if isinstance(result, tuple):
            if len(result) == 2:
                return cls(result[0], 0.0, False)
            if len(result) in (4, 5):
                return cls(result[0], float(result[1]), any(map(bool, result[2:-1])))
        elif hasattr(result, "done"):
            return cls(getattr(result, "observation", result), float(result.reward or 0.0), bool(result.done))
        raise TrainError(
            "environment: expected what gymnasium's reset and step give, (observation, info) and (observation, reward, "
            f"terminated, truncated, info), or an object with reward and done, as OpenEnv's; got {result!r}"
        )


class External:
    """See `external`."""

    def __init__(self, environment: Any, action: Callable[[str], Any], text: Callable[[Any], str]):
        self.environment, self.action, self.text = environment, action, text

    def reset(self, example: Mapping[str, Any]) -> Prompt:
        seen = self.text(Step.of(self.environment.reset(**example.get("reset", {}))).observation)
        prompt = example.get("prompt") or ""
        if isinstance(prompt, str):
            return f"{prompt}\n{seen}" if prompt and seen else prompt or seen
        *before, last = prompt
        if last["role"] != "user":
            return [*prompt, {"role": "user", "content": seen}]
        return [*before, {**last, "content": f"{last['content']}\n{seen}" if seen else last["content"]}]

    def step(self, completion: str) -> Turn:
        step = Step.of(self.environment.step(self.action(completion)))
        return Turn(self.text(step.observation), step.reward, step.done)

    def close(self) -> None:
        if hasattr(self.environment, "close"):
            self.environment.close()


def external(environment: Any, *, action: Callable[[str], Any] = str, text: Callable[[Any], str] = str) -> External:
    """An environment for `rlvr.environment` in front of one with gymnasium's `reset` and `step`: gymnasium's own text
    games, or a client of OpenEnv (its `.sync()`), held against openenv-core 0.3.0.

    action: what a completion's text is as the environment's action. text: what of an observation the model reads.
    An example's column `reset` holds arguments of `reset`, such as {"seed": 3}; its prompt stands before the first
    observation. The environment is closed when its episode is over.

        def Wordle():
            client = WordleEnv(base_url="http://localhost:8000").sync()
            return external(client, action=lambda said: WordleAction(guess=said), text=lambda seen: seen.message)
    """
    if missing := [name for name in ("reset", "step") if not callable(getattr(environment, name, None))]:
        raise TrainError(f"external: {type(environment).__name__} has no {missing[0]}, expected an environment object")
    return External(environment, action, text)
