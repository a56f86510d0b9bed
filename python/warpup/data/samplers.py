"""Which training examples come next: uniformly, or by a curriculum that follows the advantages.

A curriculum groups the examples by category (difficulty, source) and draws a category first, then the next example
of it. All state is small, made of plain numbers, lists and dicts, and restores a sampler exactly.
"""

import math
import random
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol

import numpy as np


class Sampler(Protocol):
    """What a trainer asks of a sampler."""

    def next(self, k: int) -> list[int]:
        """Indices of the next k examples."""
        ...

    def observe(self, indices: Sequence[int], advantages: Sequence) -> None:
        """Report the advantages of finished rollouts: one number or one group of numbers for each index."""

    def state_dict(self) -> dict[str, Any]:
        """State that JSON can hold."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore; raises ValueError if the state belongs to another sampler or data set."""


class UniformSampler:
    """Every example once an epoch, in an order that is shuffled anew for each by `seed` and the epoch's number."""

    def __init__(self, size: int, *, seed: int | str = 0):
        """size: number of examples, at least 1. Raises ValueError otherwise."""
        if type(size) is not int or size < 1:
            raise ValueError(f"size: expected a positive number of examples, got {size!r}")
        self.size, self.seed = size, seed
        self.taken = 0  # examples given out since the start, over all epochs
        self._epoch: int | None = None  # that _order belongs to
        self._order: list[int] = []

    @property
    def epoch(self) -> int:
        """Whole passes over the examples so far."""
        return self.taken // self.size

    def next(self, k: int) -> list[int]:
        """Next k indices, 0 to size - 1; runs on into the next epoch where one ends. Raises ValueError if k < 1."""
        if type(k) is not int or k < 1:
            raise ValueError(f"k: expected a positive number of examples, got {k!r}")
        return [self._one() for _ in range(k)]

    def _one(self):
        epoch, position = divmod(self.taken, self.size)
        if self._epoch != epoch:
            self._epoch, self._order = epoch, list(range(self.size))
            random.Random(f"{self.seed} {epoch}").shuffle(self._order)
        self.taken += 1
        return self._order[position]

    def observe(self, indices: Sequence[int], advantages: Sequence) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, "size": self.size, "seed": self.seed, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _check_state(self, state, "size")
        self.seed, self.taken, self._epoch = state["seed"], state["taken"], None


class _CategorySampler(ABC):
    """Draws a category by softmax(score / temperature), then the category's next example, shuffled by epoch."""

    def __init__(self, categories: Iterable[Hashable], temperature: float, seed: int):
        self.categories = list(categories)
        if not self.categories:
            raise ValueError("categories: expected one for each example, got none")
        if not temperature > 0:
            raise ValueError(f"tau: expected a positive number, got {temperature!r}")
        self.names = list(dict.fromkeys(self.categories))
        self.temperature, self.seed, self.draws = temperature, seed, 0
        rank = {name: number for number, name in enumerate(self.names)}
        self._category = [rank[name] for name in self.categories]
        self._members = [[] for _ in self.names]
        for index, number in enumerate(self._category):
            self._members[number].append(index)
        self._within = [UniformSampler(len(m), seed=f"{seed} {i}") for i, m in enumerate(self._members)]

    @abstractmethod
    def _scores(self) -> list[float]:
        """How promising each category is."""

    def probabilities(self) -> dict[Hashable, float]:
        """Chance of each category in the next draw."""
        logits = np.array(self._scores()) / self.temperature
        weights = np.exp(logits - logits.max())
        return dict(zip(self.names, (weights / weights.sum()).tolist(), strict=True))

    def next(self, k: int) -> list[int]:
        """Next k indices; one may recur within them if its category is small. Raises ValueError if k < 1."""
        if type(k) is not int or k < 1:
            raise ValueError(f"k: expected a positive number of examples, got {k!r}")
        chances, picked = list(self.probabilities().values()), []
        for _ in range(k):
            # A generator for each draw: the whole random state is one counter.
            coin = random.Random(f"{self.seed} draw {self.draws}")
            self.draws += 1
            number = coin.choices(range(len(self.names)), chances)[0]
            picked.append(self._members[number][self._within[number].next(1)[0]])
        return picked

    def _by_category(self, indices, advantages) -> dict[int, list[float]]:
        """|A| of every rollout, by category number; checks everything before anything changes."""
        indices, advantages = list(_plain(indices)), list(_plain(advantages))
        if len(indices) != len(advantages):
            raise ValueError(f"advantages: expected one for each of {len(indices)} indices, got {len(advantages)}")
        grouped: dict[int, list[float]] = {}
        for index, entry in zip(indices, advantages, strict=True):
            if isinstance(index, float) or not 0 <= index < len(self._category):
                raise ValueError(f"indices: expected integers from 0 to {len(self._category) - 1}, got {index!r}")
            values = np.abs(np.asarray(_plain(entry), np.float64)).reshape(-1).tolist()
            if not all(map(math.isfinite, values)):
                raise ValueError(f"advantages: expected finite numbers, got {entry!r} for index {index}")
            grouped.setdefault(self._category[int(index)], []).extend(values)
        return {number: values for number, values in grouped.items() if values}

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": type(self).__name__,
            "sizes": [len(members) for members in self._members],
            "seed": self.seed,
            "draws": self.draws,
            "taken": [sampler.taken for sampler in self._within],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        _check_state(self, state, "sizes")
        self.seed, self.draws = state["seed"], state["draws"]
        for i, (sampler, taken) in enumerate(zip(self._within, state["taken"], strict=True)):
            sampler.seed, sampler.taken, sampler._epoch = f"{self.seed} {i}", taken, None


