"""What the benchmarks of this family share."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from warpup.reflection import ReflectionTokens

SHAPES = {"cpu": (64, 151936), "cuda": (64, 151936), "quick": (4, 1000)}
TOKENS = ReflectionTokens(tuple(range(5, 900, 60)), (1,), (2,))


@lru_cache(1)
def logits_of(device: str, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    return (3 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(device, dtype)
