"""A model's key/value cache while it generates: written in place, its rows copied and dropped."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from ..errors import TrainError

NAMES = ("cache", "past_key_values", "cache_params")  # of the cache in a model's forward, the newest first


def cache_argument(module: type[torch.nn.Module]) -> str | None:
    """What a module's forward calls its cache; None where it takes none."""
    return next((name for name in NAMES if name in inspect.signature(module.forward).parameters), None)


class CachedModel:
    """A causal language model and the cache of the rows at work, at most `capacity` tokens each."""

    def __init__(self, model, capacity: int):
        self.model = model
        forward = model.get_base_model() if hasattr(model, "get_base_model") else model
        arguments = inspect.signature(type(forward).forward).parameters
        name = cache_argument(type(forward))
        if name is None:
            raise TrainError(
                f"{type(forward).__name__}: its forward takes none of {', '.join(NAMES)}, so there is no cache to "
                "generate with"
            )
        if any(hasattr(module, "recurrent_states") for module in forward.modules()):
            raise TrainError(f"{type(forward).__name__} keeps its state in its layers, where rows cannot be copied")
        # Of the model's own kind: recurrent and sliding-window layers keep theirs.
        cache = DynamicCache(config=model.config)
        cache.layers = [InPlaceLayer(capacity) if type(layer) is DynamicLayer else layer for layer in cache.layers]
        self.cache: Any = cache  # of layers whose methods transformers does not tell of all kinds
        self.fixed = {name: cache, "use_cache": True}
        if "logits_to_keep" in arguments:  # of a prompt only the last position's logits are wanted
            self.fixed["logits_to_keep"] = 1
        self.positions = "position_ids" in arguments
        # A model without attention has read the padding's mask with the prompt; later tokens have none.
        self.attends = any(isinstance(layer, DynamicLayer) for layer in cache.layers)

    def __call__(self, ids: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        """Logits (B, V) after the last of ids (B, n); mask (B, all tokens so far); position (B, n)."""
        inputs: dict[str, Tensor | None] = {"position_ids": position} if self.positions else {}
        inputs["attention_mask"] = mask if self.attends or ids.shape[1] == mask.shape[1] else None
        return self.model(input_ids=ids, **inputs, **self.fixed).logits[:, -1]

    def peek(self, ids: Tensor, mask: Tensor, position: Tensor) -> Tensor:
        """The same for ids that are forgotten at once: the next call goes on from before them."""
        self.check_peek()
        lengths = [layer.get_seq_length() for layer in self.cache.layers]
        logits = self(ids, mask, position)
        for layer, length in zip(self.cache.layers, lengths, strict=True):
            layer.crop(length)
        return logits

    def check_peek(self) -> None:
        """Raise TrainError where a layer cannot forget."""
        kinds = {type(layer).__name__ for layer in self.cache.layers if not isinstance(layer, InPlaceLayer)}
        if kinds:
            raise TrainError(
                f"{type(self.model).__name__}: its cache has layers that cannot go back ({', '.join(sorted(kinds))}), "
                "so a thinking budget cannot probe it; leave probe_every out"
            )

    def select(self, rows: Tensor) -> None:
        """Keep these rows, in this order; one may stand several times."""
        for layer in self.cache.layers:
            layer.reorder_cache(rows)


class InPlaceLayer(DynamicLayer):
    """Keys and values (B, H, capacity, D) allocated once, where `DynamicLayer` copies them all for every token."""

    def __init__(self, capacity: int):
        super().__init__()
        self.capacity, self.length, self.is_initialized = capacity, 0, False

    def lazy_initialization(self, key_states, value_states):
        self.dtype, self.device = key_states.dtype, key_states.device
        self.buffers = [x.new_empty(*x.shape[:2], self.capacity, x.shape[3]) for x in (key_states, value_states)]
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, start : self.length] = new
        return self._views()

    def get_seq_length(self) -> int:
        return self.length

    def crop(self, max_length: int) -> None:
        self.length = max_length
        self._views()

    def reorder_cache(self, rows):
        taken = [buffer.new_empty(len(rows), *buffer.shape[1:]) for buffer in self.buffers]
        for new, old in zip(taken, self.buffers, strict=True):
            torch.index_select(old[:, :, : self.length], 0, rows, out=new[:, :, : self.length])
        self.buffers = taken
        self._views()

    def _views(self):
        self.keys, self.values = (buffer[:, :, : self.length] for buffer in self.buffers)
        return self.keys, self.values
