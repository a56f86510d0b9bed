"""Checkpoints of a stage: written whole or not at all, and enough to go on bit for bit.

A checkpoint is a folder `step-00000120` that `transformers` loads as a model (with adapters, `peft` loads them; of a
plain module it holds the state dict as model.safetensors), with beside the weights
    trainer.safetensors   optimizer moments and random states
    trainer.json          step, cursor of the data, counters; versions, and a checksum of every file, itself too
It is written under another name and renamed last, so a kill leaves the one before it. What is read back is held against
the checksums, and against the model and the optimizer at hand: names, shapes and dtypes.
"""

import contextlib
import copy
import importlib.metadata
import random
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from warpup import arrays

from .checksums import check_files, check_sealed, read_checked, seal, write_table
from .errors import TrainError
from .files import check_header, read_json, read_tensors, remove_folder, write_folder, writes
from .model.lora import is_adapted, peft
from .model.optim import StochasticAdamW

PREFIX = "step-"
NAME = re.compile(rf"{PREFIX}\d+")
STATE, TENSORS = "trainer.json", "trainer.safetensors"
CURE = "Delete its folder to go on from the checkpoint before it, or from the beginning of the stage"


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints in a stage's folder, oldest first; folders of other names, such as a copy `step-50.bak`, are none.
    TrainError if the newest is not whole."""
    found = [path for path in Path(folder).glob(f"{PREFIX}*") if NAME.fullmatch(path.name) and path.is_dir()]
    found = sorted((path for path in found if any(path.iterdir())), key=step_of)
    if found and not (found[-1] / STATE).is_file():
        raise TrainError(f"{found[-1] / STATE} is missing. {CURE}")
    return [path for path in found if (path / STATE).is_file()]


def latest(folder: Path) -> Path | None:
    """Newest checkpoint of a stage's folder."""
    return next(iter(reversed(checkpoints(folder))), None)


def step_of(checkpoint: Path) -> int:
    """Number of finished steps of a checkpoint."""
    return int(checkpoint.name.removeprefix(PREFIX))


def stale(checkpoint: Path) -> int:
    """How many measurements on held-out data its stage had had since the best one."""
    return read_state(checkpoint)["stale"]


def versions() -> dict[str, str]:
    """Those of what a checkpoint's bits depend on."""
    return {
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "warpup": arrays.build_info()["version"],
    }


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Write trainer.json to a folder that holds all its other files, with checksums of them and of itself."""
    write_table(folder / STATE, {**state, "versions": versions()})


def read_state(checkpoint: Path) -> dict[str, Any]:
    """What trainer.json holds, if it is what was written, of the step that the folder is named after."""
    path = checkpoint / STATE
    held = read_checked(path, "step", "versions", cure=CURE)
    if held["step"] != step_of(checkpoint):
        raise TrainError(f"{path} is that of step {held['step']}, and its folder is called {checkpoint.name}. {CURE}")
    return held


def check_saved_model(folder: Path) -> None:
    """TrainError unless the files of a finished model, or of a checkpoint but for what the trainer alone needs, are as
    they were written. A folder without checksums, or a checkpoint's copy of another name, is anyone's model."""
    check_sealed(folder)
    if NAME.fullmatch(folder.name) and (folder / STATE).is_file():
        check_files(folder, read_state(folder)["files"], TENSORS, cure=CURE)


def check_tensors(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """TrainError, naming file and tensor, unless `found` has the names, shapes and dtypes of `wanted`."""
    for name in sorted(found.keys() ^ wanted.keys()):
        raise TrainError(f"{path}: {'not expected' if name in found else 'missing'} is {name}")
    for name, tensor in found.items():
        got, expected = ((tuple(t.shape), t.dtype) for t in (tensor, wanted[name]))
        if got != expected:
            raise TrainError(f"{path}: {name} is {got[1]} {got[0]}, expected {expected[1]} {expected[0]}")


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
    if not writes():
        return target

    def fill(path: Path):
        save_weights(model, tokenizer, path)
        found, rng = random_states(generator)
        found |= {f"state.{n}": tensor.detach().contiguous() for n, tensor in enumerate(tensors)}
        for index, slots in optimizer.state_dict()["state"].items():
            for name, value in slots.items():
                found[f"optimizer.{index}.{name}"] = torch.as_tensor(value).detach().contiguous()
        save_file(found, path / TENSORS)
        write_state(path, {"step": step, "random": rng, **state})

    write_folder(target, fill)
    for old in checkpoints(folder)[:-keep_last]:
        remove_folder(old)
    for rest in target.parent.glob(f".{PREFIX}*"):  # of a kill while one was written or deleted
        shutil.rmtree(rest)
    return target


def restore(
    checkpoint: Path, model, optimizer, generator: torch.Generator, tensors: Sequence[torch.Tensor] = ()
) -> dict[str, Any]:
    """Load everything that `save` wrote back into the given objects; returns `state` with "step" and "versions".
    TrainError, before the optimizer or a random state is touched, on a file that is damaged or of other objects."""
    state = read_state(checkpoint)
    check_files(checkpoint, state["files"], cure=CURE)
    found = read_tensors(checkpoint / TENSORS)
    parts: dict[str, dict[str, Tensor]] = {"optimizer": {}, "state": {}, "random": {}}
    for key, value in found.items():
        kind, _, name = key.partition(".")
        parts.setdefault(kind, {})[name] = value
    wanted = {"state": {str(n): tensor for n, tensor in enumerate(tensors)}}
    wanted["optimizer"] = expected_moments(optimizer, parts["optimizer"])
    for kind, those in wanted.items():
        check_tensors(checkpoint / TENSORS, parts[kind], those)
    _load_weights(model, checkpoint)
    for n, tensor in enumerate(tensors):
        tensor.copy_(parts["state"][str(n)])
    packed = optimizer.state_dict()
    packed["state"] = {}
    for key, value in parts["optimizer"].items():
        index, _, name = key.partition(".")
        packed["state"].setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(packed)
    set_random_states(generator, found, state.pop("random"))
    return state


def expected_moments(optimizer: torch.optim.Optimizer, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What an Adam's state must be like, by `index.name`: of each parameter that has one (one that never had a gradient
    has none) all moments, in its shape and dtype; the step is a number. Of other kinds, what was found."""
    if not isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW | StochasticAdamW):
        return dict(found)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    have, names = ({key.partition(".")[place] for key in found} for place in (0, 2))
    step = torch.zeros(())
    return {
        f"{index}.{name}": step if name == "step" else parameter.detach()
        for index, parameter in enumerate(parameters)
        if str(index) in have
        for name in names
    }


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


