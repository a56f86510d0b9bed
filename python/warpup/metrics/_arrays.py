"""Checks that the metrics share."""

from typing import Any

import numpy as np


def array(name: str, values: Any, *shape: int | None, nan: bool = False) -> np.ndarray:
    """The values in float64; ValueError, naming the argument, unless they have this shape (None: any length), are not
    empty and, but where `nan` may be among them, are numbers: a comparison would take NaN for the smaller or larger."""
    found = np.asarray(values, np.float64)
    if len(shape) != found.ndim or any(want not in (None, have) for want, have in zip(shape, found.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ValueError(f"{name}: expected shape ({wanted}), got {found.shape}")
    if not found.size:
        raise ValueError(f"{name}: expected at least one number, got shape {found.shape}")
    if not nan and np.isnan(found).any():
        raise ValueError(f"{name}: expected numbers, got NaN at {np.argwhere(np.isnan(found))[0].tolist()}")
    return found
