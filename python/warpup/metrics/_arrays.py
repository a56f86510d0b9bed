"""Checks that the metrics share."""

from typing import Any

import numpy as np


def array(name: str, values: Any, *shape: int | None) -> np.ndarray:
    """The values in float64; ValueError, naming the argument, unless they have this shape (None: any length)."""
    found = np.asarray(values, np.float64)
    if len(shape) != found.ndim or any(want not in (None, have) for want, have in zip(shape, found.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: expected shape ({wanted}), got {found.shape}")
    return found
