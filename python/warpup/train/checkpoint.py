"""Checkpoints of a stage: written whole or not at all, and enough to go on bit for bit.

A checkpoint is a folder `step-00000120` that `transformers` loads as a model (with adapters, `peft` loads them; of a
plain module it holds the state dict as model.safetensors), with beside the weights
    trainer.safetensors   optimizer moments and random states
    trainer.json          step, cursor of the data, counters; versions, and a checksum of every file, itself too
Of a model in shards it holds, in place of a model, what each rank has of weights and moments (shard_files.py).
It is written under another name and renamed last, so a kill leaves the one before it. What is read back is held against
the checksums, and against the model and the optimizer at hand: names, shapes and dtypes.
"""

import contextlib
import copy
import importlib.metadata
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor

from warpup import arrays

from .checksums import check_files, check_sealed, read_checked, seal, write_table
from .errors import TrainError
from .files import check_header, read_json, read_tensors, remove_folder, write_folder, writes
from .model.fsdp import as_shards, class_of, full_state, is_sharded, load_state, own_tensors
from .model.lora import is_adapted, peft
from .model.optim import expected_moments
from .random_states import random_states, set_random_states
from .shard_files import FOLDER, read_shards, tensors_in_shards, write_shards

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
    belong to it. All ranks call it: the first one writes, and each its shards."""
    target = Path(folder) / f"{PREFIX}{step:08d}"
    if not (writes() or is_sharded(model)):
        return target
    found, rng = random_states(generator)
    found |= {f"state.{n}": tensor.detach().contiguous() for n, tensor in enumerate(tensors)}
    for index, slots in optimizer.state_dict()["state"].items():
        for name, value in slots.items():
            found[f"optimizer.{index}.{name}"] = torch.as_tensor(value).detach().contiguous()
    beside = target.with_name(f".{target.name}.shards")
    if is_sharded(model):
        found |= {f"model.{name}": tensor for name, tensor in own_tensors(model).items()}
        write_shards(beside, {name: found.pop(name) for name in list(found) if isinstance(found[name], DTensor)})
        if not writes():
            return target

    def fill(path: Path):
        if is_sharded(model):
            beside.rename(path / FOLDER)
        else:
            save_weights(model, tokenizer, path)
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
    in_shards = tensors_in_shards(checkpoint)
    parts: dict[str, dict[str, Tensor]] = {"optimizer": {}, "state": {}}
    for key, value in {**found, **in_shards}.items():
        kind, _, name = key.partition(".")
        parts.setdefault(kind, {})[name] = value
    wanted = {"state": {str(n): tensor for n, tensor in enumerate(tensors)}}
    wanted["optimizer"] = expected_moments(optimizer, parts["optimizer"])
    for kind, those in wanted.items():
        check_tensors(checkpoint / TENSORS, parts[kind], those)
    _load_weights(model, checkpoint)
    # What is in shards is read into tensors like the weights it belongs to; what is whole is cut where these are.
    to_read = {f"state.{n}": tensor for n, tensor in wanted["state"].items() if f"state.{n}" in in_shards}
    load_state(wanted["state"], {n: value for n, value in parts["state"].items() if f"state.{n}" in found})
    parameters = [p.detach() for group in optimizer.param_groups for p in group["params"]]
    packed = optimizer.state_dict()
    packed["state"] = {}
    for key, value in parts["optimizer"].items():
        index, _, name = key.partition(".")
        like = parameters[int(index)]
        if f"optimizer.{key}" in in_shards:
            value = to_read[f"optimizer.{key}"] = torch.empty_like(like, dtype=value.dtype)
        elif isinstance(like, DTensor) and value.shape == like.shape:
            value = as_shards(value, like)
        packed["state"].setdefault(int(index), {})[name] = value
    read_shards(checkpoint, to_read)
    optimizer.load_state_dict(packed)
    set_random_states(generator, found, state.pop("random"))
    return state


def save_weights(model, tokenizer, folder: Path, state: dict[str, Tensor] | None = None) -> None:
    """Write the model, and the tokenizer if there is one, to an existing folder. state: of a sharded model its
    `full_state`."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder, **({} if state is None else {"state_dict": state}))
    else:
        tensors = model.state_dict() if state is None else state
        save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "model.safetensors")
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def save_model(model, tokenizer, folder: Path) -> None:
    """`save_weights` to a folder that appears at once, with checksums of all its files; replaces one of that name. All
    ranks call it, the first one writes."""
    state = full_state(model)

    def fill(path: Path) -> None:
        save_weights(model, tokenizer, path, state)
        seal(path)

    write_folder(folder, fill)


