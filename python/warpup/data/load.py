"""Examples from a file of one's own or from a `datasets` source."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any


def load_examples(
    source: str | Path,
    *,
    prompt: str = "prompt",
    completion: str | None = "completion",
    answer: str | None = "answer",
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Rows as dicts with the keys "prompt", "completion" and "answer"; other columns are kept under their own names.

    source: one of
        a file of JSON lines (one object a line, blank lines skipped), whatever its ending;
        a directory of `*.jsonl` files, read in the order of their names;
        a directory written by `datasets.Dataset.save_to_disk`;
        `hub:name[@config][:split]`, read by `datasets.load_dataset`; the split is `train` by default, and the name may
        be a local directory.
    prompt, completion, answer: the columns to read them from. None: there is no such column and no such key in the
    rows (warm-up needs no answer, reinforcement no completion). Prompts and completions must be text.
    limit: read at most this many rows.

    Raises FileNotFoundError if there is no such path; ValueError, naming file and line or the columns that are there,
    on bad JSON, a missing column, a prompt or completion that is not text, or a source without rows.
    """
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(f"limit: expected a positive number of rows or None, got {limit!r}")
    columns = {"prompt": prompt, "completion": completion, "answer": answer}
    if not isinstance(prompt, str):
        raise ValueError(f"prompt: expected the name of a column, got {prompt!r}")
    columns = {key: column for key, column in columns.items() if column is not None}
    examples = []
    for place, row in _rows(source):
        if limit is not None and len(examples) == limit:
            break
        examples.append(_example(place, row, columns))
    if not examples:
        raise ValueError(f"source: {source} has no rows")
    return examples


def _example(place: str, row: dict[str, Any], columns: dict[str, str]) -> dict[str, Any]:
    missing = {key: column for key, column in columns.items() if column not in row}
    if missing:
        key, column = next(iter(missing.items()))
        hint = "" if key == "prompt" else f" or {key}=None if there is none"
        raise ValueError(f"{place}: no column {column!r} for the {key}, there are {sorted(row)}; pass {key}=...{hint}")
    for key in ("prompt", "completion"):
        if key in columns and not isinstance(row[columns[key]], str):
            raise ValueError(f"{place}: column {columns[key]!r}: expected text, got {type(row[columns[key]]).__name__}")
    taken = set(columns.values())
    return {k: v for k, v in row.items() if k not in taken} | {key: row[column] for key, column in columns.items()}


def _rows(source: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place for messages, row) of each row."""
    if isinstance(source, str) and source.startswith("hub:"):
        yield from _hub_rows(source)
        return
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"source: no file or directory {path} (a data set on the hub is hub:name)")
    if path.is_file():
        yield from _json_lines(path)
    elif (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        yield from _numbered(_one_split(_datasets().load_from_disk(str(path)), path), path)
    else:
        files = sorted(path.glob("*.jsonl"))
        if not files:
            raise ValueError(f"source: directory {path} holds neither *.jsonl files nor a saved data set")
        for file in files:
            yield from _json_lines(file)


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
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


def _hub_rows(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
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


def _numbered(data: Iterable, source) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, row in enumerate(data):
        yield f"{source}, row {number}", dict(row)


def _datasets():
    try:
        import datasets
    except ImportError as error:
        raise ImportError("this source needs the package datasets: pip install datasets") from error
    return datasets
