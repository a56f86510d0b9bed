"""The loop around a stage's steps: resume, checkpoints, signals, metrics, and what happens when a step fails."""

import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import checkpoint
from .errors import Interrupted, TrainError
from .evaluate import evaluate
from .log import MetricsLog, Report, quiet
from .optim import guarded_step

PATIENCE = 5  # steps in a row without a finite loss before a run gives up


@dataclass(frozen=True)
class HeldOut:
    """Examples to measure on while training: greedy accuracy, before a stage and `points` times in it.

    samples: also so many sampled completions of each. Nothing is learned from them and no random state is touched.
    """

    data: Sequence[Mapping]
    reward: str | Callable
    points: int = 10
    samples: int = 0
    max_new_tokens: int = 256
    reflection_words: Sequence[str] = ()

    def due(self, step: int, steps: int) -> bool:
        """Whether to measure after `step` of `steps` steps; the last step always is."""
        return step * self.points // steps > (step - 1) * self.points // steps

    def measure(self, model, tokenizer) -> dict[str, float]:
        """Numbers with the prefix `held_out_`."""
        found = evaluate(
            model,
            tokenizer,
            self.data,
            self.reward,
            samples=self.samples,
            max_new_tokens=self.max_new_tokens,
            reflection_words=self.reflection_words,
            traces=0,
        ).numbers()
        names = ("avg", "greedy", "reward", "length", "reflections", "format_ok")
        return {f"held_out_{name}": found[name] for name in names}


class StageRun:
    """One stage at work in its folder. A stage's file uses: model, tokenizer, generator, count, apply and loop."""

    def __init__(
        self,
        name: str,
        folder: Path,
        model,
        tokenizer,
        *,
        seed: int,
        log: MetricsLog,
        report: Report = quiet,
        held_out: HeldOut | None = None,
    ):
        self.name, self.folder, self.model, self.tokenizer, self.seed = name, Path(folder), model, tokenizer, seed
        self.log, self.report, self.held_out = log, report, held_out
        self.generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
        self.counts: Counter[str] = Counter()  # events since the stage began; every count is in the metrics
        self.messages: set[str] = set()
        self.stepped = False
        self.bad_steps = 0

    def count(self, event: str, times: int = 1, message: str = "") -> None:
        """Count an event. The first of each message also goes into the metrics."""
        self.counts[event] += times
        if message and message not in self.messages and len(self.messages) < 100:
            self.messages.add(message)
            self.log.write({"stage": self.name, "step": self.at + 1, "event": event, "message": message})

    def apply(self, optimizer, loss: float, lr: float, clip: float) -> float:
        """Optimizer step and gradient norm; a loss or gradient that is not finite is counted and left out.

        Raises TrainError after several such steps in a row.
        """
        stepped, norm = guarded_step(optimizer, loss, lr, clip)
        self.stepped |= stepped
        self.bad_steps = 0 if stepped else self.bad_steps + 1
        if not stepped:
            self.count("nonfinite", message=f"loss {loss}, gradient norm {norm}: step left out")
        if self.bad_steps == PATIENCE:
            raise TrainError(
                f"{self.name}: loss {loss} and gradient norm {norm} in {PATIENCE} steps in a row; the weights are "
                "those before them. A lower learning rate, a gradient clip or clean data may help"
            )
        return norm

    def loop(self, step: Callable[[int], dict[str, Any]], steps: int, save_every: int, optimizer, sampler=None) -> None:
        """Call `step(i)` for i up to `steps`, from the newest checkpoint on if there is one.

        `step` returns the numbers to log. State is saved every `save_every` steps, at the end, on Ctrl-C or SIGTERM
        (then Interrupted is raised) and, as it was before the step, when a step raises before it changed the weights.
        """
        self.at = self._restore(optimizer, sampler)
        saved = self.at if checkpoint.latest(self.folder) else -1
        if saved == -1 and self.held_out:
            self.log.write({"stage": self.name, "step": 0, **self.held_out.measure(self.model, self.tokenizer)})
        with Signals() as signals:
            while self.at < steps:
                before, began, self.stepped = self._state(sampler), time.perf_counter(), False
                rng = checkpoint.random_states(self.generator)
                try:
                    numbers = step(self.at)
                except BaseException:
                    if not self.stepped and saved < self.at:
                        checkpoint.set_random_states(self.generator, *rng)
                        checkpoint.save(
                            self.folder, self.at, self.model, self.tokenizer, optimizer, self.generator, before
                        )
                    raise
                self.at += 1
                numbers |= {"seconds": time.perf_counter() - began, **self.counts}
                if self.held_out and self.held_out.due(self.at, steps):
                    numbers |= self._measure()
                self.log.write({"stage": self.name, "step": self.at, **numbers})
                self.report(self.name, self.at, steps, numbers)
                if signals.received or self.at % save_every == 0 or self.at == steps:
                    state = self._state(sampler)
                    checkpoint.save(self.folder, self.at, self.model, self.tokenizer, optimizer, self.generator, state)
                    saved = self.at
                if signals.received:
                    raise Interrupted(f"{self.name}: stopped and saved at step {self.at} of {steps} in {self.folder}")

    def _measure(self) -> dict[str, float]:
        """Held-out numbers; a failure to measure is counted and does not end a training that goes well."""
        try:
            return self.held_out.measure(self.model, self.tokenizer)
        except TrainError as error:
            self.count("held_out_failures", message=str(error))
            return {}

    def _state(self, sampler) -> dict[str, Any]:
        return {
            "counts": dict(self.counts),
            "bad_steps": self.bad_steps,
            "threads": torch.get_num_threads(),
            "sampler": sampler.state_dict() if sampler else None,
        }

    def _restore(self, optimizer, sampler) -> int:
        newest = checkpoint.latest(self.folder)
        if newest is None:
            self.log.rewind(self.name, -1)
            return 0
        state = checkpoint.restore(newest, self.model, optimizer, self.generator)
        self.counts, self.bad_steps = Counter(state["counts"]), 0
        if sampler:
            sampler.load_state_dict(state["sampler"])
        self.at = state["step"]
        self.log.rewind(self.name, self.at)
        if state["threads"] != (threads := torch.get_num_threads()):
            self.count("thread_changes", message=f"{state['threads']} threads before, {threads} now: not exact")
        return self.at


class Signals:
    """While open, a first Ctrl-C or SIGTERM is noted in `received`; another a second later interrupts at once."""

    def __enter__(self):
        self.received, self.before = 0.0, {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._note)
        return self

    @staticmethod
    def noted() -> bool:
        """Whether the innermost open one was told to stop already, so that telling it again would not let it save."""
        return bool(getattr(getattr(signal.getsignal(signal.SIGINT), "__self__", None), "received", 0.0))

    def _note(self, number, frame):
        if self.received and time.monotonic() - self.received > 1:
            raise KeyboardInterrupt
        self.received = self.received or time.monotonic()

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)
