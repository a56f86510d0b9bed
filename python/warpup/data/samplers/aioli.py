"""Aioli: shares of a mixture, learned from how much training on each part of it lowers the loss of every part.

Source: "Aioli: A Unified Optimization Framework for Language Model Data Mixing" (arXiv 2411.05735) and its code.
"""

import random
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np

from .arms import ArmSampler
from .protocol import check_count, check_number, check_range, numbers_of


def mixing_law(shares: np.ndarray, gains: np.ndarray) -> np.ndarray:
    """(k, k) A of the linear law `gains[i, j] = sum_m A[i, m] shares[j, m]`: what a share of part m takes from the loss
    of part i.

    shares: (k, k), row j the mixture of trial j. gains: (k, k), by how much trial j lowered the loss of part i.
    """
    return np.linalg.solve(np.asarray(shares, np.float64), np.asarray(gains, np.float64).T).T


def reweighted(weights: np.ndarray, law: np.ndarray, eta: float) -> np.ndarray:
    """(k,) weights times exp(eta sum_i A[i, j]), made to add up to 1: what lowers all losses more gets more."""
    weights = np.asarray(weights, np.float64)
    powers = eta * np.asarray(law, np.float64).sum(0)
    changed = weights * np.exp(powers - powers.max())
    return changed / changed.sum()


class AioliSampler(ArmSampler):
    """Aioli's mixture of categories, learned while training goes on.

    Every `every` batches begin with a trial of each category j, `rounds` times over in random orders: `steps` batches
    with the share `focus` of j, the rest split evenly over the others. From how each category's loss fell over the
    trials the mixing law is solved (`mixing_law`), and the shares of the batches up to the next trials follow it
    (`reweighted`). In the authors' code the losses before and after a trial are those of held-out examples; here they
    are those of the batches at its two ends, which cost nothing and are noisier: batches should hold many examples of
    each category. One that a batch lacks has no gain from that trial.
    """

    reads = ("losses",)
    STATE = ("batches", "shares", "level", "gains", "counts")

    def __init__(
        self, categories: Iterable[Hashable], *, eta: float = 0.2, focus: float = 0.625, every: int = 250,
        rounds: int = 4, steps: int = 4, seed: int = 0,
    ):  # fmt: skip
        """eta: above 0. focus: above 1 / categories, below 1. every: batches, at least rounds * steps * categories.
        Raises ValueError otherwise, and for fewer than two categories."""
        super().__init__(categories, seed=seed)
        arms = len(self.names)
        if arms < 2:
            raise ValueError(f"categories: a mixture has at least 2, got {arms}")
        check_range("eta", eta, 0, 1e6, open_low=True)
        check_number("focus", focus)
        if not 1 / arms < focus < 1:
            raise ValueError(f"focus: expected more than 1 / {arms} (all alike) and less than 1, got {focus!r}")
        for name, value in (("every", every), ("rounds", rounds), ("steps", steps)):
            check_count(name, value)
        if every < rounds * steps * arms:
            raise ValueError(f"every: {rounds * steps * arms} batches are trials alone, got {every!r}")
        self.eta, self.every, self.rounds, self.steps = eta, every, rounds, steps
        self.trials = np.full((arms, arms), (1 - focus) / (arms - 1))
        np.fill_diagonal(self.trials, focus)
        self.batches = 0  # observed
        self.shares = [1 / arms] * arms
        self.level: list[float | None] = [None] * arms  # mean losses where the trial at work began
        self.gains, self.counts = self._zeros(0.0), self._zeros(0)  # sums over the rounds, and how many of them

    def _trial(self, batch: int) -> int | None:
        """The category that a batch tries out, if one."""
        arms = len(self.names)
        period, place = divmod(batch, self.every)
        turn, place = divmod(place // self.steps, arms)
        if turn >= self.rounds:
            return None
        order = list(range(arms))
        random.Random(f"{self.seed} trials {period} {turn}").shuffle(order)
        return order[place]

    def weights(self) -> np.ndarray:
        trial = self._trial(self.batches)
        return np.array(self.shares) if trial is None else self.trials[trial]

    def observe(self, indices: Sequence[int], losses: Sequence, **signals: Sequence) -> None:
        """A batch's losses, of before its step: those of a trial's first batch are what the trial began with, and what
        the one before it ended with. Where that was the last one, the shares change. A loss that is not finite tells
        nothing: the trainer leaves such a step out and goes on."""
        found = self._by_arm(numbers_of("losses", indices, losses, len(self._arm), finite=False))
        batch, place = self.batches, self.batches % self.every
        self.batches += 1
        if place % self.steps:
            return
        tried = self._trial(batch - 1) if batch else None
        level = [sum(found[i]) / len(found[i]) if i in found else None for i in range(len(self.names))]
        for i, (before, after) in enumerate(zip(self.level, level, strict=True)):
            if tried is not None and before is not None and after is not None:
                self.gains[i][tried] += before - after
                self.counts[i][tried] += 1
        self.level = level
        if tried is not None and (self._trial(batch) is None or place == 0):  # the period's last trial is over
            law = mixing_law(self.trials, np.array(self.gains) / np.maximum(self.counts, 1))
            self.shares = reweighted(np.array(self.shares), law, self.eta).tolist()
            self.gains, self.counts = self._zeros(0.0), self._zeros(0)

    def _zeros(self, zero: float) -> list[list[float]]:
        return [[zero] * len(self.names) for _ in self.names]

    def state_dict(self) -> dict[str, Any]:
        own = {name: getattr(self, name) for name in self.STATE}
        return super().state_dict() | {name: _copied(value) for name, value in own.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        for name in self.STATE:
            setattr(self, name, _copied(state[name]))


def _copied(value: Any) -> Any:
    return [_copied(item) for item in value] if isinstance(value, list) else value
