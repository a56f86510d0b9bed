"""The model as it was: the trainable weights of a moment, put back for as long as a `with` is open."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


class Snapshot:
    """A copy of a model's trainable weights. The others do not change, so of a model with adapters it is small, and
    the frozen base serves as its own reference."""

    def __init__(self, model: nn.Module):
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.values = [p.detach().clone() for p in self.parameters]

    def take(self) -> None:
        """The weights of now, in place of those that were kept."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            value.copy_(parameter.detach())

    @contextlib.contextmanager
    def restored(self) -> Iterator[None]:
        """While open, the model has the weights of the snapshot; nothing may need a gradient of them."""
        now = [p.data for p in self.parameters]
        with torch.no_grad():
            try:
                for parameter, value in zip(self.parameters, self.values, strict=True):
                    parameter.data = value
                yield
            finally:
                for parameter, value in zip(self.parameters, now, strict=True):
                    parameter.data = value
