"""One run of `warpup continual`: learn the tasks in turn, measure and certify after each, check what was promised."""

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from warpup.interval.weights.interval_weights import certified
from warpup.train import checkpoint
from warpup.train.errors import Interrupted
from warpup.train.files import write_folder
from warpup.train.log import Report
from warpup.train.signals import Signals

from .learners import LEARNERS, Finetune, Task, outputs_of, tasks_of
from .settings import Method, Settings


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
        checkpoint.load_weights(learner.module, newest)
        found = checkpoint.read_state(newest)["found"]
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


def save(out: Path, number: int, module: torch.nn.Module, found: dict[str, Any]) -> None:
    """Checkpoint after task `number`: the module's state, and the numbers so far."""

    def fill(path: Path) -> None:
        checkpoint.save_weights(module, None, path)
        checkpoint.write_state(path, {"step": number, "found": found})

    write_folder(out / f"{checkpoint.PREFIX}{number:08d}", fill)


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
