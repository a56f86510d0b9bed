"""Handwritten digits: 1797 images of 8 x 8 that scikit-learn ships, so nothing is downloaded."""

from typing import Any

import torch
from torch import Tensor

from warpup.train.errors import TrainError

HELD_OUT = 360


def load_digits_images() -> tuple[Tensor, Tensor]:
    """(x, y): images (1797, 1, 8, 8) float32 in [0, 1] and classes (1797,) int64, in scikit-learn's order.

    Raises TrainError, with the cure, where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise TrainError("the digits need scikit-learn: pip install 'scikit-learn>=1.3'") from error
    digits: Any = load_digits()  # a Bunch, whose fields have no types
    return torch.from_numpy(digits.images).float().unsqueeze(1) / 16, torch.from_numpy(digits.target).long()


def load_digits_split(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, y, test_x, test_y): images as rows (N, 64), HELD_OUT of them to test on. seed: of the split."""
    x, y = load_digits_images()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    x, y = x.flatten(1)[order], y[order]
    return x[HELD_OUT:], y[HELD_OUT:], x[:HELD_OUT], y[:HELD_OUT]
