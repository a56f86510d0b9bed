"""The states of the random generators that a run draws from, as they are kept in a checkpoint."""

import random
from typing import Any, cast

import numpy as np
import torch


def random_states(generator: torch.Generator) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """States of the run's generator and of the global ones of torch, NumPy and Python: tensors and plain JSON."""
    tensors = {"random.generator": generator.get_state(), "random.torch": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    kind, keys, *rest = cast(tuple[Any, ...], np.random.get_state())
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
