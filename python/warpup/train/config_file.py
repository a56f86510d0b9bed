"""The config file of `warpup train`: TOML or YAML, checked key by key against the settings' dataclasses."""

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from warpup.data.samplers import Sampler

from .config import TrainConfig
from .errors import TrainError
from .stages.distill_settings import DistillSettings
from .stages.preference_settings import PreferenceSettings
from .stages.rlvr_settings import RLVRSettings
from .stages.step_reward_settings import StepRewardSettings
from .stages.warmup_settings import WarmupSettings

Filled = TypeVar("Filled")
STAGES = {  # by their `kind`: the settings, since a stage itself needs torch, which takes seconds to import
    "warmup": WarmupSettings,
    "rlvr": RLVRSettings,
    "preference": PreferenceSettings,
    "distill": DistillSettings,
    "step_reward": StepRewardSettings,
}

OTHER_NAMES = {  # what other trainers call a setting -> what it is here
    "learning_rate": "lr", "warmup_steps": "lr_warmup", "lr_scheduler_type": "lr_schedule", "max_grad_norm": "clip",
    "max_steps": "steps", "train_batch_size": "batch_size", "per_device_train_batch_size": "batch_size",
    "save_steps": "save_every", "num_generations": "samples", "group_size": "samples", "beta": "kl_coef",
    "epsilon": "clip_ratio", "loss_type": "loss", "scale_rewards": "scale", "num_iterations": "inner_epochs",
    "max_completion_length": "max_new_tokens", "reward_funcs": "reward", "reward_function": "reward", "dataset": "data",
    "model_name_or_path": "model", "output_dir": "out", "report_to": "track", "attn_implementation": "attention",
    "peft": "lora", "sft": "warmup", "grpo": "rlvr", "ppo": "rlvr", "eval": "held_out", "test": "held_out",
}  # fmt: skip


def load_config(path: str | Path) -> TrainConfig:
    """Config of a `.toml`, `.yaml` or `.yml` file; relative paths in it stay relative to the working folder.

    Raises TrainError if the file is missing or malformed, and on an unknown key or a value of the wrong kind, by name.
    """
    path = Path(path)
    if not path.is_file():
        raise TrainError(f"no config file {path} (`warpup init FOLDER` writes one to begin with)")
    try:
        if path.suffix == ".toml":
            table = tomllib.loads(path.read_text())
        elif path.suffix in (".yaml", ".yml"):
            import yaml

            table = yaml.safe_load(path.read_text()) or {}
        else:
            raise TrainError(f"{path}: expected a .toml, .yaml or .yml file")
    except TrainError:
        raise
    except Exception as error:  # two parsers, two families of errors
        told = "; a text stands in quotes, true and false are lower case, a number begins with a digit, as 0.1"
        hint = told if str(error).startswith("Invalid value") else ""
        raise TrainError(f"{path}: {' '.join(str(error).split())}{hint}") from error
    return fill(TrainConfig, table, f"{path}: ")


def fill(kind: type[Filled], table: Mapping[str, Any], place: str) -> Filled:
    """Dataclass of `kind` from a table. TrainError on an unknown key or a value of the wrong kind; `place` names it."""
    if not isinstance(table, Mapping):
        raise TrainError(f"{place.rstrip('.: ')}: expected a table, got {table!r}")
    hints, make = typing.get_type_hints(kind), cast(Any, kind)
    known, values = [f.name for f in dataclasses.fields(make)], {}
    for key, value in table.items():
        if key not in known:
            where = f"{place[:-1]}: " if place.endswith(".") else place
            raise TrainError(f"{where}unknown key {key!r}: {_meant(str(key), kind, known)}")
        if kind is TrainConfig and key == "stages":
            values[key] = fill_stages(value, f"{place}stages")
        elif dataclasses.is_dataclass(hints[key]):
            values[key] = fill(hints[key], value, f"{place}{key}.")
        else:
            values[key] = convert(hints[key], value, f"{place}{key}")
    return make(**values)


def _meant(key: str, kind: type, known: list[str]) -> str:
    """What an unknown key of a table was meant to be."""
    parts = {f.name: f.default_factory for f in dataclasses.fields(kind) if dataclasses.is_dataclass(f.default_factory)}
    tables = [name for name, part in parts.items() if key in {f.name for f in dataclasses.fields(part)}]
    if tables:
        return f"it stands in {' or '.join(f'[{name}]' for name in tables)}"
    if OTHER_NAMES.get(key) in known:
        return f"it is called {OTHER_NAMES[key]!r} here"
    near = difflib.get_close_matches(key, known, 1)
    return f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"


def fill_stages(tables, place: str) -> tuple[Any, ...]:
    """Stages of a list of tables, each with the `kind` of one."""
    if not isinstance(tables, list) or not all(isinstance(table, Mapping) for table in tables):
        raise TrainError(f"{place}: expected tables, each written under [[stages]], got {tables!r}")
    stages = []
    for number, table in enumerate(tables):
        name = table.get("kind")
        if name not in STAGES:
            raise TrainError(f"{place}[{number}].kind: expected one of {', '.join(STAGES)}, got {name!r}")
        settings = {key: value for key, value in table.items() if key != "kind"}
        stages.append(fill(STAGES[name], settings, f"{place}[{number}]."))
    return tuple(stages)


def convert(hint, value, place: str):
    """The value as the type hint wants it, or TrainError."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    if type(None) in options and (value is None or value == "none"):
        return None
    for option in options:
        origin = typing.get_origin(option)
        if origin is typing.Literal and value in typing.get_args(option):
            return value
        if origin in (tuple, Sequence) and isinstance(value, list | tuple):
            kinds = typing.get_args(option)
            if origin is Sequence or kinds[-1] is ...:  # as many as there are
                kinds = kinds[:1] * len(value)
            if len(value) == len(kinds):
                return tuple(convert(kind, item, place) for kind, item in zip(kinds, value, strict=True))
        if option is Any or (option is bool and isinstance(value, bool)):
            return value
        if origin is dict and isinstance(value, dict):
            return value
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (int, str) and type(value) is option:
            return value
    wanted = " or ".join(
        _spell(option) for option in options if option not in (Callable, Sampler)
    )  # which no file holds
    raise TrainError(f"{place}: expected {wanted}, got {value!r}{_quoted(options, value)}")


def _quoted(options: Sequence[Any], value: Any) -> str:
    """What to do about a number that was read as a text."""
    if not isinstance(value, str) or not (int in options or float in options):
        return ""
    try:
        float(value)
    except ValueError:
        return ""
    return "; a number stands without quotes, in YAML with a point: 1.0e-5, not 1e-5"


def _spell(option) -> str:
    if typing.get_origin(option) is typing.Literal:
        return " or ".join(map(repr, typing.get_args(option)))
    if typing.get_origin(option) is tuple:
        kinds = typing.get_args(option)
        many = "texts" if kinds[0] is str else "numbers"
        return f"a list of {many}" if kinds[-1] is ... else f"a list of {len(kinds)} {many}"
    if typing.get_origin(option) is Sequence:
        return "a list"
    names = {type(None): '"none"', bool: "true or false", float: "a number", int: "a whole number", str: "a text"}
    return names.get(option, str(option))
