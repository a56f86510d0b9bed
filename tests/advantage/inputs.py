"""What the tests and specs of this family share: random inputs, and the comparison with a reference."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.support.case import agree, leaves, nudged, upcast
from tests.support.inputs import moved_to

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float32) -> Tensor:
    return torch.randn(shape, generator=generator(seed), dtype=torch.float64).to(dtype)


def coin(*shape, seed=0, p=0.7) -> Tensor:
    return torch.rand(shape, generator=generator(seed)) < p


def check(function, reference, backend, **options) -> tuple[Any, ...]:
    """The results, which agree with the reference in float64 by the rule of `agree`."""
    got = leaves(function(**moved_to(backend.device, options)))
    naive = [leaves(reference(**nudged(options, seed))) for seed in range(4)]
    agree([g.cpu() for g in got], leaves(reference(**upcast(options))), naive)
    return got


def no_backward() -> tuple:
    return ()


def tokens_and_mask(size, dtype, rng, count: int) -> tuple[Tensor, list[Tensor]]:
    """A mask with observation tokens in it, and `count` arrays of tokens that are NaN outside of it."""
    mask = torch.rand(size, generator=rng) < 0.8
    columns = (torch.randn(size, generator=rng, dtype=torch.float64).to(dtype) for _ in range(count))
    return mask, [c.masked_fill(~mask, torch.nan) for c in columns]
