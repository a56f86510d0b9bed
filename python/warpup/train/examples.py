"""How stages name their data and rewards, in Python and in a config file."""

import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import tyro

from .checks import check_unused
from .errors import TrainError

Data = Annotated[str | Sequence[dict[str, Any]], tyro.conf.arg(constructor=str)]


def reward_names(text: str) -> str | list[str]:
    """What is given on the command line: a name, or several with commas between them."""
    names = re.split(r",(?![^()]*\))", text)  # not at the commas in brackets
    return names if len(names) > 1 else text


RewardName = Annotated[str | Callable | Sequence[str | Callable], tyro.conf.arg(constructor=reward_names)]


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


def check_columns(stage, *names: str, place: str) -> None:
    """Raise TrainError where columns or a limit are named that a list of examples does not have."""
    if stage.limit is not None and stage.limit < 1:
        raise TrainError(f"{place}.limit: expected at least 1, or none for all, got {stage.limit!r}")
    if not isinstance(stage.data, str):
        why = f"a list of examples is read by the keys {' and '.join(map(repr, names))}"
        check_unused(stage, *(name for name in names if getattr(stage, name)), place=place, why=why)
