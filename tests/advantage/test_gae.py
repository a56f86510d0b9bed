"""`gae` and `reward_to_go`, against loops, and against responses without the tokens outside of the mask."""

import math

import pytest
import torch

from tests.advantage.inputs import FLOATS, check, coin, normal
from tests.support.inputs import moved_to
from warpup import gae, reward_to_go
from warpup.advantage.gae import reference_gae, reference_reward_to_go

NAN = math.nan


@pytest.mark.parametrize("length", [1, 3, 4, 5, 127, 128, 129, 300])
@pytest.mark.parametrize("dtype", FLOATS)
def test_gae(backend, length, dtype):
    inputs = {"rewards": normal(5, length, dtype=dtype), "values": normal(5, length, seed=1, dtype=dtype)}
    for mask in (coin(5, length), coin(5, length, p=0.05), torch.ones(5, length, dtype=torch.int64)):
        check(gae, reference_gae, backend, **inputs, mask=mask, gamma=0.99, lam=0.95)
    bootstrap = normal(5, seed=2, dtype=dtype)
    got = check(gae, reference_gae, backend, **inputs, mask=coin(5, length), gamma=1.0, lam=1.0, bootstrap=bootstrap)
    assert got[0].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


def test_gae_equals_the_loop_of_verl(backend):
    """Products with the mask where ours selects; the same wherever the mask is set."""
    rewards, values, mask, gamma, lam = normal(4, 40), normal(4, 40, seed=1), coin(4, 40).float(), 0.9, 0.8
    next_value, running, reversed_advantages = 0, 0, []
    for t in reversed(range(40)):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        fresh = delta + gamma * lam * running
        next_value = values[:, t] * mask[:, t] + (1 - mask[:, t]) * next_value
        running = fresh * mask[:, t] + (1 - mask[:, t]) * running
        reversed_advantages.append(running)
    want = torch.stack(reversed_advantages[::-1], 1)
    options = {"rewards": rewards, "values": values, "mask": mask, "gamma": gamma, "lam": lam}
    advantages, returns = (x.cpu() for x in gae(**moved_to(backend.device, options)))
    torch.testing.assert_close(advantages, want * mask, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(returns, (want + values) * mask, rtol=1e-5, atol=1e-5)


def test_observation_tokens_are_as_if_not_there(backend):
    """With holes in the mask: the result of the same tokens without the holes; what stands in a hole is never read."""
    mask = coin(1, 300, seed=3, p=0.3)
    rewards, values = normal(1, 300), normal(1, 300, seed=1)
    for x in (rewards, values):
        x[~mask] = NAN
    packed = [x[mask].unsqueeze(0).to(backend.device) for x in (rewards, values, mask)]
    for got, want in zip(
        (*gae(*(x.to(backend.device) for x in (rewards, values, mask)), gamma=0.9, lam=0.9),
         reward_to_go(rewards.to(backend.device), mask.to(backend.device), 0.9)),
        (*gae(*packed, gamma=0.9, lam=0.9), reward_to_go(packed[0], packed[2], 0.9)),
        strict=True,
    ):  # fmt: skip
        assert (got.cpu()[~mask] == 0).all()
        torch.testing.assert_close(got.cpu()[mask].unsqueeze(0), want.cpu())


@pytest.mark.parametrize("length", [1, 129, 260])
@pytest.mark.parametrize("carry", [True, False])
def test_reward_to_go(backend, length, carry):
    for p in (0.98, 0.5):
        options = {"rewards": normal(3, length), "mask": coin(3, length, p=p), "gamma": 0.97, "carry": carry}
        check(reward_to_go, reference_reward_to_go, backend, **options)


def test_strided_rows(backend):
    """Slices of a longer batch, transposed and expanded inputs."""
    rewards, values, mask = normal(4, 20), normal(4, 20, seed=1), coin(4, 20)
    whole = [x.to(backend.device) for x in (rewards, values, mask)]
    got = gae(*(x[:, 3:17] for x in whole), gamma=0.9, lam=0.8)
    want = gae(*(x[:, 3:17].clone() for x in whole), gamma=0.9, lam=0.8)
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))
    got = reward_to_go(whole[0].t(), whole[2][:, :1].t().expand(20, 4), 0.5)
    assert torch.equal(got, reward_to_go(whole[0].t().clone(), whole[2][:, :1].t().expand(20, 4).clone(), 0.5))


# ---- promises of both -------------------------------------------------------------------------------------


def test_no_gradient(backend):
    x = normal(4, 6).to(backend.device).requires_grad_()
    mask = torch.ones(4, 6, device=backend.device)
    outputs = [*gae(x, x, mask, gamma=0.9, lam=0.9, bootstrap=x[:, 0]), reward_to_go(x, mask)]
    assert not any(o.requires_grad for o in outputs)


@pytest.mark.parametrize("shape", [(0, 5), (3, 0), (0, 0)])
def test_empty(backend, shape):
    x, mask = torch.zeros(shape, device=backend.device), torch.zeros(shape, dtype=torch.bool, device=backend.device)
    assert all(o.shape == shape for o in [*gae(x, x, mask, gamma=0.9, lam=0.9), reward_to_go(x, mask)])


def test_a_wide_bootstrap_widens_the_result(backend):
    x, end = torch.zeros(1, 1, device=backend.device), torch.tensor([1 / 3], dtype=torch.float64, device=backend.device)
    assert gae(x, x, x == 0, gamma=1.0, lam=1.0, bootstrap=end)[0].item() == end.item()


X, M, V, NAN = torch.zeros(3, 4), torch.ones(3, 4), torch.zeros(3), float("nan")
ERRORS = [
    (lambda: gae(V, V, V, gamma=1.0, lam=1.0), r"gae: rewards must have shape \(B, T\), got \(3,\)"),
    (lambda: gae(X, X[:2], M, gamma=1.0, lam=1.0), r"values must have shape \(3, 4\), got \(2, 4\)"),
    (lambda: gae(X, X, M[:2], gamma=1.0, lam=1.0), r"mask must have shape \(3, 4\), got \(2, 4\)"),
    (lambda: gae(X.long(), X, M, gamma=1.0, lam=1.0), r"rewards must be a floating tensor, got torch.int64"),
    (lambda: gae(X, X, M, gamma=1.0, lam=1.0, bootstrap=V[:2]), r"bootstrap must have shape \(3,\), got \(2,\)"),
    (lambda: gae(X, X, M, gamma=1.0, lam=1.5), r"lam must be in \[0, 1\], got 1.5"),
    (lambda: gae(X, X, M, gamma=NAN, lam=1.0), r"gamma must be in \[0, 1\], got nan"),
    (lambda: reward_to_go(X, M, 1.01), r"gamma must be in \[0, 1\], got 1.01"),
    (lambda: reward_to_go(V, V), r"reward_to_go: rewards must have shape \(B, T\)"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS, ids=[message[:40] for _, message in ERRORS])
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
