"""Rows of a file, a folder, a saved or published data set: dicts as they stand there, with the place for messages."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

Rows = Iterator[tuple[str, dict[str, Any]]]  # (place for messages, row)


def read_rows(source: str | Path) -> Rows:
    """Rows of what `load_examples` calls a source; its errors."""
    text = str(source)
    if text.startswith("hub:"):
        yield from _hub(text)
        return
    if text.startswith("reasoning-gym:"):
        from .reasoning_gym import read_task

        yield from read_task(text)
        return
    path = Path(source)
    check_path(text)
    if path.is_file():
        yield from _reader(path)(path)
    elif (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        yield from _numbered(_one_split(_datasets().load_from_disk(str(path)), path), path)
    else:
        yield from _folder(path)


def check_path(source: str) -> None:
    """FileNotFoundError where a source is the path of nothing."""
    if not source.startswith(("hub:", "reasoning-gym:")) and not Path(source).exists():
        place = "" if Path(source).is_absolute() else f" in {Path.cwd()}"
        raise FileNotFoundError(
            f"source: no file or directory {source}{place} (a data set on the hub is hub:name, a task "
            "reasoning-gym:name)"
        )


def _folder(path: Path) -> Rows:
    kinds = {ending: sorted(path.glob(f"*{ending}")) for ending in (".jsonl", ".parquet", ".csv")}
    found = [ending for ending, files in kinds.items() if files]
    if not found:
        raise ValueError(
            f"source: directory {path} holds neither *.jsonl, *.parquet or *.csv files nor a saved data set"
        )
    if len(found) > 1:
        raise ValueError(f"source: directory {path} holds {' and '.join(found)} files: name one of them, or a mixture")
    for file in kinds[found[0]]:
        yield from _reader(file)(file)


def _reader(path: Path) -> Callable[[Path], Rows]:
    return {".csv": _csv, ".parquet": _parquet}.get(path.suffix, _json)


def _json(path: Path) -> Rows:
    if path.suffix == ".json":
        with path.open("rb") as file:
            is_list = file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
        if is_list:
            yield from _json_list(path)
            return
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            place = f"{path}, line {number}"
            try:
                row = json.loads(line.decode("utf-8-sig"))
            except UnicodeDecodeError as error:
                raise ValueError(f"{place}: not UTF-8 text: {error.reason} at byte {error.start}") from None
            except json.JSONDecodeError as error:
                raise ValueError(f"{place}: bad JSON: {error.msg} at column {error.colno}") from None
            if not isinstance(row, dict):
                raise ValueError(f"{place}: expected a JSON object, got {type(row).__name__}")
            yield place, row


def _json_list(path: Path) -> Rows:
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:  # of the decoder too
        raise ValueError(f"{path}: bad JSON: {error}") from None
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"{path}, item {number}: expected a JSON object, got {type(row).__name__}")
        yield f"{path}, item {number}", row


def _csv(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8-sig") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    wanted = len(reader.fieldnames or ())
                    raise ValueError(f"{place}: expected {wanted} fields as in the first line, got {_fields(row)}")
                yield place, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise ValueError(f"{path}, line {reader.line_num + 1}: {error}") from None


def _fields(row: dict) -> int:
    return sum(value is not None for key, value in row.items() if key is not None) + len(row.get(None, ()))


def _parquet(path: Path) -> Rows:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise ImportError("parquet files need the package pyarrow: pip install pyarrow") from error
    number = 0
    try:
        for batch in ParquetFile(path).iter_batches():
            for row in batch.to_pylist():
                yield f"{path}, row {number}", row
                number += 1
    except ArrowException as error:
        raise ValueError(f"{path}: {error}") from error


def _hub(source: str) -> Rows:
    name, _, part = source.removeprefix("hub:").partition(":")
    name, _, config = name.partition("@")
    if not name:
        raise ValueError(f"source: expected hub:name[@config][:split], got {source!r}")
    data = _datasets().load_dataset(name, config or None, split=part or "train")
    yield from _numbered(_one_split(data, source), source)


def _one_split(data, source):
    if hasattr(data, "keys"):
        raise ValueError(f"source: {source} holds several splits, load one of them: {sorted(data)}")
    return data


def _numbered(data: Iterable, source) -> Rows:
    for number, row in enumerate(data):
        yield f"{source}, row {number}", dict(row)


def _datasets():
    try:
        import datasets
    except ImportError as error:
        raise ImportError("this source needs the package datasets: pip install datasets") from error
    return datasets
