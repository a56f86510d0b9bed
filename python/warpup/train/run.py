"""What happens around a stage's steps: resume, measure, log, save, stop on a signal, and what is saved when one fails.

with StageRun(...) as run:
    for i in run.steps(100, save_every, optimizer):
        loss = ...
        norm = run.optimizer_step(optimizer, loss, lr, clip)
        run.record({"loss": loss, "grad_norm": norm})
"""

import contextlib
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import checkpoint, ranks
from .checks import check_held_out
from .errors import Interrupted, TrainError
from .evaluation import evaluate
from .examples import Budget
from .files import remove_folder, writes, writing
from .log import MetricsLog, Report, quiet
from .model.fsdp import is_sharded
from .model.optim import clip_gradients, on_all_ranks
from .model.precision import computing, exact_sums
from .random_states import random_states, set_random_states
from .rewards.reward_set import Reward, RewardSet
from .run_config import differences
from .signals import Signals

PATIENCE = 5  # steps in a row without a finite loss before a run gives up


@dataclass(frozen=True)
class HeldOut:
    """Examples to measure on while training: greedy accuracy, before a stage and `points` times in it.

    samples: also so many sampled completions of each. Nothing is learned from them and no random state is touched.
    keep_best: write the weights of the best measurement of a stage to its folder `best`. stop_after: end a stage after
    so many measurements in a row that were no better. Better is a higher accuracy (sampled if there are samples), or a
    higher reward where the reward does not tell what is right. stop: texts that end a completion. thinking_budget: as
    the setting of RLVR.
    """

    data: Sequence[Mapping]
    reward: Reward | Sequence[Reward] | RewardSet
    points: int = 10
    samples: int = 0
    max_new_tokens: int = 256
    reflection_words: Sequence[str] = ()
    keep_best: bool = False
    stop_after: int | None = None
    stop: Sequence[str] = ()
    thinking_budget: Budget = None

    def __post_init__(self) -> None:
        check_held_out(self)

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
            stop=self.stop,
            thinking_budget=self.thinking_budget,
            traces=0,
        ).numbers()
        names = ("avg", "greedy", "reward", "length", "reflections", "format_ok")
        return {f"held_out_{name}": found[name] for name in names}


