"""Examples from files of one's own, from a `datasets` source, or from a mixture of several."""

import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from .sources import read_rows
from .spool import Spool

CHAT, TEXT = "messages", "text"  # columns that are read where the named ones are missing
BESIDE = ("reasoning_content", "reasoning", "thinking", "tool_calls", "function_call")  # keys that templates write out


class MissingColumn(ValueError):
    """A row without the column of a key. lacking: the message without what to do about it."""

    def __init__(self, place: str, key: str, column: str, row: Mapping[str, Any]):
        self.key = key
        self.lacking = f"{place}: no column {column!r} for the {key}, there are {sorted(row)}"
        hint = "" if key == "prompt" else f" or {key}=None if there is none"
        super().__init__(f"{self.lacking}; set {key} to its name{hint}")


@dataclass(frozen=True)
class Source:
    """One part of a mixture.

    path: what `load_examples` takes as a source. weight: how often its rows count: 1 takes each once an epoch, 2 twice,
    0.5 half of them, drawn once. limit: read at most this many rows. columns: as `load_examples(prompt=...)`, where
    this part's differ from those of the others.
    """

    path: str | Path
    weight: float = 1.0
    limit: int | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)

    @classmethod
    def of(cls, part: Any) -> "Source":
        """A part as written in a config, `{path = "a.jsonl", weight = 2}`; ValueError on what is none."""
        if not isinstance(part, Source):
            known = [f.name for f in fields(cls)]
            if isinstance(part, str | Path):
                part = {"path": part}
            if not isinstance(part, Mapping) or "path" not in part or not part.keys() <= set(known):
                raise ValueError(
                    f"mixture: expected a part with path and optionally {', '.join(known[1:])}, got {part!r}"
                )
            part = cls(**part)
        if isinstance(part.weight, bool) or not isinstance(part.weight, int | float) or not 0 < part.weight < 1e6:
            raise ValueError(f"mixture: weight of {part.path}: expected a number above 0, got {part.weight!r}")
        if not isinstance(part.columns, Mapping) or not part.columns.keys() <= {"prompt", "completion", "answer"}:
            raise ValueError(
                f"mixture: columns of {part.path}: expected some of prompt, completion, answer, got {part.columns!r}"
            )
        return part


def load_examples(
    source: str | Path | Sequence[Source | Mapping[str, Any]],
    *,
    prompt: str = "prompt",
    completion: str | None = "completion",
    answer: str | None = "answer",
    limit: int | None = None,
) -> list[dict[str, Any]]:
    """Rows as dicts with the keys "prompt", "completion" and "answer"; other columns are kept under their own names.

    source: one of
        a file: `.csv` (first line: names), `.parquet`, or of any other ending JSON lines, one object a line (a
            `.json` file may be a list of objects);
        a directory of `*.jsonl`, `*.parquet` or `*.csv` files, read in the order of their names;
        a directory written by `datasets.Dataset.save_to_disk`;
        `hub:name[@config][:split]`, read by `datasets.load_dataset`; the split is `train` by default, and the name may
        be a local directory;
        `reasoning-gym:name[:size=500,start=0,...]`, a generated task, see `warpup.data.reasoning_gym`;
        a list of `Source`, or of dicts with its fields: a mixture.
    prompt, completion, answer: the columns to read them from. None: there is no such column and no such key in the
    rows (warm-up needs no answer, reinforcement no completion). A prompt is text or a list of chat messages, dicts with
    "role" and "content"; a completion is text or a list of one assistant message, and becomes text.
    Where there is no column of the prompt, a column "messages" is read as a conversation, whose last turn, if it is the
    assistant's, is the completion and all before it the prompt; and where a completion is wanted, a column "text" as
    a completion with the prompt "", for pretraining on plain text.
    limit: read at most this many rows.

    Raises FileNotFoundError if there is no such path; ValueError, naming file and line or the columns that are there,
    on bad JSON, a missing column, a prompt or completion that is neither text nor messages, or a source without rows;
    ImportError naming the installation if the source needs a package that is missing.
    """
    return list(spool_examples(source, prompt=prompt, completion=completion, answer=answer, limit=limit))


def spool_examples(
    source: str | Path | Sequence[Source | Mapping[str, Any]],
    *,
    prompt: str = "prompt",
    completion: str | None = "completion",
    answer: str | None = "answer",
    limit: int | None = None,
) -> Spool:
    """`load_examples`, for data larger than memory: what is many goes to a temporary file as it is read."""
    _check_limit("limit", limit)
    if not isinstance(prompt, str):
        raise ValueError(f"prompt: expected the name of a column, got {prompt!r}")
    columns = {"prompt": prompt, "completion": completion, "answer": answer}
    examples = Spool()
    if isinstance(source, str | Path):
        _load(examples, source, columns, limit)
        return examples
    parts = [Source.of(part) for part in source]
    if not parts:
        raise ValueError("source: a mixture of nothing")
    order = array("q")  # numbers of rows, one that counts twice stands there twice
    for part in parts:
        _check_limit(f"mixture: limit of {part.path}", part.limit)
        order.extend(_weighted(_load(examples, part.path, columns | dict(part.columns), part.limit), part.weight))
    examples.reorder(order[:limit])
    return examples


