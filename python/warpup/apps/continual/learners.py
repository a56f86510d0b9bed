"""The tasks of `warpup continual` and the ways to learn them: nested weight boxes, a hypernetwork on embedding boxes,
and plain fine-tuning. What they promise is said in `__init__.py`, the formulas are in `warpup.interval.weights`."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from warpup.interval.weights.hyper_interval import HyperInterval, drift_loss, gamma_and_kappa, mlp
from warpup.interval.weights.interval_weights import IntervalLinear, IntervalSequential, certified, worst_case_loss

from .._digits import load_digits_split
from .settings import Method, Settings

PIXELS, PAIRS = 64, 5


@dataclass(frozen=True)
class Task:
    """A pair of digits; `head` are its columns of the logits, the classes are 0 and 1."""

    name: str
    head: slice
    x: Tensor
    y: Tensor
    test_x: Tensor
    test_y: Tensor


def tasks_of(settings: Settings, seed: int) -> list[Task]:
    """The tasks in their order."""
    x, y, test_x, test_y = load_digits_split(seed)
    tasks = []
    for pair in range(PAIRS):
        here, there = y // 2 == pair, test_y // 2 == pair
        head = slice(2 * pair, 2 * pair + 2) if settings.scenario == "task" else slice(None)
        tasks.append(Task(f"{2 * pair} / {2 * pair + 1}", head, x[here], y[here] % 2, test_x[there], test_y[there] % 2))
    return tasks


def outputs_of(settings: Settings) -> int:
    """Logits of the network."""
    return 2 * PAIRS if settings.scenario == "task" else 2


Draw = Callable[[], tuple[Tensor, Tensor]]  # a batch of the task that is learned
Say = Callable[[int, Tensor], None]  # finished steps of the task, loss


class Finetune:
    """An ordinary network, trained on one task after the other."""

    def __init__(self, settings: Settings, outputs: int):
        self.settings = settings
        self.module: nn.Module = mlp([PIXELS, settings.hidden, outputs])

    def learn(self, number: int, task: Task, draw: Draw, say: Say) -> None:
        """Train `module` on task `number`."""
        optimizer = torch.optim.Adam(self.module.parameters(), self.settings.plain_lr)
        for i in range(self.settings.steps):
            x, y = draw()
            step(optimizer, F.cross_entropy(self.module(x)[:, task.head], y), i, say)

    def logits(self, x: Tensor, number: int, learned: int) -> tuple[Tensor, Tensor, Tensor]:
        """(center, radius, clean) for images of task `number` after `learned` tasks: the box of all logits, and the
        logits of the network in use."""
        clean = self.module(x)
        return clean, torch.full_like(clean, torch.inf), clean


class InterContiNet(Finetune):
    """Nested weight boxes: move the center in the box, then shrink the box until enough is certified; then freeze it.

    The two phases and the threshold are those of arXiv 2206.07996. Ours: Adam in place of SGD, and the threshold is
    checked on all training images of the task, where theirs looks at a moving average over batches.
    """

    module: IntervalSequential

    def __init__(self, settings: Settings, outputs: int):
        self.settings = settings
        radius = settings.max_radius
        self.module = IntervalSequential(
            IntervalLinear(PIXELS, settings.hidden, max_radius=radius),
            nn.ReLU(),
            IntervalLinear(settings.hidden, outputs, max_radius=radius),
        )

    def learn(self, number: int, task: Task, draw: Draw, say: Say) -> None:
        settings = self.settings
        optimizer = torch.optim.Adam(self._parameters("shift"), settings.lr)
        for i in range(settings.steps):
            x, y = draw()
            clean = self.module(x, clean=x)[2][:, task.head]
            step(optimizer, F.cross_entropy(clean, y), i, say)
        optimizer = torch.optim.Adam(self._parameters("scale"), settings.scale_lr)
        for i in range(settings.scale_steps):
            center, radius, clean = (end[:, task.head] for end in self.module(task.x, clean=task.x))
            right = (clean.argmax(1) == task.y).sum()
            if certified(center, radius, task.y).sum() >= settings.robust * right:
                break
            step(optimizer, worst_case_loss(center, radius, task.y, 0.0), settings.steps + i, say)
        self.module.contract()

    def logits(self, x: Tensor, number: int, learned: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.module(x, clean=x, outer=True)

    def _parameters(self, kind: str) -> list[nn.Parameter]:
        return [parameter for name, parameter in self.module.named_parameters() if name.endswith(kind)]


class Hyper(Finetune):
    """HyperInterval (arXiv 2405.15444), nested; one network, that of the universal embedding, is used for all tasks."""

    module: HyperInterval

    def __init__(self, settings: Settings, outputs: int):
        self.settings = settings
        self.module = HyperInterval(
            [PIXELS, settings.hidden, outputs], PAIRS, embedding=settings.embedding, hidden=[settings.hyper_hidden],
            gamma=settings.gamma,
        )  # fmt: skip

    def learn(self, number: int, task: Task, draw: Draw, say: Say) -> None:
        settings, hyper = self.settings, self.module
        trained = [*hyper.hyper.parameters(), hyper.embeddings[number], hyper.spreads[number]]
        optimizer = torch.optim.Adam(trained, settings.hyper_lr)
        with torch.no_grad():
            before = hyper.targets(number)
        for i in range(settings.steps):
            x, y = draw()
            gamma, kappa = gamma_and_kappa(i, settings.steps, settings.gamma, settings.kappa)
            center, radius, clean = (end[:, task.head] for end in hyper(x, number, gamma))
            loss = worst_case_loss(center, radius, y, kappa, clean=clean)
            step(optimizer, loss + settings.beta * drift_loss(hyper, before), i, say)

    def logits(self, x: Tensor, number: int, learned: int) -> tuple[Tensor, Tensor, Tensor]:
        center, radius, _ = self.module(x, number)
        return center, radius, self.module.universal(learned)(x)


def step(optimizer: torch.optim.Optimizer, loss: Tensor, number: int, say: Say) -> None:
    """One optimizer step."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    say(number + 1, loss)


LEARNERS: dict[Method, type[Finetune]] = {"intercontinet": InterContiNet, "hyperinterval": Hyper, "finetune": Finetune}
