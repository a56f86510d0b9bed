"""`warpup init`: a folder to begin in, with a config that names every setting, a few examples and a reward function.

The config is written from the settings' own dataclasses and docstrings, so it has every key that `warpup train` knows.
"""

import ast
import dataclasses
import inspect
import json
import os
import random
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from warpup._command_line import parse

from .errors import UsageError
from .files import FETCH, read_json, write_text

# Settings of the example that are not the defaults; every other one stands in the config as a comment.
CHOSEN: dict[str, Any] = {
    "out": "run",
    "warmup": {"data": "train.jsonl", "steps": 20, "batch_size": 8, "lr_warmup": 5},
    "rlvr": {
        "data": "train.jsonl", "reward": "reward.py:score", "steps": 10, "prompts": 4, "samples": 4,
        "max_new_tokens": 16,
    },
    "held_out": {"data": "test.jsonl", "reward": "reward.py:score", "points": 2, "max_new_tokens": 16},
}  # fmt: skip
TITLES = {
    "warmup": "Stage one imitates the completions of its data. Without data it is left out.",
    "rlvr": "Stage two samples completions, has the reward score them, and reinforces the better ones.",
    "held_out": "Never trained on. Measured while training, and by `warpup eval`.",
}
HEAD = """\
Start in this folder: `warpup doctor --config train.toml` tries model, data and reward; `warpup train train.toml`
trains, and resumes a run that was stopped.
Lines that begin with `# name =` are defaults: take the `# ` away to change one. Every key can also be given on the
command line, which then wins: `warpup train train.toml --rlvr.lr 1e-5`."""
REWARD = '''"""The reward: what counts as a good completion. `python reward.py` tells whether it does what you mean."""

import re

from warpup.rewards import Grade


def score(completion: str, example: dict) -> Grade:
    """1 if the last number in the completion is the example's answer, else 0. `example` is the row of the data, with
    every column that it has. A plain number would do; a `Grade` also says what is right, for the accuracy."""
    numbers = re.findall(r"-?\\d+(?:\\.\\d+)?", completion.replace("\\N{MINUS SIGN}", "-"))
    return Grade.of(numbers[-1:] == [example["answer"]])


if __name__ == "__main__":
    assert score("2 + 2 = 4", {"answer": "4"}).correct
    assert not score("I do not know", {"answer": "4"}).correct
    assert not score("4, or is it 5", {"answer": "4"}).correct
    assert not score("-4", {"answer": "4"}).correct
    print("the reward does what it should")
'''


@dataclass
class InitArguments:
    """Write train.toml, reward.py, train.jsonl and test.jsonl to a folder, for `warpup train` to run at once."""

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[FOLDER]")] = "."
    """Where to; made if it is not there."""
    model: str = ""
    """Folder of the model to train, as `transformers` saves it; default: `model` in that folder."""


def init(arguments: list[str]) -> None:
    """warpup init [FOLDER]."""
    given = parse(InitArguments, arguments, "warpup init")
    folder = Path(given.folder)
    # A path in a config is relative to where the command is started, which is the folder itself.
    if given.model and not (Path(given.model) / "config.json").is_file():
        raise UsageError(f"--model: {given.model} is not a saved model: it has no config.json ({FETCH})")
    model = os.path.relpath(given.model, folder) if given.model else "model"
    chat = has_chat_template(Path(given.model)) if given.model else True
    files = {
        "train.toml": config_text(CHOSEN | {"model": model}),
        "reward.py": REWARD,
        "train.jsonl": examples(range(40), chat),
        "test.jsonl": examples(range(40, 60), chat),
    }
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: give a folder")
    there = [name for name in files if (folder / name).exists()]
    if there:
        raise UsageError(f"{folder} has {' and '.join(there)} already: choose another folder or move them away")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        write_text(folder / name, text)
    print(f"wrote {', '.join(files)} to {folder}")
    steps = [] if folder.samefile(".") else [f"cd {given.folder}"]
    if not given.model:
        steps.append(
            "hf download HuggingFaceTB/SmolLM2-135M-Instruct --local-dir model   # or put a model of yours there"
        )
    print("next:", *steps, "warpup doctor --config train.toml", "warpup train train.toml", sep="\n  ")


def has_chat_template(folder: Path) -> bool:
    """Whether the tokenizer saved in a folder renders chat messages."""
    config = folder / "tokenizer_config.json"
    return (folder / "chat_template.jinja").is_file() or (config.is_file() and "chat_template" in read_json(config))


def examples(numbers: range, chat: bool) -> str:
    """JSON lines of small sums: prompts as chat messages or as text, a completion to imitate, an answer to check."""
    lines = []
    for number in numbers:
        a, b = 11 + number, random.Random(number).randrange(2, 50)  # no sum twice, so none is trained and held out
        question = f"What is {a} + {b}? Answer with the sum alone."
        prompt = [{"role": "user", "content": question}] if chat else f"{question} "
        lines.append(json.dumps({"prompt": prompt, "completion": str(a + b), "answer": str(a + b)}))
    return "\n".join(lines) + "\n"


def config_text(chosen: dict[str, Any]) -> str:
    """The config as TOML: every setting of `TrainConfig` with its meaning, the chosen ones set, the others as comments
    with their defaults."""
    from .config import TrainConfig

    lines = [f"# {line}" for line in HEAD.splitlines()]
    lines += ["", *table(TrainConfig(), {k: v for k, v in chosen.items() if not isinstance(v, dict)})]
    docs = field_docs(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        part = getattr(TrainConfig(), field.name)
        if dataclasses.is_dataclass(part):
            title = TITLES.get(field.name, docs[field.name])
            lines += ["", f"[{field.name}]", f"# {title}", *table(part, chosen.get(field.name, {}))]
    return "\n".join(lines) + "\n"


def table(settings: Any, chosen: dict[str, Any]) -> list[str]:
    """Lines `key = value  # meaning` of a dataclass: the chosen keys, then the others as comments."""
    docs, lines = field_docs(type(settings)), []
    unknown = chosen.keys() - docs.keys()
    assert not unknown, f"{type(settings).__name__} has no {unknown}"
    for field in sorted(dataclasses.fields(settings), key=lambda field: field.name not in chosen):
        default = getattr(settings, field.name)
        if dataclasses.is_dataclass(default):
            continue
        set_here = field.name in chosen
        line = ("" if set_here else "# ") + f"{field.name} = {toml(chosen.get(field.name, default))}"
        first, *rest = textwrap.wrap(docs[field.name], 118 - 2 - max(32, len(line)))
        lines += [f"{line:32}  # {first}", *(f"{'#' if not set_here else '':32}  # {text}" for text in rest)]
    return lines


def toml(value: Any) -> str:
    """A setting's value as TOML; None, which TOML does not have, is "none"."""
    if isinstance(value, tuple | list):
        return "[" + ", ".join(map(toml, value)) + "]"
    return json.dumps("none" if value is None else value)


def field_docs(kind: type) -> dict[str, str]:
    """The docstring under each field of a dataclass and of those it extends, as one line. KeyError on a field that has
    none."""
    docs = {}
    for base in [base for base in reversed(kind.__mro__) if dataclasses.is_dataclass(base)]:
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                assert isinstance(field.target, ast.Name)
                docs[field.target.id] = " ".join(str(text.value.value).split())
    return {field.name: docs[field.name] for field in dataclasses.fields(kind)}
