"""A recipe: stages that train one model in turn, in one folder that any later call resumes or reuses.

OUT/config.json            what the run is; a folder that holds another run is refused
OUT/metrics.jsonl          one line a step
OUT/1-warmup/step-...      newest checkpoint of each stage (see checkpoint.py)
OUT/model                  the trained model, as `transformers` saves it
"""

import contextlib
import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import checkpoint
from .batch import check_tokenizer
from .data import examples_of, fingerprint
from .errors import Interrupted, TrainError
from .log import MetricsLog, Report, quiet
from .rewards import load_reward, reward_name
from .run import HeldOut, StageRun


@dataclass
class Recipe:
    """Stages, each with settings as fields and `train(run, examples)`; see `Warmup` and `RLVR`."""

    stages: Sequence[Any]

    def run(
        self,
        model,
        tokenizer,
        out: str | Path,
        *,
        seed: int = 0,
        report: Report = quiet,
        held_out: HeldOut | None = None,
    ):
        """Train `model` in place, stage after stage, in folder `out`; returns it.

        Called again with the same arguments it goes on where it stopped, and a finished run is only loaded. A run that
        was stopped and resumed with the same number of threads has the weights of one that was not, bit for bit.
        Raises TrainError on wrong use, Interrupted after Ctrl-C.
        """
        out = Path(out)
        check_tokenizer(model, tokenizer)
        data = [examples_of(stage) for stage in self.stages]
        for stage in self.stages:
            if hasattr(stage, "reward"):
                load_reward(stage.reward)
        config = {
            "seed": seed,
            "model": describe_model(model),
            "stages": [describe(s, d) for s, d in zip(self.stages, data, strict=True)],
        }
        with locked(out):
            check_config(out / "config.json", config)
            log = MetricsLog(out / "metrics.jsonl")
            newest = [checkpoint.latest(out / name) for name in self.names()]
            for number, (name, stage, examples) in enumerate(zip(self.names(), self.stages, data, strict=True)):
                if newest[number] and checkpoint.step_of(newest[number]) == stage.steps:
                    checkpoint.load_weights(model, newest[number])
                    continue
                seed_everything(seed)
                run = StageRun(name, out / name, model, tokenizer, seed=seed, log=log, report=report, held_out=held_out)
                try:
                    stage.train(run, examples)
                except Interrupted as stop:
                    raise Interrupted(f"{stop}; the same command resumes it") from None
            if not (out / "model").exists():
                checkpoint.write_folder(
                    out / "model", lambda path: (model.save_pretrained(path), tokenizer.save_pretrained(path))
                )
        return model.eval()

    def names(self) -> list[str]:
        """Folder names of the stages: 1-warmup, 2-rlvr."""
        return [f"{i}-{type(stage).__name__.lower()}" for i, stage in enumerate(self.stages, 1)]


def newest_model(out: str | Path) -> Path:
    """Folder of a run's newest weights: the finished model, else the newest checkpoint. TrainError if there is none.

    A plain model folder is its own newest model.
    """
    out = Path(out)
    if not out.is_dir():
        raise TrainError(f"no folder {out}")
    if (out / "model" / "config.json").is_file():
        return out / "model"
    found = [checkpoint.latest(folder) for folder in sorted(out.iterdir(), reverse=True) if folder.is_dir()]
    found = [path for path in found if path]
    if found:
        return found[0]
    if (out / "config.json").is_file() and not (out / "metrics.jsonl").exists():
        return out
    raise TrainError(f"{out} holds no model and no checkpoint")


def load_model(folder: str | Path):
    """(model, tokenizer) of a folder that `transformers` saved; float32. TrainError naming what is missing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise TrainError(f"{folder} is not a saved model: it has no config.json")
    try:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise TrainError(f"cannot load the model in {folder}: {str(error).strip().splitlines()[0]}") from error
    check_tokenizer(model, tokenizer)
    return use_experts(model), tokenizer


def use_experts(model):
    """The model, its routed experts, if it has some that transformers lets us replace, computed by `moe_experts`."""
    if getattr(model, "_can_set_experts_implementation", bool)():
        import warpup.integrations.transformers  # noqa: F401  registers the implementation

        model.set_experts_implementation("warpup")
    return model


def describe(stage, examples) -> dict[str, Any]:
    """A stage's settings as plain JSON: data by its hash, a function by its name."""
    settings = {field.name: getattr(stage, field.name) for field in fields(stage)}
    settings["data"] = fingerprint(examples)
    if "reward" in settings:
        settings["reward"] = reward_name(settings["reward"])
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


def check_config(path: Path, config: dict[str, Any]) -> None:
    """Write the config of a new run; raise TrainError, naming the differences, if the folder holds another one."""
    if path.exists():
        held = json.loads(path.read_text())
        if held != config:
            raise TrainError(
                f"{path.parent} holds another run ({'; '.join(differences(held, config))}): choose another folder"
            )
        return
    temporary = path.with_suffix(".partial")
    temporary.write_text(json.dumps(config, indent=2) + "\n")
    temporary.replace(path)


def differences(held, wanted, place: str = "") -> list[str]:
    """`place: held, now wanted` of each leaf at which two configs differ."""
    if isinstance(held, dict) and isinstance(wanted, dict):
        keys = dict.fromkeys([*held, *wanted])
        return [d for k in keys for d in differences(held.get(k), wanted.get(k), f"{place}.{k}" if place else k)]
    if isinstance(held, list) and isinstance(wanted, list) and len(held) == len(wanted):
        return [
            d for i, (h, w) in enumerate(zip(held, wanted, strict=True)) for d in differences(h, w, f"{place}[{i}]")
        ]
    return [] if held == wanted else [f"{place}: there {held}, now {wanted}"]


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def locked(out: Path) -> Iterator[None]:
    """Hold folder `out` (made if need be) for this process; TrainError if another one is at work there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        handle = (out / ".lock").open("w")
    except OSError as error:
        raise TrainError(f"cannot write to {out}: {error.strerror}") from error
    with handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks on this system
            pass
        except OSError:
            raise TrainError(f"another process is training in {out}") from None
        yield
