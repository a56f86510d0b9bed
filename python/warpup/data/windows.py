"""Windows of a time series, each with what comes behind it."""

from typing import Any

import numpy as np


def windows(inputs: Any, targets: Any, width: int, *, ahead: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """`(inputs[i : i + width], targets[i + width - 1 + ahead])` for every i that has both.

    inputs: (T, ...), such as states and errors side by side; targets: (T, ...), such as the manipulated input. width:
    steps of a window; ahead: how far behind its last step the target is. Returns (n, width, ...) and (n, ...), views
    where they can be. Raises ValueError where the series are of different lengths or too short.

    For an LSTM that takes the place of a controller ("Require Process Control? LSTMc is all you need!", arXiv
    2306.07510), any regression with a squared error will do.
    """
    inputs, targets = np.asarray(inputs), np.asarray(targets)
    count = len(inputs) - width - ahead + 1
    if len(inputs) != len(targets) or width < 1 or ahead < 1 or count < 1:
        raise ValueError(
            f"windows: expected two series of one length, at least width + ahead = {width + ahead} steps, got "
            f"{len(inputs)} and {len(targets)}"
        )
    seen = np.lib.stride_tricks.sliding_window_view(inputs, width, axis=0)[:count]
    return np.moveaxis(seen, -1, 1), targets[width - 1 + ahead :]
