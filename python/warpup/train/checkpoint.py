"""Checkpoints of a stage: written whole or not at all, and enough to go on bit for bit.

A checkpoint is a folder `step-00000120` that `transformers` loads as a model (with adapters, `peft` loads them; of a
plain module it holds the state dict as model.safetensors), with beside the weights
    trainer.safetensors   optimizer moments and random states
    trainer.json          step, cursor of the data, counters
It is written under another name and renamed last, so a kill leaves the one before it.
"""

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from .errors import TrainError
from .files import write_folder
from .model.lora import is_adapted, peft

PREFIX = "step-"


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints in a stage's folder, oldest first."""
    return sorted(path for path in Path(folder).glob(f"{PREFIX}*") if (path / "trainer.json").is_file())


def latest(folder: Path) -> Path | None:
    """Newest complete checkpoint of a stage's folder."""
    return next(iter(reversed(checkpoints(folder))), None)


def step_of(checkpoint: Path) -> int:
    """Number of finished steps of a checkpoint."""
    return int(checkpoint.name.removeprefix(PREFIX))


def stale(checkpoint: Path) -> int:
    """How many measurements on held-out data its stage had had since the best one."""
    return json.loads((checkpoint / "trainer.json").read_text())["stale"]


def save(
    folder: Path,
    step: int,
    model,
    tokenizer,
    optimizer,
    generator: torch.Generator,
    state: dict[str, Any],
    *,
    tensors: Sequence[torch.Tensor] = (),
    keep_last: int = 1,
) -> Path:
    """Write the checkpoint of `step` and delete all but the newest `keep_last`. `state` must be plain JSON; `tensors`
    belong to it."""
    target = Path(folder) / f"{PREFIX}{step:08d}"

    def fill(path: Path):
        save_weights(model, tokenizer, path)
        found, rng = random_states(generator)
        found |= {f"state.{n}": tensor.detach().contiguous() for n, tensor in enumerate(tensors)}
        for index, slots in optimizer.state_dict()["state"].items():
            for name, value in slots.items():
                found[f"optimizer.{index}.{name}"] = torch.as_tensor(value).detach().contiguous()
        save_file(found, path / "trainer.safetensors")
        (path / "trainer.json").write_text(json.dumps({"step": step, "random": rng, **state}))

    write_folder(target, fill)
    for old in checkpoints(folder)[:-keep_last]:
        shutil.rmtree(old)
    return target


def restore(
    checkpoint: Path, model, optimizer, generator: torch.Generator, tensors: Sequence[torch.Tensor] = ()
) -> dict[str, Any]:
    """Load everything that `save` wrote back into the given objects; returns `state` with "step"."""
    load_weights(model, checkpoint)
    found = load_file(checkpoint / "trainer.safetensors")
    state = json.loads((checkpoint / "trainer.json").read_text())
    packed = optimizer.state_dict()
    packed["state"] = {}
    for n, tensor in enumerate(tensors):
        tensor.copy_(found[f"state.{n}"])
    for key, value in found.items():
        if key.startswith("optimizer."):
            _, index, name = key.split(".")
            packed["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(packed)
    set_random_states(generator, found, state.pop("random"))
    return state


def save_weights(model, tokenizer, folder: Path) -> None:
    """Write the model, and the tokenizer if there is one, to an existing folder."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    else:
        save_file(
            {name: value.contiguous() for name, value in model.state_dict().items()}, folder / "model.safetensors"
        )
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def load_weights(model, folder: Path) -> None:
    """Load a saved model's weights into `model` in place."""
    try:
        if is_adapted(model):
            peft().set_peft_model_state_dict(model, load_file(folder / "adapter_model.safetensors"))
        elif hasattr(model, "from_pretrained"):
            model.load_state_dict(type(model).from_pretrained(folder, dtype=model.dtype).state_dict())
        else:
            model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, RuntimeError, ValueError) as error:
        raise TrainError(f"cannot load the weights in {folder}: {str(error).splitlines()[0]}") from error


def random_states(generator: torch.Generator) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """States of the run's generator and of the global ones of torch, NumPy and Python: tensors and plain JSON."""
    tensors = {"random.generator": generator.get_state(), "random.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    kind, keys, *rest = np.random.get_state()
    version, internal, gauss = random.getstate()
    return tensors, {"numpy": [kind, keys.tolist(), *rest], "python": [version, list(internal), gauss]}


def set_random_states(generator: torch.Generator, tensors: dict[str, torch.Tensor], plain: dict[str, Any]) -> None:
    """Undo to what `random_states` returned."""
    generator.set_state(tensors["random.generator"])
    torch.set_rng_state(tensors["random.torch"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    kind, keys, *rest = plain["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))
    version, internal, gauss = plain["python"]
    random.setstate((version, tuple(internal), gauss))
