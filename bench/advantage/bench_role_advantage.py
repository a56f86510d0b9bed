"""`role_advantage` against a loop over the rows in Python."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

import warpup
from bench.harness.measure import Comparison, Work
from bench.harness.timing import Candidate
from warpup.advantage.role_advantage import reference_role_advantage

ROWS = {"cpu": 8192, "cuda": 8192, "quick": 64}


def cases(device: str, size: str) -> Iterator[Comparison]:
    yield Comparison(f"role_advantage {ROWS[size]} rows", partial(role, device, ROWS[size]))


def test_role_advantage(case, measure):
    measure(case)


def role(device, n) -> Work:
    rewards, roles = torch.randn(n, device=device), torch.randint(4, (n,), device=device)
    state = torch.zeros(4, device=device)

    def loop(decay=0.95):
        baselines, advantages = state.tolist(), []
        for reward, role in zip(rewards.tolist(), roles.tolist(), strict=True):
            advantages.append(reward - baselines[role])
            baselines[role] = decay * baselines[role] + (1 - decay) * reward
        return torch.tensor(advantages, device=device), torch.tensor(baselines, device=device)

    candidates = {
        "warpup": Candidate(partial(warpup.role_advantage, rewards, roles, state)),
        "loop over Python floats": Candidate(loop),
    }
    size = 2 * rewards.nbytes + roles.nbytes
    reference = reference_role_advantage(rewards.cpu().double(), roles.cpu(), state.cpu().double())
    return Work(candidates, size, lambda: [r.to(device) for r in reference])
