"""How stages name their data and rewards, in Python and in a config file."""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from .errors import TrainError

Data = Annotated[str | Sequence[dict[str, Any]], tyro.conf.arg(constructor=str)]
RewardName = Annotated[str | Callable, tyro.conf.arg(constructor=str)]


def examples_of(stage) -> list[dict[str, Any]]:
    """A stage's examples, from its `data` and column names, at most `limit` of them. TrainError if there are none."""
    kind = type(stage).__name__.lower()
    if isinstance(stage.data, str):
        from warpup.data import load_examples

        columns = {"completion": getattr(stage, "completion", None), "answer": getattr(stage, "answer", None)}
        try:
            return load_examples(stage.data, prompt=stage.prompt, limit=stage.limit, **columns)
        except (OSError, ValueError, ImportError) as error:
            raise TrainError(f"{kind}.data: {error}") from error
    examples = list(stage.data)[: stage.limit]
    if not examples:
        raise TrainError(f"{kind}.data: no examples")
    return examples


def fingerprint(examples: Sequence[dict[str, Any]]) -> str:
    """Short hash of the examples, written into a run's config to tell whether it is the same data."""
    text = json.dumps(list(examples), sort_keys=True, default=str)
    return f"{len(examples)} examples, sha256 {hashlib.sha256(text.encode()).hexdigest()[:16]}"