class SECSampler(_CategorySampler):
    """Self-evolving curriculum (SEC): a bandit over categories, rewarded by the mean |advantage| it brought.

    Q(c) <- alpha * mean |A| over the observed rollouts of c + (1 - alpha) * Q(c), for observed categories alone, from
    Q = 0; p(c) = softmax(Q / tau). The paper uses alpha = 0.5 and tau from 0.2 to 1.
    """

    def __init__(self, categories: Iterable[Hashable], *, alpha: float = 0.5, tau: float = 1.0, seed: int = 0):
        """categories: one for each example, in order. alpha: in (0, 1]. tau: above 0. Raises ValueError otherwise."""
        super().__init__(categories, tau, seed)
        if not 0 < alpha <= 1:
            raise ValueError(f"alpha: expected 0 < alpha <= 1, got {alpha!r}")
        self.alpha, self.q = alpha, [0.0] * len(self.names)

    def _scores(self):
        return self.q

    def observe(self, indices: Sequence[int], advantages: Sequence) -> None:
        """Update Q once from a batch. advantages: a number or a group of numbers for each index; tensors will do."""
        for number, values in self._by_category(indices, advantages).items():
            self.q[number] += self.alpha * (sum(values) / len(values) - self.q[number])

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"q": list(self.q)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.q = list(state["q"])


class DUMPSampler(_CategorySampler):
    """DUMP (Wang et al. 2025, arXiv 2504.09710): an upper confidence bound over data sources.

    score(d) = mean |A| over the last `window` rollouts of d + sqrt(2 ln(n + 1) / (n_d + 1)), where n_d counts the
    rollouts observed from d and n those from all; p(d) = softmax(score / tau). The paper uses window 300, tau 0.1.
    """

    def __init__(self, categories: Iterable[Hashable], *, window: int = 300, tau: float = 0.1, seed: int = 0):
        """categories: the source of each example, in order. window: rollouts, from 1. Raises ValueError otherwise."""
        super().__init__(categories, tau, seed)
        if type(window) is not int or window < 1:
            raise ValueError(f"window: expected a positive number of rollouts, got {window!r}")
        self.recent = [deque(maxlen=window) for _ in self.names]
        self.counts = [0] * len(self.names)

    def _scores(self):
        bonus = 2 * math.log(sum(self.counts) + 1)
        return [
            (sum(recent) / len(recent) if recent else 0.0) + math.sqrt(bonus / (count + 1))
            for recent, count in zip(self.recent, self.counts, strict=True)
        ]

    def observe(self, indices: Sequence[int], advantages: Sequence) -> None:
        """Add a batch to the windows. advantages: a number or a group of numbers for each index; tensors will do."""
        for number, values in self._by_category(indices, advantages).items():
            self.recent[number].extend(values)
            self.counts[number] += len(values)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"recent": [list(recent) for recent in self.recent], "counts": list(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.recent = [deque(values, maxlen=self.recent[0].maxlen) for values in state["recent"]]
        self.counts = list(state["counts"])


def _plain(values):
    return values.tolist() if hasattr(values, "tolist") else values


def _check_state(sampler, state, shape):
    own = sampler.state_dict()
    if state.keys() != own.keys() or state["kind"] != own["kind"] or state[shape] != own[shape]:
        raise ValueError(
            f"state: expected one of a {own['kind']} with {shape} {own[shape]}, got {state.get('kind')!r} with "
            f"{shape} {state.get(shape)}"
        )
