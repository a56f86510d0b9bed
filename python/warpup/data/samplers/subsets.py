"""Samplers over subsets: each epoch takes some of the examples, in an order of its own."""

import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from .protocol import check_count, check_number, check_range, check_state, outcomes_of, shuffled


class SubsetSampler(ABC):
    """Goes through the subset of an epoch, and on into that of the next one. Most subsets depend on the seed and the
    epoch's number alone."""

    reads: tuple[str, ...] = ()
    needs_scores = False

    def __init__(self, size: int, *, scores: Sequence[float] | None = None, seed: int = 0):
        """size: number of examples. scores: a finite number for each, where the sampler reads some. Raises ValueError
        otherwise."""
        check_count("size", size)
        if scores is None and self.needs_scores:
            raise ValueError(f"scores: a {type(self).__name__} needs a number for each example")
        if scores is not None and len(scores) != size:
            raise ValueError(f"scores: expected one for each of {size} examples, got {len(scores)}")
        self.scores = None if scores is None else [_finite(score, i) for i, score in enumerate(scores)]
        self.size, self.seed, self.epoch, self.position = size, seed, 0, 0
        self._order: list[int] | None = None  # of the epoch at work, once it is known

    @abstractmethod
    def subset(self, epoch: int) -> list[int]:
        """The indices of an epoch, in their order; not empty."""

    def next(self, k: int) -> list[int]:
        """Next k indices. Raises ValueError if k < 1."""
        check_count("k", k)
        return [self._one() for _ in range(k)]

    def _one(self) -> int:
        if self._order is None:
            self._order = self.subset(self.epoch)
        if self.position == len(self._order):
            order = self.subset(self.epoch + 1)  # where that raises, nothing has changed
            self.epoch, self.position, self._order = self.epoch + 1, 0, order
        self.position += 1
        return self._order[self.position - 1]

    def observe(self, indices: Sequence[int], **signals: Sequence) -> None:  # noqa: B027  most do not learn
        """Nothing to learn, unless a sampler says otherwise."""

    def state_dict(self) -> dict[str, Any]:
        names = ("size", "seed", "epoch", "position")
        return {"kind": type(self).__name__, **{name: getattr(self, name) for name in names}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(self, state, "size")
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        self._order = None


def cyclical_share(epoch: int, start: float = 0.25, alpha: float = 0.5, end: float = 1.0) -> float:
    """The share of the data in an epoch of a cyclical curriculum: from `start` up to `end` by a factor of 1 / alpha an
    epoch, down again by alpha, and so on."""
    share, rising = start, True
    for _ in range(epoch):
        rising = (rising or share == start) and share != end
        share = min(share / alpha, end) if rising else max(share * alpha, start)
    return share


class CyclicalSampler(SubsetSampler):
    """Subsets that grow and shrink in cycles (`cyclical_share`), drawn without replacement ∝ score.

    scores: at least 0, such as the probability that a plain model gives the true answer, or one over its loss; without
    them all examples are alike.

    Source: "Cyclical Curriculum Learning" (arXiv 2202.05531) and its code.
    """

    def __init__(
        self, size: int, *, scores: Sequence[float] | None = None, start: float = 0.25, alpha: float = 0.5,
        end: float = 1.0, seed: int = 0,
    ):  # fmt: skip
        """start <= end: shares in (0, 1]. alpha: in (0, 1). Raises ValueError otherwise."""
        super().__init__(size, scores=scores, seed=seed)
        check_weights(self.scores)
        check_range("end", end, 0, 1, open_low=True)
        check_range("start", start, 0, end, open_low=True)
        check_number("alpha", alpha)
        if not 0 < alpha < 1:
            raise ValueError(f"alpha: expected 0 < alpha < 1, got {alpha!r}")
        self.start, self.alpha, self.end = start, alpha, end

    def subset(self, epoch: int) -> list[int]:
        count = at_least_one(cyclical_share(epoch, self.start, self.alpha, self.end) * self.size)
        rng = random.Random(f"{self.seed} {epoch}")
        # The least of exponential times with the scores as rates are a draw without replacement, one after another.
        times = [rng.expovariate(1.0) / w if w else math.inf for w in self.scores or [1.0] * self.size]
        return sorted(range(self.size), key=times.__getitem__)[:count]


class RS2Sampler(SubsetSampler):
    """A fresh random share of the data each epoch: out of all of it (`replacement`), or what earlier epochs have left,
    until nothing more fills a share.

    Stretch the learning rate's schedule over the same number of steps as all the data would take.

    Source: "Repeated Random Sampling for Minimizing the Time-to-Accuracy of Learning" (RS2, arXiv 2305.18424).
    """

    def __init__(self, size: int, *, share: float = 0.1, replacement: bool = False, seed: int = 0):
        """share: in (0, 1], at least one example. Raises ValueError otherwise."""
        super().__init__(size, seed=seed)
        check_range("share", share, 0, 1, open_low=True)
        if not isinstance(replacement, bool):
            raise ValueError(f"replacement: expected true or false, got {replacement!r}")
        self.count, self.replacement = int(share * size + 1e-9), replacement
        if not self.count:
            raise ValueError(f"share: {share!r} of {size} examples is not one")

    def subset(self, epoch: int) -> list[int]:
        turn, place = (epoch, 0) if self.replacement else divmod(epoch, self.size // self.count)
        return shuffled(self.size, f"{self.seed} {turn}")[place * self.count : (place + 1) * self.count]


class PacedSampler(SubsetSampler):
    """A curriculum by difficulty: the first share of the examples in one order, and more each epoch, until all come.

    The share of epoch e is start + (1 - start) min(1, e / epochs)^power. order: "easy" examples first, "anti" (hard
    ones first) or "random" (in an order drawn once: what the share alone does). Within an epoch they are shuffled.
    scores: the difficulty, such as the loss under a scoring model.

    Source: "When Do Curricula Work in Federated Learning?" (arXiv 2212.12712) and the paper it follows (2012.03107).
    """

    needs_scores = True
    ORDERS = ("easy", "anti", "random")

    def __init__(
        self, size: int, *, scores: Sequence[float] | None = None, order: str = "easy", start: float = 0.2,
        epochs: int = 5, power: float = 1.0, seed: int = 0,
    ):  # fmt: skip
        """start: in (0, 1]. epochs: from 1. power: above 0. Raises ValueError otherwise, and on another order."""
        super().__init__(size, scores=scores, seed=seed)
        if order not in self.ORDERS:
            raise ValueError(f"order: expected one of {', '.join(self.ORDERS)}, got {order!r}")
        check_range("start", start, 0, 1, open_low=True)
        check_range("power", power, 0, 100, open_low=True)
        check_count("epochs", epochs)
        self.order, self.start, self.epochs, self.power = order, start, epochs, power

    def subset(self, epoch: int) -> list[int]:
        share = self.start + (1 - self.start) * min(1.0, epoch / self.epochs) ** self.power
        ranked = shuffled(self.size, f"{self.seed} order")  # of equal scores this is the order
        if self.order != "random":
            assert self.scores is not None
            ranked.sort(key=self.scores.__getitem__, reverse=self.order == "anti")
        taken = ranked[: at_least_one(share * self.size)]
        random.Random(f"{self.seed} {epoch}").shuffle(taken)
        return taken


class ViewsSampler(SubsetSampler):
    """An example comes `views` times in a row, and then not for so many times as long: an epoch is as long as the data
    and has 1 / views of it, `views` epochs have all.

    Source: view batches, "Do Your Best and Get Enough Rest for Continual Learning" (arXiv 2503.18371) and its code.
    """

    def __init__(self, size: int, *, views: int = 4, seed: int = 0):
        """views: from 1. Raises ValueError otherwise."""
        super().__init__(size, seed=seed)
        check_count("views", views)
        self.views = views

    def subset(self, epoch: int) -> list[int]:
        turn, place = divmod(epoch, self.views)
        order = shuffled(self.size, f"{self.seed} {turn}")
        return [order[n // self.views] for n in range(place * self.size, (place + 1) * self.size)]


class WeightedSampler(SubsetSampler):
    """Each draw takes an example ∝ its score, which is at least 0, whatever was drawn before.

    Source: A-LoL (arXiv 2305.14718) draws completions ∝ their advantages above 0.
    """

    needs_scores = True

    def __init__(self, size: int, *, scores: Sequence[float] | None = None, seed: int = 0):
        """Raises ValueError unless a score is above 0 and none below."""
        super().__init__(size, scores=scores, seed=seed)
        check_weights(self.scores)

    def subset(self, epoch: int) -> list[int]:
        rng = random.Random(f"{self.seed} {epoch}")
        return rng.choices(range(self.size), self.scores, k=self.size)


class PassRateSampler(SubsetSampler):
    """Examples whose pass rate is above `above` and at most `most`, shuffled by epoch.

    scores: known pass rates, such as a small reference policy's: with `most` below 1 its hard tail (Light-R1, arXiv
    2503.10460). Without them a pass rate is that of the example's latest group of completions, and what has had none
    stays: with the defaults what was never solved is left out (rollout-based instance filtering, "Reinforcement
    Fine-Tuning Naturally Mitigates Forgetting in Continual Post-Training", arXiv 2507.05386). What is left out does not
    come back.
    """

    reads = ("correct", "rewards")

    def __init__(
        self, size: int, *, scores: Sequence[float] | None = None, above: float = 0.0, most: float = 1.0, seed: int = 0
    ):
        """above < most: from -1 (nothing is too low) to 1. Raises ValueError otherwise."""
        super().__init__(size, scores=scores, seed=seed)
        check_range("most", most, 0, 1)
        check_number("above", above)
        if not -1 <= above < most:
            raise ValueError(f"above: expected -1 <= above < most, {most!r}, got {above!r}")
        if wrong := [rate for rate in self.scores or () if not 0 <= rate <= 1]:
            raise ValueError(f"scores: expected pass rates from 0 to 1, got {wrong[0]}")
        self.above, self.most = above, most
        self.rates: dict[int, float] = dict(enumerate(self.scores or ()))
        if self.scores is not None:
            self.reads = ()

    def subset(self, epoch: int) -> list[int]:
        kept = [i for i in range(self.size) if i not in self.rates or self.above < self.rates[i] <= self.most]
        if not kept:
            raise ValueError(f"pass rate: no example has one above {self.above} and at most {self.most}")
        random.Random(f"{self.seed} {epoch}").shuffle(kept)
        return kept

    def observe(
        self, indices: Sequence[int], correct: Sequence | None = None, rewards: Sequence | None = None,
        **signals: Sequence,
    ) -> None:  # fmt: skip
        """Pass rates of a batch; a reward above 0 is a pass where `correct` is NaN. Known pass rates stay."""
        if self.scores is None:
            for index, outcomes in outcomes_of(indices, correct, rewards, self.size):
                if outcomes:
                    self.rates[index] = sum(outcomes) / len(outcomes)

    def state_dict(self) -> dict[str, Any]:
        if self.scores is not None:  # a known rate does not change
            return super().state_dict()
        return super().state_dict() | {
            "seen": [list(pair) for pair in sorted(self.rates.items())],
            "order": self._order,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if self.scores is None:
            self.rates = {index: rate for index, rate in state["seen"]}
            self._order = None if state["order"] is None else list(state["order"])


def at_least_one(count: float) -> int:
    """Rounded up, but for what rounding in the share has added."""
    return max(1, math.ceil(count - 1e-9))


def check_weights(scores: Sequence[float] | None) -> None:
    """Raise ValueError unless all weights are at least 0 and some are above."""
    if scores is not None and (min(scores) < 0 or not max(scores) > 0):
        raise ValueError(f"scores: expected weights of at least 0, some above, got {min(scores)} to {max(scores)}")


def _finite(score: Any, index: int) -> float:
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ValueError(f"scores: expected a finite number, got {score!r} for example {index}")
    return float(score)
