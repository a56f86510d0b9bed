"""Arguments of the commands: dataclasses filled by tyro, and errors of one line."""

import contextlib
import io
import re
from collections.abc import Iterator
from typing import Any, TypeVar

import tyro

from warpup.train.errors import TrainError, UsageError

T = TypeVar("T")


def parse(kind: type[T], arguments: list[str], command: str, default: T | None = None) -> T:
    """Dataclass of `kind` from arguments of `command`, such as "warpup train [CONFIG]"; UsageError on wrong ones."""
    printed = io.StringIO()
    options: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(kind, args=arguments, prog=command, **options)
    except SystemExit as end:
        if not end.code:  # --help
            raise
    raise UsageError(in_one_line(printed.getvalue(), command))


def in_one_line(box: str, command: str) -> str:
    """tyro's error as one line: what is between the title and the first rule of its box, the flag that it thinks was
    meant, a cure."""
    _, *lines = (line.strip("│┃|╰╯ ") for line in re.sub(r"\x1b\[[0-9;]*m", "", box).splitlines())
    parts = [" ".join(part.split()) for part in re.split(r"(?m)^[─━-]{5,}$", "\n".join(lines))]
    text, *rest = [part for part in parts if part] or ["wrong arguments"]
    text, meant = text.rstrip("."), [part for part in rest if part.startswith("Perhaps you meant")]
    if meant and (flag := re.search(r"--[\w.-]+", meant[0])):
        text += f" (perhaps {flag[0]} is meant)"
    command, _, place = command.removesuffix("]").partition(" [")
    if text.startswith("Unrecognized") and not re.search(r"(: |, )-", text):  # values without a flag
        text += "; an option takes one value" + (f", and {place} comes before the options" if place else "")
    return f"{text}; `{command} --help` lists the options"


@contextlib.contextmanager
def as_usage() -> Iterator[None]:
    """Errors from within are those of a wrong call."""
    try:
        yield
    except TrainError as error:
        raise UsageError(str(error)) from None


def at_least(given: Any, **least: int) -> None:
    """UsageError unless the named options are at least so much."""
    for name, bound in least.items():
        if (value := getattr(given, name)) < bound:
            raise UsageError(f"--{name.replace('_', '-')}: expected at least {bound}, got {value}")
