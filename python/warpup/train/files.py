"""Where files are read and written: an error of either names the file, and what is written is whole or not there.

Every reader of JSON and tensors in the trainer and the apps is one of these, so that a damaged file, or a full disk,
ends in one line that says which file it is. Nothing here imports torch before it is needed.
"""

import contextlib
import json
import os
import re
import shutil
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from .errors import TrainError

FETCH = "if it is a model of the hub, fetch it first: hf download NAME --local-dir FOLDER"


def check_folder(folder: str | Path) -> None:
    """TrainError if there is no such folder."""
    if not Path(folder).is_dir():
        of_hub = re.fullmatch(r"[\w-]+/[\w.-]+", str(folder)) and not Path(folder).parent.exists()  # owner/name
        place = "" if Path(folder).is_absolute() else f" in {Path.cwd()}"
        raise TrainError(f"no folder {folder}{place}" + (f" ({FETCH})" if of_hub else ""))


def is_model(folder: Path) -> bool:
    """Whether a folder holds a model, or adapters of one."""
    return any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))


def read_json(path: Path) -> Any:
    """What a JSON file holds. TrainError that names the file."""
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise TrainError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:  # of its syntax, or of bytes that are no UTF-8
        raise TrainError(f"{path} is damaged: {error}") from error


def read_table(path: Path, *keys: str) -> dict[str, Any]:
    """A JSON file that holds a table with these keys. TrainError that names the file."""
    held = read_json(path)
    if not isinstance(held, dict):
        raise TrainError(f"{path} is damaged: expected a table, got {str(held)[:40]!r}")
    if missing := [key for key in keys if key not in held]:
        raise TrainError(f"{path} is damaged: it has no {', '.join(missing)}")
    return held


def read_tensors(path: Path, device: str = "cpu") -> dict[str, Any]:
    """The tensors of a safetensors file by their names. TrainError that names the file."""
    from safetensors.torch import load_file

    check_header(path)
    return load_file(path, device=device)


def check_header(path: Path) -> None:
    """TrainError, naming the file, unless it is a whole safetensors file by what its header tells."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            pass
    except (OSError, SafetensorError) as error:
        raise TrainError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error


def checksum(path: Path) -> str:
    """CRC-32 of a file's bytes, at some 2 GB/s: it is to find damage, not forgery."""
    value = 0
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            value = zlib.crc32(block, value)
    return f"{value:08x}"


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """A write that fails within, as on a full disk, is a TrainError that names `path`."""
    try:
        yield
    except TrainError:
        raise
    except Exception as error:
        # safetensors and tokenizers raise kinds of their own, with the system's error in the text.
        if not isinstance(error, OSError) and "os error" not in str(error):
            raise
        raise TrainError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error


def writes() -> bool:
    """Whether this process writes a run's files: of several that share it (ranks.py), the first alone does."""
    ranks = sys.modules.get("warpup.train.ranks")  # this module does without torch
    return ranks is None or ranks.rank() == 0


def write_text(path: Path, text: str) -> None:
    """Write a file under another name and rename it: a reader, or a run after a kill, finds the old text or the new."""
    if not writes():
        return
    temporary = path.with_name(f".{path.name}.partial")
    with writing(path):
        temporary.write_text(text)
        temporary.replace(path)


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """Make folder `path` appear at once with what `fill(temporary folder)` wrote; replaces a folder of that name."""
    if not writes():
        return
    temporary = path.with_name(f".{path.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    with writing(path):
        temporary.mkdir(parents=True)
        fill(temporary)
        for file in temporary.rglob("*"):  # onto the disk before the rename, so that the name never stands for less
            if file.is_file():
                with file.open("rb+") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            remove_folder(path)
        temporary.rename(path)


def remove_folder(path: Path) -> None:
    """Delete a folder, of a link the link alone; renamed first, so that after a kill nothing of that name is half
    there."""
    if path.is_symlink():
        path.unlink()
        return
    aside = path.with_name(f".{path.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    path.rename(aside)
    shutil.rmtree(aside)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold folder `out` (made if need be) for this process; TrainError if another one is at work there."""
    if not writes():
        yield
        return
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
