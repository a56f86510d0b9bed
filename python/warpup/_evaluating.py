"""A module in eval mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """While open all submodules are in `eval()`; then each is in its own mode again. Layers that transformers
    checkpoints are in `eval()`, too: in training mode its older versions (4.57) leave out their cache."""
    training = [m for m in module.modules() if m.training]
    module.eval()
    try:
        yield
    finally:
        for m in training:
            m.training = True