def load_weights(model, folder: Path) -> None:
    """Load a saved model's weights into `model` in place. TrainError, naming the file, unless they are its own: names,
    shapes, dtypes, and in a checkpoint the checksums."""
    check_saved_model(folder)
    _load_weights(model, folder)


def _load_weights(model, folder: Path) -> None:
    if in_shards := tensors_in_shards(folder):
        own = {f"model.{name}": tensor for name, tensor in own_tensors(model).items()}
        plain = {name: tensor for name, tensor in read_tensors(folder / TENSORS).items() if name.startswith("model.")}
        in_shards = {name: tensor for name, tensor in in_shards.items() if name.startswith("model.")}
        check_tensors(folder, plain | in_shards, own)
        load_state(own, plain)
        read_shards(folder, {name: own[name] for name in in_shards})
    elif is_adapted(model):
        load_adapters(model, folder)
    elif hasattr(model, "from_pretrained"):
        # Its own config, not the folder's: without one there transformers would build its default model.
        # In the widest of its own dtypes, and from there to each one's, which is exact: transformers reads all in one
        # dtype, but for what it keeps in float32 whatever it is held in here (routers of mixtures).
        own = model.state_dict()
        widest = max((t.dtype for t in own.values() if t.is_floating_point()), key=lambda dtype: dtype.itemsize)
        loaded = load_whole(class_of(model), folder, config=copy.deepcopy(model.config), dtype=widest)
        for name, tensor in (*loaded.named_parameters(), *loaded.named_buffers()):
            if name in own:
                tensor.data = tensor.data.to(own[name].dtype)
        check_tensors(folder, loaded.state_dict(), own)
        load_state(own, loaded.state_dict())
    else:
        path = folder / "model.safetensors"
        found = read_tensors(path)
        check_tensors(path, found, model.state_dict())
        load_state(model.state_dict(), found)


def load_adapters(model, folder: Path, *, cast: bool = False) -> None:
    """Load saved adapters into a model with adapters, in place; TrainError unless they are its own. cast: in any
    dtype."""
    path, wanted = folder / "adapter_model.safetensors", peft().get_peft_model_state_dict(model)
    found = read_tensors(path)
    if cast:
        found = {name: tensor.to(wanted[name].dtype) if name in wanted else tensor for name, tensor in found.items()}
    check_tensors(path, found, wanted)
    load_state(wanted, found)


def load_whole(kind, folder: Path, **options):
    """`kind.from_pretrained(folder, ...)` with all weights from the folder. TrainError names the file that is damaged,
    or the weights that are not there, to which transformers would give random values."""
    with loading(folder):
        model, told = kind.from_pretrained(folder, output_loading_info=True, **options)
    if missing := sorted(told["missing_keys"]):
        raise TrainError(f"cannot load the model in {folder}: its files lack {shortened(missing)}")
    return model


@contextlib.contextmanager
def loading(folder: Path, what: str = "model", hint: str = "") -> Iterator[None]:
    """Within, transformers or peft read what a folder holds. Its files are held against their formats first: the
    libraries' own errors seldom say which file it was."""
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
        raise TrainError(f"cannot load the {what} in {folder}: {said[0] or type(error).__name__}{hint}") from error


def shortened(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
