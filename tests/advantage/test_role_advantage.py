"""`role_advantage`, against a loop over the rows."""

import math

import pytest
import torch

from tests.advantage.inputs import normal
from warpup import role_advantage
from warpup.advantage.role_advantage import reference_role_advantage

NAN = math.nan


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_role_advantage(backend, n, dtype):
    rewards, roles, state = normal(n, dtype=dtype), torch.arange(n) ** 2 % 6, normal(6, seed=2)
    if n > 20:
        rewards[[0, 17]] = NAN
    given_state = state.to(backend.device)
    got = role_advantage(rewards.to(backend.device), roles.to(backend.device), given_state, decay=0.9)
    want = reference_role_advantage(rewards.double(), roles, state.double(), decay=0.9)
    assert torch.equal(given_state.cpu(), state), "the state given is not changed"
    for g, w in zip(got, want, strict=True):
        assert g.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(g.cpu().double(), w, rtol=1e-5, atol=1e-5)


def test_role_advantage_goes_on_where_it_stopped(backend):
    rewards, roles = normal(70).to(backend.device), (torch.arange(70) % 3).to(backend.device)
    zero = torch.zeros(3, device=backend.device)
    first, state = role_advantage(rewards[:40], roles[:40], zero)
    second, state = role_advantage(rewards[40:], roles[40:], state)
    whole, final = role_advantage(rewards, roles, zero)
    torch.testing.assert_close(torch.cat([first, second]), whole)
    torch.testing.assert_close(state, final)


def test_no_gradient(backend):
    rewards = normal(12).to(backend.device).requires_grad_()
    state = torch.zeros(2, device=backend.device, requires_grad=True)
    outputs = role_advantage(rewards, torch.arange(12, device=backend.device) % 2, state)
    assert not any(o.requires_grad for o in outputs)


def test_empty(backend):
    none = torch.zeros(0, device=backend.device)
    advantages, state = role_advantage(none, none.long(), torch.ones(2, device=backend.device))
    assert advantages.shape == (0,)
    assert state.tolist() == [1, 1]


R12, IDS12 = torch.zeros(12), torch.zeros(12, dtype=torch.int64)
ERRORS = [
    (lambda: role_advantage(R12, IDS12 + 3, R12[:3]), r"roles\[0\] = 3 is outside \[0, 3\)"),
    (lambda: role_advantage(R12, IDS12, R12[:0]), r"baseline_state has no role, yet there are 12 rewards"),
    (lambda: role_advantage(R12, IDS12, R12[:3], decay=1.5), r"decay must be in \[0, 1\], got 1.5"),
    (lambda: role_advantage(R12, IDS12[:3], R12[:3]), r"roles must have shape \(12,\), got \(3,\)"),
    (lambda: role_advantage(R12, R12, R12[:3]), r"roles must be int64, got torch.float32"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
