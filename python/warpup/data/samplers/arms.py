"""Samplers over arms: the examples are grouped by category (difficulty, source, task, cluster), an arm is drawn by its
weight, then the arm's next example.
"""

import math
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from .protocol import UniformSampler, check_count, check_range, check_state, numbers_of, outcomes_of


class ArmSampler(ABC):
    """Draws an arm by its weight, then the arm's next example, shuffled by epoch."""

    reads: tuple[str, ...] = ()

    def __init__(self, categories: Iterable[Hashable], *, seed: int = 0):
        """categories: one for each example, in order. Raises ValueError if there are none."""
        self.categories = list(categories)
        if not self.categories:
            raise ValueError("categories: expected one for each example, got none")
        try:
            self.names = list(dict.fromkeys(self.categories))
        except TypeError as error:
            raise ValueError(f"categories: expected texts, numbers or tuples, one for each example: {error}") from error
        self.seed, self.draws = seed, 0
        rank = {name: number for number, name in enumerate(self.names)}
        self._arm = [rank[name] for name in self.categories]
        self._members = [[] for _ in self.names]
        for index, number in enumerate(self._arm):
            self._members[number].append(index)
        self._within = [UniformSampler(len(m), seed=f"{seed} {i}") for i, m in enumerate(self._members)]

    @abstractmethod
    def weights(self) -> np.ndarray:
        """(arms,) in the order of `names`: how much each arm counts in the next draw, at least 0, some above."""

    def probabilities(self) -> dict[Hashable, float]:
        """Chance of each arm in the next draw."""
        weights = self.weights()
        return dict(zip(self.names, (weights / weights.sum()).tolist(), strict=True))

    def next(self, k: int) -> list[int]:
        """Next k indices; one may recur within them if its arm is small. Raises ValueError if k < 1."""
        check_count("k", k)
        chances, picked = list(self.probabilities().values()), []
        for _ in range(k):
            # A generator for each draw: the whole random state is one counter.
            coin = random.Random(f"{self.seed} draw {self.draws}")
            self.draws += 1
            number = coin.choices(range(len(self.names)), chances)[0]
            picked.append(self._members[number][self._within[number].next(1)[0]])
        return picked

    def observe(self, indices: Sequence[int], **signals: Sequence) -> None:  # noqa: B027  most samplers do not learn
        """Nothing to learn, unless a sampler says otherwise."""

    def _by_arm(self, found: Iterable[tuple[int, list[float]]]) -> dict[int, list[float]]:
        """The numbers of all examples of an arm together."""
        grouped: dict[int, list[float]] = {}
        for index, numbers in found:
            grouped.setdefault(self._arm[index], []).extend(numbers)
        return {number: values for number, values in grouped.items() if values}

    def _sizes(self, name: str, indices: Sequence[int], values: Sequence) -> dict[int, list[float]]:
        """|value| of every rollout, by arm."""
        found = numbers_of(name, indices, values, len(self._arm))
        return self._by_arm((index, list(map(abs, numbers))) for index, numbers in found)

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": type(self).__name__,
            "sizes": [len(members) for members in self._members],
            "seed": self.seed,
            "draws": self.draws,
            "taken": [sampler.taken for sampler in self._within],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(self, state, "sizes")
        self.seed, self.draws = state["seed"], state["draws"]
        for i, (sampler, taken) in enumerate(zip(self._within, state["taken"], strict=True)):
            sampler.seed, sampler.taken, sampler._epoch = f"{self.seed} {i}", taken, None


def softmax(scores: Sequence[float], tau: float) -> np.ndarray:
    """exp(score / tau), the largest of them 1."""
    logits = np.array(scores) / tau
    return np.exp(logits - logits.max())


# ---- by what was learned --------------------------------------------------------------------------------------------


class SECSampler(ArmSampler):
    """Self-evolving curriculum (SEC): a bandit over categories, rewarded by the mean |advantage| it brought.

    Q(c) <- alpha * mean |A| over the observed rollouts of c + (1 - alpha) * Q(c), for observed categories alone, from
    Q = 0; p(c) = softmax(Q / tau). The paper uses alpha = 0.5 and tau from 0.2 to 1.
    """

    reads = ("advantages",)

    def __init__(self, categories: Iterable[Hashable], *, alpha: float = 0.5, tau: float = 1.0, seed: int = 0):
        """categories: one for each example, in order. alpha: in (0, 1]. tau: above 0. Raises ValueError otherwise."""
        super().__init__(categories, seed=seed)
        check_range("tau", tau, 0, math.inf, open_low=True)
        check_range("alpha", alpha, 0, 1, open_low=True)
        self.tau, self.alpha, self.q = tau, alpha, [0.0] * len(self.names)

    def weights(self) -> np.ndarray:
        return softmax(self.q, self.tau)

    def observe(self, indices: Sequence[int], advantages: Sequence, **signals: Sequence) -> None:
        """Update Q once from a batch. advantages: a number or a group of numbers for each index; tensors will do."""
        for number, values in self._sizes("advantages", indices, advantages).items():
            self.q[number] += self.alpha * (sum(values) / len(values) - self.q[number])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"q": list(self.q)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.q = list(state["q"])


