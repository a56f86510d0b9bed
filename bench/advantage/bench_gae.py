"""`gae` against a loop over tokens in eager torch."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import warpup
from bench.harness.measure import Comparison, Work
from bench.harness.timing import Candidate
from warpup.advantage.gae import reference_gae

TOKENS = {"cpu": (512, 2048), "cuda": (4096, 4096), "quick": (4, 16)}


def cases(device: str, size: str) -> Iterator[Comparison]:
    yield Comparison(f"gae {list(TOKENS[size])}", partial(gae, device, TOKENS[size]))


def test_gae(case, measure):
    measure(case)


def gae(device, shape) -> Work:
    rewards, values = torch.randn(shape, device=device), torch.randn(shape, device=device)
    mask = torch.rand(shape, device=device) < 0.9
    options = {"gamma": 0.99, "lam": 0.95}
    candidates = {
        "warpup": Candidate(partial(warpup.gae, rewards, values, mask, **options)),
        "eager": Candidate(partial(reference_gae, rewards, values, mask, **options)),
    }
    size = 4 * rewards.nbytes + mask.nbytes
    return Work(candidates, size, lambda: reference_gae(rewards.double(), values.double(), mask, **options))
