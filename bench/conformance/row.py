"""What a row of the table is, and the inputs of all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tests.policy import test_verl
from tests.policy.test_policy_loss import problem

B, T = 6, 40
LENGTHS = (3, 40, 17, 1, 25, 9)
Result = tuple[Tensor, ...]


class Row(NamedTuple):
    ours: str
    peer: str
    name: str  # in the peer
    theirs: Callable[[], Result]
    plain: Callable[[], Result]  # ours as it comes
    convention: str = ""  # where they differ: what the peer does
    given: Callable[[], Result] | None = None  # ours with that convention


def inputs() -> dict[str, Tensor]:
    """Ratios on both sides of every clip, dual clip and cap included."""
    x = problem(B, T, spread=0.8, seed=7)
    x["mask"] = torch.arange(T) < torch.tensor(LENGTHS)[:, None]
    x["advantages"] = torch.tensor([1.2, -0.7, 0.4, -1.5, -0.2, 0.9], dtype=torch.float64)
    return x


def ours(x: dict, **options) -> Callable[[], Result]:
    return lambda: test_verl.ours(x, **options)


def difference(got: Result, want: Result) -> float:
    """The largest of loss, gradient or advantages, relative to the peer's largest."""
    each = [((g - w).abs().max() / w.abs().max().clamp_min(1e-300)).item() for g, w in zip(got, want, strict=True)]
    return max(each)