class StageRun:
    """One stage at work in its folder. What a stage finds here:

    model, tokenizer; seed, and a generator for whatever it draws; `steps`, the loop over the steps that are left;
    `computing`, the context in which the model is called; `optimizer_step`; `record` and `count`, for the numbers and
    the events of a step. result: a folder with what the run came to before it was made longer; gone from the first
    checkpoint on.
    """

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
        dtype: torch.dtype | None = None,
        keep_last: int = 1,
        result: Path | None = None,
    ):
        self.dtype, self.keep_last, self.result = dtype, keep_last, result
        self.name, self.folder, self.model, self.tokenizer, self.seed = name, Path(folder), model, tokenizer, seed
        self.log, self.report, self.held_out = log, report, held_out
        self.generator = torch.Generator(next(model.parameters()).device).manual_seed(seed)
        self.counts: Counter[str] = Counter()  # events since the stage began; every count is in the metrics
        self.messages: set[str] = set()
        self.stepped = False  # whether the step at work has changed the weights
        self.learned = 0  # steps that have
        self.bad_steps = 0
        self.best, self.stale = -math.inf, 0  # the best measurement, and how many have followed it
        self.before: tuple | None = None  # while a step is at work: the state and random states that it began with
        self.open = contextlib.ExitStack()  # what ends with the run: signals' handlers, exact sums

    def __enter__(self):
        self.open.enter_context(exact_sums(self.model))
        return self

    def __exit__(self, kind, error, traceback) -> None:
        """Where a step raised before it changed the weights, the steps before it are saved as they were: not of a
        sharded model, which all ranks would have to save, and the others may not know of the error."""
        with self.open:
            sharded = is_sharded(self.model)
            # At step 0 nothing was computed, and settings may still change.
            if error and self.before and not self.stepped and max(self.saved, 0) < self.at and not sharded:
                state, drawn_from = self.before
                set_random_states(self.generator, *drawn_from)
                self._save(state)

    def computing(self) -> contextlib.AbstractContextManager[None]:
        """While open, the model's products are made in the precision of the run."""
        return computing(self.model, self.dtype)

    def steps(
        self, steps: int, save_every: int, optimizer, sampler=None, tensors: Sequence[torch.Tensor] = ()
    ) -> Iterator[int]:
        """Numbers of the steps that are left of 0 .. steps - 1: after the newest checkpoint if there is one. tensors:
        what else belongs to the stage's state; they are restored in place.

        Between two of them the finished one is logged, and where it is time measured on held-out data. State is saved
        every `save_every` steps, at the end, and on Ctrl-C or SIGTERM, when Interrupted is raised.
        """
        self.optimizer, self.sampler, self.tensors = optimizer, sampler, tensors
        self.at = self._restore()
        self.saved = self.at if checkpoint.latest(self.folder) else -1
        if self.saved == -1 and self.held_out:
            with self.computing():
                measured = self.held_out.measure(self.model, self.tokenizer)
            self._compare(self.held_out, measured)
            self.log.write({"stage": self.name, "step": 0, **measured})
        signals = self.open.enter_context(Signals())
        self.open.callback(optimizer.register_step_post_hook(self._has_stepped).remove)
        while self.at < steps and not self._is_stale():
            # What the stage does with this step happens at the yield. An error there does not come back here, so what
            # is needed to save the steps before it is kept at hand for `__exit__`.
            self.numbers, self.stepped, began = {}, False, time.perf_counter()
            self.before = self._state(), random_states(self.generator)
            yield self.at
            self.before, seconds = None, time.perf_counter() - began
            self.learned += self.stepped
            measured = {}
            if self.held_out and self.held_out.due(self.at + 1, steps):  # before the counts: a failure is one
                measured = self._measure(self.held_out)
                self._compare(self.held_out, measured)
            self.at += 1
            numbers = self.numbers | {"seconds": seconds, **self.counts, **measured}
            self.log.write({"stage": self.name, "step": self.at, **numbers})
            self.report(self.name, self.at, steps, numbers)
            stop = ranks.any_rank(bool(signals.received))  # together, or the others would wait for this rank
            if stop or self.at % save_every == 0 or self.at == steps or self._is_stale():
                self._save(self._state())
            if stop:
                raise Interrupted(f"{self.name}: stopped and saved at step {self.at} of {steps} in {self.folder}")

    def record(self, numbers: dict[str, Any]) -> None:
        """The numbers of the step at work, to be logged once it is done."""
        self.numbers |= numbers

    def count(self, event: str, times: int = 1, message: str = "") -> None:
        """Count an event. The first of each message also goes into the metrics."""
        self.counts[event] += times
        if message and message not in self.messages and len(self.messages) < 100:
            self.messages.add(message)
            self.log.write({"stage": self.name, "step": self.at + 1, "event": event, "message": message})

    def optimizer_step(self, optimizer: torch.optim.Optimizer, loss: float, lr: float, clip: float) -> float:
        """Clip the gradients to norm `clip` (0: do not), step at rate `lr`, clear the gradients; returns their norm. Of
        several groups of parameters each is clipped by itself and has `lr` times its `lr_scale`; the norm is the first
        one's, which are the model's.

        Where the loss or the norm is not finite the step is counted and left out: one bad batch does not end a run,
        PATIENCE of them in a row raise TrainError. Where torch.distributed runs, norms are those of the whole model,
        and a step is left out on all ranks if it is on one.
        """
        ranks.sum_gradients(p for group in optimizer.param_groups for p in group["params"])
        ranks.reseed()
        norms = [clip_gradients(self.model, group["params"], clip or math.inf) for group in optimizer.param_groups]
        norm = norms[0]
        if on_all_ranks(all(map(math.isfinite, (*norms, loss))), self.generator.device):
            for group in optimizer.param_groups:
                group["lr"] = lr * group.get("lr_scale", 1.0)
            optimizer.step()
            self.stepped, self.bad_steps = True, 0
        else:
            self.bad_steps += 1
            self.count("nonfinite", message=f"loss {loss}, gradient norm {norm}: step left out")
        optimizer.zero_grad(set_to_none=True)
        if self.bad_steps == PATIENCE:
            raise TrainError(
                f"{self.name}: loss {loss} and gradient norm {norm} in {PATIENCE} steps in a row; the weights are "
                "those before them. A lower learning rate, a gradient clip or clean data may help"
            )
        return norm

    def _compare(self, held_out: HeldOut, numbers: dict[str, Any]) -> None:
        names = ("held_out_avg" if held_out.samples else "held_out_greedy", "held_out_reward")
        known = [numbers[name] for name in names if not math.isnan(numbers.get(name, math.nan))]
        if not known:  # nothing could be measured
            return
        if (score := known[0]) > self.best:
            self.best, self.stale = score, 0
            if held_out.keep_best:
                checkpoint.save_model(self.model, self.tokenizer, self.folder / "best")
        else:
            self.stale += 1

    def _has_stepped(self, *unused) -> None:
        """A stage's own loop may call the optimizer by itself."""
        self.stepped = True

    def _is_stale(self) -> bool:
        return bool(self.held_out and self.held_out.stop_after and self.stale >= self.held_out.stop_after)

    def _measure(self, held_out: HeldOut) -> dict[str, float]:
        """Held-out numbers; a failure to measure is counted and does not end a training that goes well."""
        try:
            with self.computing():
                return held_out.measure(self.model, self.tokenizer)
        except TrainError as error:
            self.count("held_out_failures", message=str(error))
            return {}

    def _state(self) -> dict[str, Any]:
        return {
            "counts": dict(self.counts),
            "bad_steps": self.bad_steps,
            "learned": self.learned,
            "best": None if math.isinf(self.best) else self.best,
            "stale": self.stale,
            "threads": torch.get_num_threads(),
            "ranks": ranks.size(),
            "fsdp": is_sharded(self.model),
            "sampler": self.sampler.state_dict() if self.sampler else None,
        }

    def _save(self, state: dict[str, Any]) -> None:
        if self.result and self.result.exists() and writes():  # no kill may leave it beside a later step
            with writing(self.result):
                remove_folder(self.result)
        checkpoint.save(
            self.folder, self.at, self.model, self.tokenizer, self.optimizer, self.generator, state,
            tensors=self.tensors, keep_last=self.keep_last,
        )  # fmt: skip
        self.saved = self.at

    def _restore(self) -> int:
        """Number of finished steps, and everything back as it was after them."""
        newest = checkpoint.latest(self.folder)
        if newest is None:
            self.log.rewind(self.name, -1)
            return 0
        state = checkpoint.restore(newest, self.model, self.optimizer, self.generator, self.tensors)
        self.counts, self.bad_steps, self.learned = Counter(state["counts"]), 0, state["learned"]
        self.best, self.stale = -math.inf if state["best"] is None else state["best"], state["stale"]
        if self.sampler:
            self.sampler.load_state_dict(state["sampler"])
        self.at = state["step"]
        self.log.rewind(self.name, self.at)
        if state["threads"] != (threads := torch.get_num_threads()):
            self.count("thread_changes", message=f"{state['threads']} threads before, {threads} now: not exact")
        held, own = (state.get("ranks", 1), state.get("fsdp", False)), (ranks.size(), is_sharded(self.model))
        if held != own:
            before, now = (f"{count} with fsdp" if sharded else count for count, sharded in (held, own))
            self.count("rank_changes", message=f"processes: {before} before, {now} now: not exact")
        if changed := differences(state["versions"], checkpoint.versions()):
            said = f"resumed under other versions ({'; '.join(changed)}): not exact"
            self.count("version_changes", message=said)
            print(f"{newest}: {said}", file=sys.stderr)
        return self.at
