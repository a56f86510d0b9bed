"""What one candidate takes: seconds of each step, where they go, and the most memory that it held."""

from __future__ import annotations

import ctypes
import functools
import gc
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim import optimizer

from bench.harness.memory import status

# Work that the model itself is, whoever trains it. "head": of warpup, products with the output layer and loss in one.
KINDS = ("forward", "head", "backward", "optimizer")


class Clock:
    """Seconds of each kind of work. What runs within other work is taken off that, so that the kinds add up."""

    def __init__(self):
        self.seconds: Counter[str] = Counter()
        self.open: list[str] = []
        self.since = 0.0

    def start(self, kind: str) -> None:
        self._count()
        self.open.append(kind)

    def stop(self) -> None:
        self._count()
        self.open.pop()

    def _count(self) -> None:
        now = time.perf_counter()
        if self.open:
            self.seconds[self.open[-1]] += now - self.since
        self.since = now

    def timed(self, kind: str, function: Callable) -> Callable:
        """The function, its time counted as work of that kind."""

        @functools.wraps(function)
        def run(*arguments, **named):
            self.start(kind)
            try:
                return function(*arguments, **named)
            finally:
                self.stop()

        return run

    def watch(self, model: torch.nn.Module) -> None:
        """Count the model's forward passes (whole, of its body alone, of its output layer alone), all backward passes
        and all optimizer steps of this process."""
        for module in (model, model.base_model, model.get_output_embeddings()):
            module.forward = self.timed("forward", module.forward)
        torch.Tensor.backward = self.timed("backward", torch.Tensor.backward)
        optimizer.register_optimizer_step_pre_hook(lambda *_: self.start("optimizer"))
        optimizer.register_optimizer_step_post_hook(lambda *_: self.stop())


class Meter:
    """Filled by one candidate in a process of its own: `before` the model is loaded, `loaded` once it is, then `step`
    after each step, the first of which is not counted."""

    def __init__(self):
        self.clock, self.sampling_clock = Clock(), Clock()
        self.steps: list[dict[str, float]] = []
        self.weights = self.baseline = self.peak = 0

    def before(self) -> None:
        """All that is imported by now is not the candidate's memory."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        self.baseline = status("VmRSS")

    def loaded(self, model: torch.nn.Module) -> None:
        self.weights = sum(p.numel() * p.element_size() for p in model.parameters())
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here, not while loading
        self.clock.watch(model)

    def step(self, seconds: float, tokens: float, sampling: float = 0.0) -> None:
        """One step is done: how long it took, and its sampling; tokens that went through the model in it."""
        self.peak = status("VmHWM")
        work = {kind: self.clock.seconds[kind] for kind in KINDS}
        self.steps.append({"seconds": seconds, "sampling": sampling, "tokens": tokens, **work})
        self.clock.seconds.clear()

    def result(self) -> dict[str, Any]:
        """All of it as plain JSON; bytes beside what was there before the model."""
        return {"steps": self.steps[1:], "peak": self.peak - self.baseline, "weights": self.weights}
