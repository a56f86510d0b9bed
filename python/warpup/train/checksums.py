"""Folders that are held against what was written: checkpoints, by a table in trainer.json, and finished models, by
checksums.json, which the libraries that load a model do not look at."""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import TrainError
from .files import checksum, read_table

SUMS = "checksums.json"
CURE = (
    f"If that was on purpose, delete {SUMS} beside it; else delete the folder, which the command that trained the "
    "model then writes again"
)


def checksum_of(table: Mapping[str, Any]) -> str:
    """That of a table, by the JSON text of it."""
    return f"{zlib.crc32(json.dumps(table).encode()):08x}"


def write_table(path: Path, table: Mapping[str, Any]) -> None:
    """Write a table with the checksums of all files in its folder, which are there already, and of itself."""
    paths = [file for file in sorted(path.parent.rglob("*")) if file.is_file()]
    held = {**table, "files": {file.relative_to(path.parent).as_posix(): checksum(file) for file in paths}}
    path.write_text(json.dumps({**held, "checksum": checksum_of(held)}))


def read_checked(path: Path, *keys: str, cure: str = CURE) -> dict[str, Any]:
    """What `write_table` wrote, if it is that; TrainError that ends with the `cure`."""
    try:
        held = read_table(path, *keys, "files", "checksum")
    except TrainError as error:
        raise TrainError(f"{error}. {cure}") from error
    if held.pop("checksum") != checksum_of(held) or not isinstance(held["files"], dict):
        raise TrainError(f"{path} is damaged: its checksum is another one. {cure}")
    return held


def check_files(folder: Path, files: Mapping[str, str], *but: str, cure: str = CURE) -> None:
    """TrainError, naming the first, unless these files are as they were written, `but` some, which have to be there."""
    for name, wanted in files.items():
        path = folder / name
        if not path.is_file():
            raise TrainError(f"{path} is missing. {cure}")
        if name not in but and checksum(path) != wanted:
            raise TrainError(f"{path} is damaged: its checksum is another one. {cure}")


def seal(folder: Path) -> None:
    """Write checksums.json to a folder that holds all its other files."""
    write_table(folder / SUMS, {})


def check_sealed(folder: Path) -> None:
    """`check_files` of a folder with a checksums.json; a model of another origin has none."""
    if (folder / SUMS).is_file():
        check_files(folder, read_checked(folder / SUMS)["files"])
