"""How much goes through a model at once, from what it keeps of a token, for the backward pass or in its cache, and what
is free."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warpup._evaluating import evaluating

from .. import ranks
from .batch import collate
from .cache import CachedModel
from .fsdp import is_sharded
from .heads import Head
from .precision import computing

MOST = 16384  # more at once gains nothing: products are large enough
MOST_ROWS = 256  # the same of sampling
LOGITS = 3 * 4  # bytes of a logit that is sampled from: as it came, in float32, and what filters make of it


def tokens_that_fit(model, dtype: torch.dtype | None = None, most: int = MOST) -> int:
    """Padded tokens whose forward and backward pass take half of the memory that is free, at least 1, at most `most`.

    dtype: what products are made in, as for `computing`. The other half is for what a step needs beside them, and for
    what the estimate does not see, such as attention that keeps a matrix of its weights. Where the free memory is not
    known: `most`.
    """
    free = free_memory(next(model.parameters()).device)
    if free is None:
        return most
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    trained //= ranks.size() if is_sharded(model) else 1
    free -= 3 * 4 * trained  # their gradients and AdamW's two moments, in float32, which are not there yet
    return max(1, min(most, int(free / 2 / max(1.0, bytes_of_a_token(model, dtype)))))


def bytes_of_a_token(model, dtype: torch.dtype | None = None) -> float:
    """What a forward pass keeps for the backward pass, measured on a few tokens; weights do not count."""
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 64
    length, vocab = min(64, limit), model.get_input_embeddings().num_embeddings
    ids = [n % vocab for n in range(length)]
    device = next(model.parameters()).device
    batch = collate([(ids[:1], ids[1:])] * 2, range(2), 0, device)
    ours = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in ours:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a stage makes a `Head` too, and says what is to be said
        head = Head(model)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor), computing(model, dtype):
            hidden = head.hidden(batch)  # held until all is counted: a place in memory that is free is taken again
    found = sum(kept.values()) / (2 * length)
    del hidden
    return found


def rows_that_fit(model, length: int, dtype: torch.dtype | None = None, most: int = MOST_ROWS) -> int:
    """Completions of `length` tokens, prompts included, whose cache and logits take half of the memory that is free, at
    least 1, at most `most`. The other half is for the copy of the cache when rows leave it. length 0: none is sampled.
    dtype: as for `computing`.
    """
    free = free_memory(next(model.parameters()).device)
    if free is None or length == 0:
        return most
    fixed, each = bytes_of_a_cached_row(model, dtype)
    row = fixed + each * length + LOGITS * model.get_input_embeddings().num_embeddings
    return max(1, min(most, int(free / 2 / row)))


@torch.no_grad()
def bytes_of_a_cached_row(model, dtype: torch.dtype | None = None) -> tuple[float, float]:
    """What the cache keeps of a row, whatever its length (recurrent layers), and of each token, measured on a few;
    sliding windows count as if they were open."""
    device, vocab = next(model.parameters()).device, model.get_input_embeddings().num_embeddings
    sizes = []
    with evaluating(model):
        for length in (4, 8):
            cached, ids = CachedModel(model, length), torch.arange(2 * length, device=device).view(2, length) % vocab
            with computing(model, dtype):
                cached(ids, torch.ones_like(ids), torch.arange(length, device=device).expand(2, length))
            held = [x for layer in cached.cache.layers for value in vars(layer).values() for x in tensors_in(value)]
            storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in held}
            sizes.append(sum(storages.values()) / 2)
    each = (sizes[1] - sizes[0]) / 4
    return max(0.0, sizes[0] - 4 * each), each


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a value: itself, or those of a list, tuple or dict."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from tensors_in(part)


def free_memory(device: torch.device, group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that may still be taken: of a GPU, of this machine, of the control group that the process is in. None where
    the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = []
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    except (OSError, KeyError, ValueError):
        if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
            return None
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)  # of all there is, half
    for limit, used in (("max", "current"), ("limit_in_bytes", "usage_in_bytes")):  # of version 2, and 1
        try:
            room = int((group / f"memory.{limit}").read_text()) - int((group / f"memory.{used}").read_text())
            stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            found.append(room + int(stat["active_file"]) + int(stat["inactive_file"]))  # files that were read give way
        except (OSError, ValueError, KeyError):  # no such files, or no limit
            group = group / "memory"
    return min(found)