def _load(examples: Spool, source: str | Path, columns: Mapping[str, str | None], limit: int | None) -> range:
    """Appends the rows of a source; their numbers."""
    begin = len(examples)
    for place, row in read_rows(source):
        if limit is not None and len(examples) - begin == limit:
            break
        examples.append(as_example(place, row, columns))
    if len(examples) == begin:
        raise ValueError(f"source: {source} has no rows")
    return range(begin, len(examples))


def is_mixture(data: Any) -> bool:
    """Whether a list is parts to be loaded, and not examples."""
    return all(
        isinstance(part, Source | str | Path)
        or (isinstance(part, Mapping) and "path" in part and not {"prompt", CHAT, TEXT} & part.keys())
        for part in data
    )


def _weighted(rows: range, weight: float) -> Iterator[int]:
    whole, rest = divmod(weight * len(rows), len(rows))
    drawn = random.Random(0).sample(rows, round(rest))
    for _ in range(int(whole)):
        yield from rows
    yield from sorted(drawn)


def as_example(place: str, row: Mapping[str, Any], columns: Mapping[str, str | None]) -> dict[str, Any]:
    """A row with the keys "prompt", "completion", "answer" as far as `columns` names columns for them."""
    columns = {key: column for key, column in columns.items() if column is not None}
    if columns["prompt"] not in row:
        split = _conversation(place, row, columns) or _document(place, row, columns)
        if split:
            row = {k: v for k, v in row.items() if k not in (CHAT, TEXT)} | split
            columns |= {key: key for key in split}
    missing = {key: column for key, column in columns.items() if column not in row}
    if missing:
        key, column = next(iter(missing.items()))
        raise MissingColumn(place, key, column, row)
    taken = set(columns.values())
    example = {k: v for k, v in row.items() if k not in taken} | {key: row[column] for key, column in columns.items()}
    if not isinstance(example["prompt"], str):
        place_of = f"{place}: column {columns['prompt']!r}"
        if _messages(place_of, example["prompt"])[-1]["role"] == "assistant":
            raise ValueError(f"{place_of}: the last message is the assistant's, nothing is left to complete")
    if "completion" in columns and not isinstance(example["completion"], str):
        place_of, messages = f"{place}: column {columns['completion']!r}", example["completion"]
        example["completion"] = _reply(place_of, messages)
        check_beside(place_of, messages[-1])
    return example


def _conversation(place: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any] | None:
    """Prompt and completion of a column of messages."""
    if CHAT not in row:
        return None
    place = f"{place}: column {CHAT!r}"
    turns = _messages(place, row[CHAT])
    if turns[-1]["role"] != "assistant":
        if "completion" in columns:
            raise ValueError(
                f"{place}: expected the assistant's turn last, as the completion, got {turns[-1]['role']!r}"
            )
        return {"prompt": turns}
    if len(turns) == 1:
        raise ValueError(f"{place}: expected a turn before the assistant's")
    reply = _reply(place, turns[-1:])
    if "completion" in columns:
        check_beside(place, turns[-1])
    return {"prompt": turns[:-1], "completion": reply}


def _document(place: str, row: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any] | None:
    """A text without a prompt, where a completion is wanted."""
    if TEXT not in row or "completion" not in columns:
        return None
    if not isinstance(row[TEXT], str):
        raise ValueError(f"{place}: column {TEXT!r}: expected text, got {type(row[TEXT]).__name__}")
    return {"prompt": "", "completion": row[TEXT]}


def _messages(place: str, value: Any) -> list[Mapping[str, Any]]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise ValueError(f"{place}: expected text or a list of messages, got {type(value).__name__}")
    for message in value:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str) or "content" not in message:
            raise ValueError(f"{place}: expected messages with role and content, got {message!r}")
    return list(value)


def _reply(place: str, value: Any) -> str:
    """The text of a completion that is one assistant message."""
    messages = _messages(place, value)
    reply = messages[-1].get("content")
    if len(messages) > 1 or messages[-1]["role"] != "assistant":
        raise ValueError(f"{place}: expected text or one message of the assistant, got {len(messages)} messages")
    if not isinstance(reply, str):
        raise ValueError(f"{place}: expected an assistant message whose content is text, got {reply!r}")
    return reply


def check_beside(place: str, message: Mapping[str, Any]) -> None:
    """ValueError on a completion that has more than its content, of which nothing would be learned."""
    if lost := [name for name in BESIDE if message.get(name)]:
        raise ValueError(
            f"{place}: the content of an assistant's message is learned, and this one has {', '.join(lost)} beside it; "
            "write all that the model shall say into the content, as its template would"
        )


def _check_limit(name: str, limit: Any) -> None:
    if limit is not None and (type(limit) is not int or limit < 1):
        raise ValueError(f"{name}: expected a positive number of rows or None, got {limit!r}")
