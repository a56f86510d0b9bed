"""Numbers of a run: one JSON line a step, and one line of progress on the screen."""

import io
import json
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from .errors import TrainError
from .files import write_text, writes, writing

SHOWN = ("loss", "reward", "accuracy", "length", "groups", "skipped", "lr", "tokens_per_s", "eps", "clean", "verified")


class MetricsLog:
    """Append-only JSON lines: {"stage", "step", ...}, flushed line by line. NaN is written as null."""

    def __init__(self, path: Path):
        self.path = Path(path)

    def rewind(self, stage: str, step: int) -> None:
        """Forget what `stage` logged after `step` finished steps, so that a resumed curve has every step once."""
        lines = self.read()
        kept = [line for line in lines if line["stage"] != stage or line["step"] <= step]
        if len(kept) < len(lines):
            write_text(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def write(self, line: dict[str, Any]) -> None:
        if not writes():
            return
        with writing(self.path), self.path.open("ab+") as file:
            self._cut_torn_line(file)
            file.write((json.dumps(_known(line)) + "\n").encode())

    def read(self) -> list[dict[str, Any]]:
        """All lines but a torn one at the end. TrainError, naming file and line, on one that is damaged."""
        if not self.path.exists():
            return []
        try:
            *texts, _ = self.path.read_bytes().split(b"\n")
        except OSError as error:
            raise TrainError(f"cannot read {self.path}: {error.strerror}") from error
        lines = []
        for number, text in enumerate(texts, 1):
            try:
                line = json.loads(text)
                if not isinstance(line["stage"], str) or type(line["step"]) is not int:
                    raise ValueError("expected the name of a stage and the number of a step")
            except (ValueError, TypeError, KeyError, RecursionError) as error:
                raise TrainError(
                    f"{self.path}, line {number}, is damaged ({error}): delete the line; what is trained does not "
                    "depend on it"
                ) from error
            lines.append(line)
        return lines

    @staticmethod
    def _cut_torn_line(file: IO[bytes]) -> None:
        """Half a line at the end, of a kill or a full disk, would swallow the next one."""
        if not (size := file.seek(0, io.SEEK_END)):
            return
        file.seek(size - 1)
        if file.read() != b"\n":
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)


def _known(value: Any) -> Any:
    """What JSON has no number for as None, also where it stands in a table or a list."""
    if isinstance(value, dict):
        return {name: _known(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_known(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


Report = Callable[[str, int, int, dict[str, Any]], None]  # stage, finished steps, steps in all, numbers


def quiet(stage: str, step: int, steps: int, numbers: dict[str, Any]) -> None:
    """A report that shows nothing."""


def together(*reports: Report) -> Report:
    """One report that calls several."""

    def report(stage: str, step: int, steps: int, numbers: dict[str, Any]) -> None:
        for each in reports:
            each(stage, step, steps, numbers)

    return report


def short(numbers: dict[str, Any]) -> str:
    """The numbers that matter, on one line."""
    shown = [(k, numbers[k]) for k in SHOWN if isinstance(numbers.get(k), int | float) and numbers[k] == numbers[k]]
    return "  ".join(f"{k} {v:.3g}" if isinstance(v, float) and abs(v) < 1000 else f"{k} {v:.0f}" for k, v in shown)


def quiet_transformers() -> None:
    """Let no bars of transformers' own stand among a command's lines."""
    from transformers.utils import logging

    logging.disable_progress_bar()


class ProgressBar:
    """One bar for the stage at work on a terminal; elsewhere a line about every ten seconds. Use as a context."""

    def __init__(self):
        quiet_transformers()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.terminal = sys.stderr.isatty()
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=Console(stderr=True),
            disable=not self.terminal,
        )
        self.tasks, self.said = {}, 0.0

    def __enter__(self):
        self.bar.start()
        return self

    def __exit__(self, *exception):
        self.bar.stop()

    def __call__(self, stage: str, step: int, steps: int, numbers: dict[str, Any]) -> None:
        if stage not in self.tasks:
            self.tasks[stage] = self.bar.add_task(stage, total=steps, numbers="")
        self.bar.update(self.tasks[stage], completed=step, numbers=short(numbers))
        if not self.terminal and (time.monotonic() - self.said > 10 or step == steps):
            self.said = time.monotonic()
            print(f"{stage} {step}/{steps}  {short(numbers)}", file=sys.stderr, flush=True)
