"""`warpup continual`: learn five tasks one after the other, with a bound on how much of the old ones can be lost.

Digits 0/1, 2/3, 4/5, 6/7, 8/9, each pair a task of its own; data of earlier tasks are gone. After each task every
earlier one is measured (accuracy of the network in use) and certified: the share of its test images that *every*
network of the remaining weight box classifies right. Three ways to learn:
    intercontinet   the box of a task lies in the one before, so a certificate holds for all that is trained later
    hyperinterval   a hypernetwork makes a weight box for each task; the one network of the universal embedding lies in
                    all of them, so the certificates of a moment hold for the network of that moment. How far they fall
                    while later tasks are learned is limited by the drift term alone
    finetune        no intervals, no certificate: what the other two are held against
The command fails if an accuracy falls below a certificate that covers it.

Scenarios, as the papers name them: "task" (incremental task: ten outputs, the task of an image is known and chooses two
of them) and "domain" (incremental domain: two outputs for all tasks, first or second digit of the pair). The papers
report both, InterContiNet incremental classes too.

Certificates are computed in float64 from the float32 boxes, and so are the accuracies: rounding is around 1e-15.
"""

import copy
import json
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from warpup.interval.weights.interval_weights import certified

from . import checkpoint
from .arguments import at_least
from .continual_methods import LEARNERS, Finetune, Settings, Task, outputs_of, tasks_of
from .errors import Interrupted, TrainError, UsageError
from .log import ProgressBar, Report
from .parallel import run_aside, run_here
from .recipe import check_config, locked
from .run import Signals

Method = Literal["intercontinet", "hyperinterval", "finetune"]


@dataclass
class ContinualArguments:
    """Learn five pairs of digits one after the other and certify that the old ones stay learned."""

    out: str = "runs/continual"
    """Folder of the results; what is done there already is reused."""
    methods: tuple[Method, ...] = tuple(LEARNERS)
    """Ways to learn, side by side."""
    scenario: Literal["task", "domain"] = "task"
    """Whether the task of an image is known (two of ten outputs each) or not (the same two outputs for all)."""
    seeds: int = 1
    """Repeat with so many seeds (split, initial weights, batches) and show mean and spread."""
    jobs: int = 0
    """Runs side by side, each on one CPU thread; 0: as many as there are cores."""


@torch.no_grad()
def measure(learner: Finetune, tasks: Sequence[Task]) -> tuple[list[float], list[float]]:
    """(accuracy, certified accuracy) on the test images of each of the tasks learned so far, in float64."""
    exact = copy.copy(learner)
    exact.module = copy.deepcopy(learner.module).double()
    measured, bounds = [], []
    for number, task in enumerate(tasks):
        logits = exact.logits(task.test_x.double(), number, len(tasks))
        center, radius, clean = (end[:, task.head] for end in logits)
        measured.append((clean.argmax(1) == task.test_y).double().mean().item())
        bounds.append(certified(center, radius, task.test_y).double().mean().item())
    return measured, bounds


def run_method(method: Method, seed: int, settings: Settings, out: Path, report: Report) -> dict[str, Any]:
    """Learn all tasks in turn; each finished one is a checkpoint in `out`, from the newest of which a run goes on.

    Returns method, seed, tasks (names), and measured and certified: after task t, a list over the tasks up to it. A
    resumed run equals one that was not stopped, bit for bit. Raises Interrupted after Ctrl-C or SIGTERM, once the task
    at work is finished; a second Ctrl-C does not wait for that.
    """
    tasks = tasks_of(settings, seed)
    torch.manual_seed(seed)
    learner = LEARNERS[method](settings, outputs_of(settings))
    found: dict[str, Any] = {"method": method, "seed": seed, "measured": [], "certified": [], "seconds": 0.0}
    found["tasks"] = [task.name for task in tasks]
    if newest := checkpoint.latest(out):
        learner.module.load_state_dict(load_file(newest / "model.safetensors"))
        found = json.loads((newest / "trainer.json").read_text())
    total = settings.steps + (settings.scale_steps if method == "intercontinet" else 0)
    with Signals() as signals:
        for number in range(len(found["measured"]), len(tasks)):
            task, began = tasks[number], time.perf_counter()
            generator = torch.Generator().manual_seed(len(tasks) * seed + number)

            def draw(task=task, generator=generator):
                rows = torch.randint(len(task.x), (settings.batch,), generator=generator)
                return task.x[rows], task.y[rows]

            def say(done, loss, number=number):
                if done % 50 == 0 and done < total:
                    report(f"seed {seed} {method}", number * total + done, len(tasks) * total, {"loss": loss.item()})

            learner.learn(number, task, draw, say)
            measured, bounds = measure(learner, tasks[: number + 1])
            found["measured"].append(measured)
            found["certified"].append(bounds)
            found["seconds"] += time.perf_counter() - began
            save(out, number + 1, learner.module, found)
            report(f"seed {seed} {method}", (number + 1) * total, len(tasks) * total, {"accuracy": measured[number]})
            if signals.received:
                done = f"{method}, seed {seed}: stopped and saved after task {number + 1} of {len(tasks)}"
                raise Interrupted(f"{done}; the same command goes on from there")
    return found


def save(out: Path, number: int, module: nn.Module, found: dict[str, Any]) -> None:
    """Checkpoint after task `number`: the module's state, and the numbers so far."""

    def fill(path: Path) -> None:
        save_file({name: value.contiguous() for name, value in module.state_dict().items()}, path / "model.safetensors")
        (path / "trainer.json").write_text(json.dumps(found))

    checkpoint.write_folder(out / f"{checkpoint.PREFIX}{number:08d}", fill)


def broken(found: dict[str, Any]) -> list[str]:
    """What was promised and not kept: accuracies below a certificate that covers them.

    A certificate covers the network of its moment; intercontinet's also every later one.
    """
    lasting = found["method"] == "intercontinet"
    return [
        f"{found['method']}, seed {found['seed']}: digits {found['tasks'][task]} certified to {bounds[task]:.4f} after "
        f"{then + 1} tasks, measured {found['measured'][now][task]:.4f} after {now + 1}"
        for then, bounds in enumerate(found["certified"])
        for now in range(then, len(found["measured"]) if lasting else then + 1)
        for task in range(then + 1)
        if found["measured"][now][task] < bounds[task]
    ]


def run_continual(given: ContinualArguments) -> list[dict[str, Any]]:
    """Learn or reuse every run, print the tables, write continual.json and continual.png; returns the runs.

    Raises TrainError if a certificate was broken.
    """
    from .continual_report import show

    at_least(given, seeds=1, jobs=0)
    if not given.methods:
        raise UsageError(f"--methods: expected some of {', '.join(LEARNERS)}, got none")
    out, settings = Path(given.out), Settings(given.scenario)
    with locked(out):
        check_config(out / "config.json", asdict(settings))
        runs = [
            (method, seed, settings, out / f"seed-{seed}" / method)
            for seed in range(given.seeds)
            for method in dict.fromkeys(given.methods)
        ]
        jobs = min(given.jobs or os.cpu_count() or 1, len(runs))
        try:
            with ProgressBar() as bar:
                found = run_here(run_method, runs, bar) if jobs == 1 else run_aside(run_method, runs, jobs, bar)
        except KeyboardInterrupt:
            raise Interrupted("stopped; the same command goes on after the last finished task") from None
        show(found, out)
    if failures := [line for run in found for line in broken(run)]:
        raise TrainError(f"a certificate was broken: {'; '.join(failures)}")
    return found