def save_model(model, tokenizer, folder: Path) -> None:
    """`save_weights` to a folder that appears at once, with checksums of all its files; replaces one of that name."""

    def fill(path: Path) -> None:
        save_weights(model, tokenizer, path)
        seal(path)

    write_folder(folder, fill)


def load_weights(model, folder: Path) -> None:
    """Load a saved model's weights into `model` in place. TrainError, naming the file, unless they are its own: names,
    shapes, dtypes, and in a checkpoint the checksums."""
    check_saved_model(folder)
    _load_weights(model, folder)


def _load_weights(model, folder: Path) -> None:
    if is_adapted(model):
        load_adapters(model, folder)
    elif hasattr(model, "from_pretrained"):
        # Its own config, not the folder's: without one there transformers would build its default model.
        loaded = load_whole(type(model), folder, config=copy.deepcopy(model.config), dtype=model.dtype)
        check_tensors(folder, loaded.state_dict(), model.state_dict())
        model.load_state_dict(loaded.state_dict())
    else:
        path = folder / "model.safetensors"
        found = read_tensors(path)
        check_tensors(path, found, model.state_dict())
        model.load_state_dict(found)


def load_adapters(model, folder: Path, *, cast: bool = False) -> None:
    """Load saved adapters into a model with adapters, in place; TrainError unless they are its own. cast: in any
    dtype."""
    path, wanted = folder / "adapter_model.safetensors", peft().get_peft_model_state_dict(model)
    found = read_tensors(path)
    if cast:
        found = {name: tensor.to(wanted[name].dtype) if name in wanted else tensor for name, tensor in found.items()}
    check_tensors(path, found, wanted)
    peft().set_peft_model_state_dict(model, found)


def load_whole(kind, folder: Path, **options):
    """`kind.from_pretrained(folder, ...)` with all weights from the folder. TrainError names the file that is damaged,
    or the weights that are not there, to which transformers would give random values."""
    with loading(folder):
        model, told = kind.from_pretrained(folder, output_loading_info=True, **options)
    if missing := sorted(told["missing_keys"]):
        raise TrainError(f"cannot load the model in {folder}: its files lack {shortened(missing)}")
    return model


@contextlib.contextmanager
def loading(folder: Path) -> Iterator[None]:
    """Within, transformers or peft read a folder, whose files are held against their formats first: their own errors
    seldom say which file it was."""
    for path in sorted(folder.glob("*.json")):
        read_json(path)
    for path in sorted(folder.glob("*.safetensors")):
        check_header(path)
    try:
        yield
    except (TrainError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever they meet in a file that is not as they expect
        said = str(error).strip().splitlines() or [""]
        raise TrainError(f"cannot load the model in {folder}: {said[0] or type(error).__name__}") from error


def shortened(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


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
