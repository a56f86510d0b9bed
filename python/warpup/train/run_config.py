"""What a run is: start model and precision in its folder's config.json, each stage's settings in its stage.json.

A folder is only ever continued by the run that began it. So everything the result depends on is written down once, and
compared when a command comes back: a stage's settings with its own checkpoint alone, so that a later one may still
change.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .errors import TrainError
from .files import read_table, write_text
from .rewards.loading import reward_name


def check_config(path: Path, config: dict[str, Any]) -> None:
    """Write the config of a new run; raise TrainError, naming the differences, if the folder holds another one, and on
    checkpoints without a config, or a model, which may be the one that the run starts from."""
    if path.exists():
        held = read_table(path)
        if held != config:
            raise TrainError(
                f"{path.parent} holds another run ({'; '.join(differences(held, config))}): choose another folder"
            )
        return
    if any(path.parent.glob("*/step-*")):
        raise TrainError(f"{path} is missing, which says of what run the checkpoints in {path.parent} are")
    if (result := path.parent / "model").exists():
        raise TrainError(
            f"{result} is there already and of no run, and the trained model would be written over it: choose another "
            "folder for the run"
        )
    write_text(path, json.dumps(config, indent=2) + "\n")


def check_stage(folder: Path, stage, config: dict[str, Any], finished: int | None, begun: bool) -> None:
    """Raise TrainError if what a stage did so far, if anything, was done under settings that differ in what they
    compute. What the stage did not know as a setting when it began counts as its default.

    finished: steps of its newest checkpoint, or None; without one nothing has been computed. begun: a stage that stands
    on this one has a checkpoint. What may differ: settings named in the stage's FREE, and more steps, where the
    learning rate does not depend on their number.
    """
    path = folder / "stage.json"
    if finished is None:
        return
    held, free = read_table(path, "kind"), {*getattr(stage, "FREE", ())}
    if getattr(stage, "lr_schedule", None) == "constant" and not begun and finished <= stage.steps:
        free.add("steps")
    defaults = {field.name: field.default for field in fields(stage) if field.name not in held}
    held = json.loads(json.dumps(defaults, default=str)) | held
    held, config = ({k: v for k, v in c.items() if k not in free} for c in (held, config))
    if held != config:
        raise TrainError(
            f"{folder} holds {finished} steps of other settings ({'; '.join(differences(held, config))}): go back to "
            "them, choose another folder for the run, or delete this one to train the stage anew"
        )


def differences(held, wanted, place: str = "") -> list[str]:
    """`place: there held, now wanted` of each leaf at which two configs differ."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        keys = dict.fromkeys([*held, *wanted])
        return [d for k in keys for d in differences(held.get(k), wanted.get(k), f"{place}.{k}" if place else k)]
    if isinstance(held, list) and isinstance(wanted, list) and len(held) == len(wanted):
        return [
            d for i, (h, w) in enumerate(zip(held, wanted, strict=True)) for d in differences(h, w, f"{place}[{i}]")
        ]
    return [] if held == wanted else [f"{place}: there {held}, now {wanted}"]


def describe_stage(stage, examples: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A stage's settings as plain JSON: data by its hash, a function by its name, a model by a hash of its weights."""
    settings = {field.name: getattr(stage, field.name) for field in fields(stage)}
    settings = {k: describe_model(v) if isinstance(v, torch.nn.Module) else v for k, v in settings.items()}
    settings["data"] = fingerprint(examples)
    for name in ("reward", "environment"):
        if name in settings:
            settings[name] = reward_name(settings[name])
    if not isinstance(settings.get("sampler", ""), str):
        settings["sampler"] = type(settings["sampler"]).__name__
    return {"kind": type(stage).__name__, **json.loads(json.dumps(settings))}


def describe_model(model) -> dict[str, Any]:
    """What a run starts from: class, number of parameters, and a hash of some of each weight's values."""
    digest = hashlib.sha256()
    for name, weight in model.state_dict().items():
        flat = weight.detach().flatten()
        digest.update(f"{name} {tuple(weight.shape)}".encode())
        digest.update(flat[:: max(1, len(flat) // 64)].float().cpu().numpy().tobytes())
    count = sum(parameter.numel() for parameter in model.parameters())
    return {"kind": type(model).__name__, "parameters": count, "weights": digest.hexdigest()[:16]}


def fingerprint(examples: Sequence[dict[str, Any]]) -> str:
    """Number and short hash of the examples, which tell whether it is the same data."""
    digest = hashlib.sha256(b"[")  # of the JSON list of them, which is never made as a whole
    for number, example in enumerate(examples):
        text = json.dumps(example, sort_keys=True, default=str)
        digest.update((", " * (number > 0) + text).encode())
    digest.update(b"]")
    return f"{len(examples)} examples, sha256 {digest.hexdigest()[:16]}"


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
