"""Files and folders that are written whole or not at all, and a folder that one process works in at a time."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from .errors import TrainError


def write_text(path: Path, text: str) -> None:
    """Write a file under another name and rename it: a reader, or a run after a kill, finds the old text or the new."""
    temporary = path.with_name(f".{path.name}.partial")
    temporary.write_text(text)
    temporary.replace(path)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make folder `path` appear at once with what `fill(temporary folder)` wrote; replaces a folder of that name."""
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    fill(temporary)
    for file in temporary.rglob("*"):  # onto the disk before the rename, so that the name never stands for less
        if file.is_file():
            with file.open("rb+") as handle:
                os.fsync(handle.fileno())
    if path.exists():
        shutil.rmtree(path)
    temporary.rename(path)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold folder `out` (made if need be) for this process; TrainError if another one is at work there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / ".lock").open("w")
    except OSError as error:
        raise TrainError(f"cannot write to {out}: {error.strerror}") from error
    with handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks on this system
            pass
        except OSError:
            raise TrainError(f"another process is training in {out}") from None
        yield
