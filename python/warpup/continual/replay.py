"""What to keep of a stream, and how to notice that it has changed."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any


class Reservoir:
    """A memory that holds a uniform sample of all items seen so far, whatever their number (Vitter's algorithm R).

    Items are anything: tuples of example, label, logits and features (HPCR, arXiv 2309.15038), or of example and
    expert (TAME). The same seed and stream give the same memory.

    Args:
        capacity: items it holds, at least 1.
        seed: of what is replaced and drawn.
    """

    def __init__(self, capacity: int, seed: int = 0):
        if capacity < 1:
            raise ValueError(f"Reservoir: capacity must be at least 1, got {capacity}")
        self.capacity, self.seed = capacity, seed
        self.items: list[Any] = []
        self.seen = self.draws = 0

    def __len__(self) -> int:
        return len(self.items)

    def add(self, item: Any) -> None:
        """Keep an item with probability capacity / items seen, in the place of a random one."""
        self.seen += 1
        if len(self.items) < self.capacity:
            self.items.append(item)
        elif (place := random.Random(f"{self.seed} add {self.seen}").randrange(self.seen)) < self.capacity:
            self.items[place] = item

    def sample(self, k: int) -> list[Any]:
        """k different items at random, or all where there are no more."""
        self.draws += 1
        return random.Random(f"{self.seed} draw {self.draws}").sample(self.items, min(k, len(self.items)))

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; the items themselves are in it."""
        names = ("capacity", "seed", "seen", "draws")
        return {name: getattr(self, name) for name in names} | {"items": list(self.items)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["capacity"] != self.capacity:
            raise ValueError(f"Reservoir: the state has capacity {state['capacity']}, this one {self.capacity}")
        self.seed, self.seen, self.draws = state["seed"], state["seen"], state["draws"]
        self.items = list(state["items"])


class ShiftDetector:
    """Notices by a loss that a stream has changed, and says which expert to go on with (TAME, task-agnostic experts).

    The loss is smoothed, s <- smoothing * loss + (1 - smoothing) * s. With mean mu and deviation sigma of an expert's
    last `window` smoothed losses, the stream has shifted when s > mu + sigmas * sigma. Nothing is said before a window
    is full. The third-party notes that this follows leave open whether raw or smoothed losses fill the window.

    `update` each step with the loss of the expert in use; where it is True, `switch` with the losses of all experts:

        if detector.update(loss_of(experts[detector.current], batch)):
            chosen = detector.switch([loss_of(expert, batch) for expert in experts])
            if chosen == len(experts):
                experts.append(new_expert())

    The expert at test time is the answer of a classifier trained on a `Reservoir` of (example, expert). Detectors of
    other kinds (ADWIN, Page-Hinkley) are those of the package river.
    """

    def __init__(self, smoothing: float = 0.2, window: int = 100, sigmas: float = 3.0):
        if not 0 < smoothing <= 1:
            raise ValueError(f"ShiftDetector: smoothing must be above 0 and at most 1, got {smoothing}")
        if window < 2:
            raise ValueError(f"ShiftDetector: window must be at least 2, got {window}")
        self.smoothing, self.window, self.sigmas = smoothing, window, sigmas
        self.current = 0
        self.smoothed: float | None = None
        self._losses = [deque[float](maxlen=window)]  # of each expert

    def limit(self, expert: int) -> float:
        """Smoothed losses above this are not this expert's stream; inf while its window is not full."""
        losses = self._losses[expert]
        if len(losses) < self.window:
            return float("inf")
        return fmean(losses) + self.sigmas * pstdev(losses)

    def update(self, loss: float) -> bool:
        """Whether the stream has shifted, by the current expert's loss; if not, the loss joins its window. Raises
        ValueError on a loss that is not finite, beside which no later one would be large."""
        if not math.isfinite(loss):
            raise ValueError(f"ShiftDetector: loss must be finite, got {loss}")
        old = loss if self.smoothed is None else self.smoothed
        self.smoothed = self.smoothing * loss + (1 - self.smoothing) * old
        if self.smoothed > self.limit(self.current):
            return True
        self._losses[self.current].append(self.smoothed)
        return False

    def switch(self, losses: Sequence[float]) -> int:
        """The expert to go on with: of those whose loss on the new data is within their limit the best, or a new one,
        with number `len(losses)`. losses: one for each expert so far."""
        if len(losses) != len(self._losses):
            raise ValueError(f"ShiftDetector: losses must be one for each of {len(self._losses)} experts")
        known = [i for i in range(len(losses)) if i != self.current and losses[i] <= self.limit(i) < float("inf")]
        self.current = min(known, key=losses.__getitem__, default=len(losses))
        if self.current == len(losses):
            self._losses.append(deque(maxlen=self.window))
        self.smoothed = None
        return self.current

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs; JSON can hold it."""
        windows = [list(losses) for losses in self._losses]
        return {"window": self.window, "current": self.current, "smoothed": self.smoothed, "losses": windows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state["window"] != self.window:
            raise ValueError(f"ShiftDetector: the state has window {state['window']}, this one {self.window}")
        self.current, self.smoothed = state["current"], state["smoothed"]
        self._losses = [deque(losses, maxlen=self.window) for losses in state["losses"]]
