"""What a trainer asks of a sampler; the uniform one; what samplers share.

All state is small, made of plain numbers, lists and dicts, and restores a sampler exactly.
"""

import math
import random
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Sampler(Protocol):
    """What a trainer asks of a sampler.

    It may have an attribute `reads`, the names of the signals that it cannot do without: a stage that does not give
    them refuses it, and Warmup computes losses only where they are read.
    """

    def next(self, k: int) -> list[int]:
        """Indices of the next k examples."""
        ...

    def observe(self, indices: Sequence[int], **signals: Any) -> None:
        """Report what came of examples, for each index a number or a group of numbers; what is not read is ignored.

        RLVR gives `advantages`, `rewards` and `correct` (1.0, 0.0) of the completions, the last two NaN where nobody
        told; Warmup `losses`, the mean of -log p over an example's tokens.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """State that JSON can hold."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore; raises ValueError if the state belongs to another sampler or data set."""
        ...


class UniformSampler:
    """Every example once an epoch, in an order that is shuffled anew for each by `seed` and the epoch's number."""

    reads = ()

    def __init__(self, size: int, *, seed: int | str = 0):
        """size: number of examples, at least 1. Raises ValueError otherwise."""
        check_count("size", size)
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
        check_count("k", k)
        return [self._one() for _ in range(k)]

    def _one(self):
        epoch, position = divmod(self.taken, self.size)
        if self._epoch != epoch:
            self._epoch, self._order = epoch, shuffled(self.size, f"{self.seed} {epoch}")
        self.taken += 1
        return self._order[position]

    def observe(self, indices: Sequence[int], **signals: Sequence) -> None:
        """Nothing to learn."""

    def state_dict(self) -> dict[str, Any]:
        return {"kind": type(self).__name__, "size": self.size, "seed": self.seed, "taken": self.taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        check_state(self, state, "size")
        self.seed, self.taken, self._epoch = state["seed"], state["taken"], None


# ---- what samplers share --------------------------------------------------------------------------------------------


def shuffled(size: int, seed: str) -> list[int]:
    """0 to size - 1 in an order that depends on the seed alone: no random state has to be kept."""
    order = list(range(size))
    random.Random(seed).shuffle(order)
    return order


def check_count(name: str, value: Any) -> None:
    """Raise ValueError unless the value is a whole number above 0."""
    if type(value) is not int or value < 1:
        raise ValueError(f"{name}: expected a whole number of at least 1, got {value!r}")


def check_number(name: str, value: Any) -> None:
    """Raise ValueError unless the value is a number; an option read from a name may be a text."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name}: expected a number, got {value!r}")


def check_range(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Raise ValueError unless low <= value <= high, or with `open_low` low < value <= high."""
    check_number(name, value)
    if not (low < value if open_low else low <= value) or not value <= high:
        raise ValueError(f"{name}: expected {low} {'<' if open_low else '<='} {name} <= {high}, got {value!r}")


def check_state(sampler: Any, state: dict[str, Any], shape: str) -> None:
    """Raise ValueError unless a state is one of such a sampler, over as many examples."""
    own = sampler.state_dict()
    if state.keys() != own.keys() or state["kind"] != own["kind"] or state[shape] != own[shape]:
        raise ValueError(
            f"state: expected one of a {own['kind']} with {shape} {own[shape]}, got {state.get('kind')!r} with "
            f"{shape} {state.get(shape)}"
        )


def numbers_of(
    name: str, indices: Iterable, values: Iterable, size: int, *, finite: bool = True
) -> list[tuple[int, list[float]]]:
    """(index, its numbers) for each index; checks everything before anything is learned. A number that is not finite is
    an error, or is left out."""
    indices, values = list(plain(indices)), list(plain(values))
    if len(indices) != len(values):
        raise ValueError(f"{name}: expected one for each of {len(indices)} indices, got {len(values)}")
    found = []
    for index, entry in zip(indices, values, strict=True):
        if isinstance(index, float) or not 0 <= index < size:
            raise ValueError(f"indices: expected integers from 0 to {size - 1}, got {index!r}")
        numbers = np.asarray(plain(entry), np.float64).reshape(-1).tolist()
        if finite and not all(map(math.isfinite, numbers)):
            raise ValueError(f"{name}: expected finite numbers, got {entry!r} for index {index}")
        found.append((int(index), [n for n in numbers if math.isfinite(n)]))
    return found


def outcomes_of(
    indices: Sequence, correct: Sequence | None, rewards: Sequence | None, size: int
) -> list[tuple[int, list[float]]]:
    """(index, 1.0 for each success and 0.0 for each failure): what is correct, or where nobody tells, what has a reward
    above 0."""
    if correct is None and rewards is None:
        raise ValueError("correct, rewards: expected one of them")
    unknown = [math.nan] * len(indices)
    told = numbers_of("correct", indices, unknown if correct is None else correct, size, finite=False)
    paid = numbers_of("rewards", indices, unknown if rewards is None else rewards, size, finite=False)
    return [(i, right or [float(n > 0) for n in given]) for (i, right), (_, given) in zip(told, paid, strict=True)]


def plain(values: Any) -> Any:
    return values.tolist() if hasattr(values, "tolist") else values
