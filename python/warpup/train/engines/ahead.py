"""A server that samples while the trainer learns: up to so many steps ahead, and no further.

It stands in the place of both the engine and the sampler of prompts, because what is sampled ahead has to be picked
ahead. At each step the trainer takes the completions that were asked for first; then it updates the server's weights
while others are on their way, whose tokens come of the old weights up to there and of the new ones from there on, each
with the log-prob that it was drawn at. With a staleness of 0 nothing is on its way then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from warpup.data import Sampler

from .. import ranks
from ..model.tokens import Tokens
from ..sampling.rollouts import Rollouts
from .protocol import SamplingParams
from .server import ServerEngine


@dataclass(frozen=True)
class Asked:
    """Completions that are on their way: of which examples, since which update, and what comes of it (on the first
    rank, which alone asks)."""

    picked: list[int]
    version: int
    found: Future[Rollouts] | None


class Ahead:
    """ask: what to sample for examples. left: how many steps are left, the one at work included; nothing is sampled
    for those after the last. staleness: of the completions that came last, in updates."""

    def __init__(
        self, engine: ServerEngine, sampler: Sampler, most: int,
        ask: Callable[[Sequence[int]], tuple[Sequence[Tokens], SamplingParams]], left: Callable[[], int],
    ):  # fmt: skip
        self.engine, self.sampler, self.most, self.ask, self.left = engine, sampler, most, ask, left
        self.pool = ThreadPoolExecutor(most + 1)
        self.asked: deque[Asked] = deque()
        self.again: deque[list[int]] = deque()  # picked before the run was stopped, and not learned from
        self.version = self.staleness = 0

    # ---- As the sampler of prompts ----

    def next(self, k: int) -> list[int]:
        while len(self.asked) < min(self.most + 1, self.left()):
            picked = self.again.popleft() if self.again else list(self.sampler.next(k))
            prompts, params = self.ask(picked)
            # A thread draws its seeds when it gets to it, so from a stream of its own.
            seed = int(torch.randint(2**62, (), generator=params.generator, device=params.generator.device))
            params = replace(params, generator=torch.Generator().manual_seed(seed))
            found = self.pool.submit(self.engine.generate, prompts, params) if ranks.rank() == 0 else None
            self.asked.append(Asked(picked, self.version, found))
        return list(self.asked[0].picked)

    def observe(self, indices: Sequence[int], **signals: Any) -> None:
        self.sampler.observe(indices, **signals)

    def state_dict(self) -> dict[str, Any]:
        return {"sampler": self.sampler.state_dict(), "asked": [*(one.picked for one in self.asked), *self.again]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What was on its way is asked for again, first."""
        self.sampler.load_state_dict(state["sampler"])
        self.again = deque(state["asked"])

    # ---- As the engine ----

    def generate(self, prompts: Sequence[Tokens], params: SamplingParams) -> Rollouts:
        """The completions of what `next` gave."""
        first = self.asked.popleft()
        self.staleness = self.version - first.version
        return ranks.from_first(lambda: first.found.result())  # pyright: ignore[reportOptionalMemberAccess]

    def update_weights(self, model) -> None:
        self.engine.update_weights(model)
        self.version += 1


@contextmanager
def sampling_ahead(*arguments: Any) -> Iterator[Ahead]:
    """An `Ahead`; at the end what is on its way is waited for, and nothing is left in the folder of weights."""
    ahead = Ahead(*arguments)
    try:
        with ahead.pool:
            yield ahead
    finally:
        ahead.engine.close()
