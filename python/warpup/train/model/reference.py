"""The model as it was: the trainable weights of a moment, put back for as long as a `with` is open."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from .fsdp import is_sharded, reshard


class Snapshot:
    """A copy of a model's trainable weights. The others do not change, so of a model with adapters it is small, and
    the frozen base serves as its own reference. Of a sharded model each rank copies its shards."""

    def __init__(self, model):
        reshard(model)
        self.model = model
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.values = [p.detach().clone() for p in self.parameters]

    def take(self) -> None:
        """The weights of now, in place of those that were kept."""
        reshard(self.model)
        for parameter, value in zip(self.parameters, self.values, strict=True):
            value.copy_(parameter.detach())

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """While open, the model has the weights of the snapshot; nothing may need a gradient of them."""
        torch.clear_autocast_cache()  # which would go on with the casts of the weights of now
        try:
            with self._exchanged() if is_sharded(self.model) else self._replaced():
                yield
        finally:
            torch.clear_autocast_cache()

    @contextlib.contextmanager
    def _replaced(self) -> Iterator[None]:
        now = [p.data for p in self.parameters]
        try:
            for parameter, value in zip(self.parameters, self.values, strict=True):
                parameter.data = value
            yield
        finally:
            for parameter, value in zip(self.parameters, now, strict=True):
                parameter.data = value

    @contextlib.contextmanager
    def _exchanged(self) -> Iterator[None]:
        """FSDP2 reads its shards where they are: those of now and the kept ones change places in the memory of both."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()
            self.model.unshard()  # the root, whose weights a loss may be about to read

    @torch.no_grad()
    def _exchange(self) -> None:
        reshard(self.model)
        for parameter, value in zip(self.parameters, self.values, strict=True):
            now, kept = parameter.to_local(), value.to_local()
            before = now.clone()
            now.copy_(kept)
            kept.copy_(before)
