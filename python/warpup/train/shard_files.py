"""The shards of a model and its moments in a checkpoint, one safetensors file a rank.

torch.distributed.checkpoint writes and reads them, so any number of processes can, each what it needs. In its format of
safetensors (`HuggingFaceStorageWriter`): that of its own is read by pickle, which runs what a file holds.
"""

from __future__ import annotations

import contextlib
import shutil
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException

from . import ranks
from .errors import TrainError
from .files import check_header

FOLDER = "shards"  # of a checkpoint's folder; torch reads every safetensors file that it finds in one


def write_shards(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write each rank's part of these DTensors to a folder, which is made anew. All ranks call it; it returns when all
    have written."""
    ranks.from_first(lambda: shutil.rmtree(folder, ignore_errors=True))  # of a kill, maybe of more ranks
    with explained(f"cannot write {folder}"):
        dcp.save(dict(tensors), storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True))


def tensors_in_shards(folder: Path) -> dict[str, Tensor]:
    """By name, tensors without data of the whole shapes and the dtypes that a checkpoint has in shards; empty where it
    has none. TrainError that names a damaged file."""
    if not (folder / FOLDER).is_dir():
        return {}
    for file in sorted((folder / FOLDER).iterdir()):
        check_header(file)
    held: Any = dcp.HuggingFaceStorageReader(str(folder / FOLDER)).read_metadata().state_dict_metadata  # of tensors all
    return {name: torch.empty(m.size, dtype=m.properties.dtype, device="meta") for name, m in held.items()}


def read_shards(folder: Path, into: Mapping[str, Tensor]) -> None:
    """Read a checkpoint's tensors by their names, whole or the rank's part of a DTensor, into the given ones; each rank
    by itself."""
    if into:
        with explained(f"cannot read the shards in {folder}"), torch.no_grad():
            dcp.load(dict(into), storage_reader=dcp.HuggingFaceStorageReader(str(folder / FOLDER)), no_dist=True)


@contextlib.contextmanager
def explained(said: str) -> Iterator[None]:
    """An error of torch.distributed.checkpoint is a TrainError that begins with what was to be done."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
            yield
    except CheckpointException as error:  # which is no Exception
        cause = next(iter(error.failures.values()))[0]
        raise TrainError(f"{said}: {cause}") from error
