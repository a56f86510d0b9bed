"""Handwritten digits: 1797 images of 8 x 8 that scikit-learn ships, so nothing is downloaded."""

import torch
from torch import Tensor

from .errors import TrainError

HELD_OUT = 360


def load_digits_split(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, y, test_x, test_y): images (N, 64) float32 in [0, 1] and classes (N,) int64, HELD_OUT of them to test on.

    seed: of the split. Raises TrainError, with the cure, where scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise TrainError("the digits need scikit-learn: pip install 'scikit-learn>=1.3'") from error
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(seed))
    x, y = torch.tensor(digits.data, dtype=torch.float32)[order] / 16, torch.tensor(digits.target).long()[order]
    return x[HELD_OUT:], y[HELD_OUT:], x[:HELD_OUT], y[:HELD_OUT]