class DUMPSampler(ArmSampler):
    """DUMP (Wang et al. 2025, arXiv 2504.09710): an upper confidence bound over data sources.

    score(d) = mean |A| over the last `window` rollouts of d + sqrt(2 ln(n + 1) / (n_d + 1)), where n_d counts the
    rollouts observed from d and n those from all; p(d) = softmax(score / tau). The paper uses window 300, tau 0.1.
    """

    reads = ("advantages",)

    def __init__(self, categories: Iterable[Hashable], *, window: int = 300, tau: float = 0.1, seed: int = 0):
        """categories: the source of each example, in order. window: rollouts, from 1. Raises ValueError otherwise."""
        super().__init__(categories, seed=seed)
        check_range("tau", tau, 0, math.inf, open_low=True)
        check_count("window", window)
        self.tau, self.recent = tau, [deque(maxlen=window) for _ in self.names]
        self.counts = [0] * len(self.names)

    def weights(self) -> np.ndarray:
        bonus = 2 * math.log(sum(self.counts) + 1)
        scores = [
            (sum(recent) / len(recent) if recent else 0.0) + math.sqrt(bonus / (count + 1))
            for recent, count in zip(self.recent, self.counts, strict=True)
        ]
        return softmax(scores, self.tau)

    def observe(self, indices: Sequence[int], advantages: Sequence, **signals: Sequence) -> None:
        """Add a batch to the windows. advantages: a number or a group of numbers for each index; tensors will do."""
        for number, values in self._sizes("advantages", indices, advantages).items():
            self.recent[number].extend(values)
            self.counts[number] += len(values)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"recent": [list(recent) for recent in self.recent], "counts": list(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.recent = [deque(values, maxlen=self.recent[0].maxlen) for values in state["recent"]]
        self.counts = list(state["counts"])


class WeaknessSampler(ArmSampler):
    """What fails comes more often: p(c) ∝ (1 - success rate of c)^power, over the last `window` completions of c.

    A category without any yet counts as always failing. `spread` of the draws are uniform over the categories: what is
    solved keeps coming, too. Where all are solved, all draws are.

    Source: prioritized fictitious self-play, where opponent k comes ∝ (1 - win rate)^power (AlphaStar; FightLadder,
    arXiv 2406.02081); environments by the agent's failures (EnvGen, arXiv 2403.12014).
    """

    reads = ("correct", "rewards")

    def __init__(
        self, categories: Iterable[Hashable], *, power: float = 1.0, spread: float = 0.1, window: int = 100,
        seed: int = 0,
    ):  # fmt: skip
        """power: at least 0. spread: 0 to 1. window: completions, from 1. Raises ValueError otherwise."""
        super().__init__(categories, seed=seed)
        check_range("power", power, 0, math.inf)
        check_range("spread", spread, 0, 1)
        check_count("window", window)
        self.power, self.spread = power, spread
        self.recent = [deque(maxlen=window) for _ in self.names]

    def weights(self) -> np.ndarray:
        failing = np.array([1 - (sum(recent) / len(recent) if recent else 0.0) for recent in self.recent])
        weights = np.where(failing > 0, failing**self.power, 0.0)
        uniform = np.full(len(weights), 1 / len(weights))
        return self.spread * uniform + (1 - self.spread) * (weights / weights.sum() if weights.any() else uniform)

    def observe(
        self, indices: Sequence[int], correct: Sequence | None = None, rewards: Sequence | None = None,
        **signals: Sequence,
    ) -> None:  # fmt: skip
        """Add a batch's successes and failures to the windows; a reward above 0 is one where `correct` is NaN."""
        outcomes = outcomes_of(indices, correct, rewards, len(self._arm))
        for number, values in self._by_arm(outcomes).items():
            self.recent[number].extend(values)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"recent": [list(recent) for recent in self.recent]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.recent = [deque(values, maxlen=self.recent[0].maxlen) for values in state["recent"]]


# ---- by a rule ------------------------------------------------------------------------------------------------------


class RecencySampler(ArmSampler):
    """Tasks one after another, old ones rehearsed the less the longer ago they were new.

    The categories are tasks, in the order of their first examples; each is new for `per_task` draws, the last one for
    the rest. While task t is new, task k <= t is drawn with probability ∝ (t - k + 1)^-d ("power"), or
    ∝ exp(-d (t - k)) ("exponential"), tasks to come are not. d = 0 with either is all tasks so far alike.

    Source: "Catastrophic Interference is Mitigated in Naturalistic Power-Law Learning Environments" (arXiv 2401.10393),
    which compares the two.
    """

    def __init__(
        self, categories: Iterable[Hashable], *, per_task: int, d: float = 1.0, decay: str = "power", seed: int = 0
    ):
        """per_task: draws, from 1. d: 0 to 1e6. Raises ValueError otherwise, and on another decay."""
        super().__init__(categories, seed=seed)
        check_count("per_task", per_task)
        check_range("d", d, 0, 1e6)  # of inf and age 0 there is no product
        if decay not in ("power", "exponential"):
            raise ValueError(f"decay: expected power or exponential, got {decay!r}")
        self.per_task, self.d, self.decay = per_task, d, decay

    def weights(self) -> np.ndarray:
        newest = min(self.draws // self.per_task, len(self.names) - 1)
        age = np.maximum(newest - np.arange(len(self.names)), 0)
        weights = np.exp(-self.d * age) if self.decay == "exponential" else (age + 1.0) ** -self.d
        return np.where(np.arange(len(self.names)) <= newest, weights, 0.0)


class BalancedSampler(ArmSampler):
    """Each category is drawn ∝ its number of examples to a power: 0, all alike; 1, as without a sampler; between them
    small ones are favored.

    Source: cluster-balanced training for fair prediction of strategies (arXiv 2308.03892), with `dp_means` as the
    categories; the power is the usual one of multilingual mixtures (arXiv 1911.02116).
    """

    def __init__(self, categories: Iterable[Hashable], *, power: float = 0.0, seed: int = 0):
        """power: -100 to 100. Raises ValueError otherwise."""
        super().__init__(categories, seed=seed)
        check_range("power", power, -100, 100)
        self.power = power

    def weights(self) -> np.ndarray:
        sizes = np.array([float(len(members)) for members in self._members])
        return (sizes / (sizes.max() if self.power > 0 else sizes.min())) ** self.power  # none overflows
