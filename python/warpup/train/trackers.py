"""Where a run's numbers go beside metrics.jsonl: trackio, wandb or TensorBoard, behind one setting.

A tracker is a convenience. What one raises, a server that is down, a full disk, is counted and told at the end; it
never ends a training.
"""

import contextlib
import math
import os
import sys
import uuid
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from .errors import TrainError
from .files import write_text
from .log import Report, quiet

Kind = Literal["trackio", "wandb", "tensorboard"]
Write = Callable[[str, int, dict[str, float]], None]  # stage, step, numbers
PATIENCE = 10  # failures in a row after which a tracker is left alone: each may have waited for a server


class Tracker:
    """A `Report` that hands the numbers of each step to a tracker of a kind; use it as a context.

    It is opened at the first step, under an id that stays with the folder, so a resumed run goes on in the same curves.
    TrainError if the kind's package is missing.
    """

    def __init__(self, kind: Kind, out: str | Path, settings: dict[str, Any]):
        found = find_spec(kind)
        if found is None or found.origin is None:  # without an origin it is but a folder of that name
            raise TrainError(f"track: the tracker {kind} is not installed: pip install {kind}")
        self.kind: Kind = kind
        self.out, self.settings = Path(out), settings
        self.sink: tuple[Write, Callable[[], None]] | None = None
        self.calls = self.failures = self.in_a_row = 0
        self.first_failure = ""

    def __enter__(self) -> "Tracker":
        return self

    def __call__(self, stage: str, step: int, steps: int, numbers: dict[str, Any]) -> None:
        self.calls += 1
        if self.in_a_row == PATIENCE:
            self.failures += 1
            return
        finite = {k: float(v) for k, v in numbers.items() if isinstance(v, int | float) and math.isfinite(v)}
        with self.counted():
            self.sink = self.sink or SINKS[self.kind](self.out, self.settings)
            self.sink[0](stage, step, finite)
            self.in_a_row = 0

    def __exit__(self, *exception) -> None:
        if self.sink:
            with self.counted():
                self.sink[1]()
        if self.failures:
            said = f"{self.failures} failures in {self.calls} steps; first: {self.first_failure}"
            print(f"{self.kind}: {said}", file=sys.stderr)

    @contextlib.contextmanager
    def counted(self):
        """What a tracker raises within is counted."""
        try:
            yield
        except Exception as error:
            self.failures, self.in_a_row = self.failures + 1, self.in_a_row + 1
            self.first_failure = self.first_failure or f"{type(error).__name__}: {' '.join(str(error).split())}"


def tracking(kind: Kind | None, out: str | Path, settings: dict[str, Any]) -> contextlib.AbstractContextManager[Report]:
    """The tracker as a context; without a kind one that does nothing."""
    return contextlib.nullcontext(quiet) if kind is None else Tracker(kind, out, settings)


def run_name(out: Path) -> str:
    """The folder's name and an id that is drawn once and kept in it."""
    path = out / "tracker-id"
    if not path.is_file():
        write_text(path, f"{out.resolve().name}-{uuid.uuid4().hex[:8]}")
    return path.read_text()


# Each kind: opens its tracker and returns how to write to it and how to close it. Curves are named STAGE/NUMBER over
# the steps of their stage.


def tensorboard(out: Path, settings: dict[str, Any]) -> tuple[Write, Callable[[], None]]:
    """Event files in OUT/tensorboard: `tensorboard --logdir OUT`."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(out / "tensorboard"), flush_secs=10)

    def write(stage: str, step: int, numbers: dict[str, float]) -> None:
        for name, value in numbers.items():
            writer.add_scalar(f"{stage}/{name}", value, step)

    return write, writer.close


def wandb(out: Path, settings: dict[str, Any]) -> tuple[Write, Callable[[], None]]:
    """Project "warpup", or $WANDB_PROJECT; WANDB_MODE=offline writes to OUT/wandb alone."""
    import wandb

    name, project = run_name(out), os.environ.get("WANDB_PROJECT", "warpup")
    run = wandb.init(project=project, name=name, id=name, resume="allow", dir=str(out), config=settings)
    # wandb's own step only counts up, so a second stage, or a resumed one, needs an axis of its own.
    run.define_metric("*", step_metric="step")

    def write(stage: str, step: int, numbers: dict[str, float]) -> None:
        run.log({"step": step, **{f"{stage}/{key}": value for key, value in numbers.items()}})

    return write, run.finish


def trackio(out: Path, settings: dict[str, Any]) -> tuple[Write, Callable[[], None]]:
    """Project "warpup" of trackio's local database: `trackio show` reads it."""
    import trackio

    trackio.init(project="warpup", name=run_name(out), resume="allow", config=settings, embed=False)

    def write(stage: str, step: int, numbers: dict[str, float]) -> None:
        trackio.log({f"{stage}/{key}": value for key, value in numbers.items()}, step=step)

    return write, trackio.finish


SINKS: dict[Kind, Callable[[Path, dict[str, Any]], tuple[Write, Callable[[], None]]]] = {
    "trackio": trackio,
    "wandb": wandb,
    "tensorboard": tensorboard,
}
