"""How stages name their data and rewards, in Python and in a config file."""

import json
import re
import sys
from collections.abc import Callable, Sequence, Sized
from typing import Annotated, Any, cast

from tyro.constructors import PrimitiveConstructorSpec

from warpup.data.samplers import Sampler

from .checks import check_unused
from .errors import TrainError


def reward_names(text: str) -> str | list[str]:
    """What is given on the command line: a name, or several with commas between them."""
    names = re.split(r",(?![^()]*\))", text)  # not at the commas in brackets
    return names if len(names) > 1 else text


def _one_value(metavar: str, read: Callable[[str], Any], write: Callable[[Any], str]) -> PrimitiveConstructorSpec:
    """How tyro reads an option of one word, and writes its default."""
    return PrimitiveConstructorSpec(1, metavar, lambda words: read(words[0]), lambda value: True, lambda v: [write(v)])


def _json(example: str, metavar: str = "JSON") -> PrimitiveConstructorSpec:
    """An option that is JSON, such as the example, or none."""

    def read(text: str) -> Any:
        try:
            return None if text == "none" else json.loads(text)
        except ValueError:
            raise ValueError(f"expected none or JSON such as {example}, got {text}") from None

    return _one_value(metavar, read, lambda value: "none" if value is None else json.dumps(value))


def _listed(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


Data = Annotated[str | Sequence[dict[str, Any] | str], _one_value("STR", str, _listed)]
RewardName = Annotated[str | Callable | Sequence[str | Callable], _one_value("NAME[,NAME]", reward_names, _listed)]
SamplerName = Annotated[str | Sampler, _one_value("NAME[:OPTIONS]", str, str)]
TemplateArguments = Annotated[dict[str, Any] | None, _json('{"enable_thinking": false}')]
_BUDGET = _json('512 or {"tokens": 512}', "N|JSON")
Budget = Annotated[int | dict[str, Any] | None, _BUDGET]
RunBudget = Annotated[int | dict[str, Any] | str | None, _BUDGET]  # "": the run's own, where None is no budget
NamedNumbers = Annotated[dict[str, float] | None, _json('{" wait": 1.5}')]


def examples_of(stage) -> Sequence[dict[str, Any]]:
    """A stage's examples, from its `data` and column names, at most `limit` of them; TrainError if there are none. What
    the limit leaves out is said. Those of files are a `Spool`, which may be larger than memory."""
    from warpup.data.load import MissingColumn, as_example, spool_examples
    from warpup.data.spool import Spool

    place = PLACES.get(type(stage).__name__, type(stage).__name__.lower())
    columns = {"completion": getattr(stage, "completion", None), "answer": getattr(stage, "answer", None)}
    try:
        if is_loaded(stage.data):
            limit = None if stage.limit is None else stage.limit + 1  # one more shows whether there are more
            examples: Sequence[dict[str, Any]] = spool_examples(stage.data, prompt=stage.prompt, limit=limit, **columns)
        else:  # as they are, but for conversations
            keys = {"prompt": "prompt", "completion": columns["completion"] and "completion"}
            examples = [e if "prompt" in e else as_example(f"example {i}", e, keys) for i, e in enumerate(stage.data)]
    except MissingColumn as error:
        none = ', or to "none" if the reward reads no answer' if error.key == "answer" else ""
        raise TrainError(
            f"{place}.data: {error.lacking}; set {place}.{error.key} to the name of yours{none}"
        ) from error
    except (OSError, ValueError, ImportError) as error:
        raise TrainError(f"{place}.data: {str(error).removeprefix('source: ')}") from error
    if not examples:
        raise TrainError(f"{place}.data: no examples")
    if stage.limit is not None and len(examples) > stage.limit:
        print(f"{place}.limit: the first {stage.limit} examples are used, there are more", file=sys.stderr)
        examples = cast(Sequence[dict[str, Any]], examples[: stage.limit])
    given = getattr(stage, "chat_template_kwargs", None) or {}
    if given and all(isinstance(example["prompt"], str) for example in examples):
        raise TrainError(f"{place}.chat_template_kwargs: no prompt is chat messages, so nothing reads it; leave it out")
    if given:  # an example's own win
        merged = (e | {"chat_template_kwargs": given | (e.get("chat_template_kwargs") or {})} for e in examples)
        return Spool(merged) if isinstance(examples, Spool) else list(merged)
    return examples


PLACES = {
    "HeldOutConfig": "held_out",
    "StepReward": "step_reward",
}  # what a config calls a part that is not named like its class


def is_loaded(data: Any) -> bool:
    """Whether `data` names files and the like, or a mixture of them, and is not a list of examples."""
    from warpup.data.load import is_mixture

    if not isinstance(data, Sized):
        raise TrainError(
            f"data: got a {type(data).__name__}; a stream cannot be resumed at the row where it was stopped: save it "
            "to a file, which may be larger than memory, or give it as a list"
        )
    return isinstance(data, str) or (len(data) > 0 and is_mixture(data))


def check_columns(stage, *names: str, place: str) -> None:
    """Raise TrainError where columns or a limit are named that a list of examples does not have."""
    if stage.limit is not None and stage.limit < 1:
        raise TrainError(f"{place}.limit: expected at least 1, or none for all, got {stage.limit!r}")
    if not is_loaded(stage.data):
        why = f"a list of examples is read by the keys {' and '.join(map(repr, names))}"
        check_unused(stage, *(name for name in names if getattr(stage, name)), place=place, why=why)
