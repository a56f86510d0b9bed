"""Losses and train/rollout masks against OpenRLHF as it was released, by calling it."""

import math

import pytest
import torch

import warpup
from tests.policy.test_policy_loss import problem
from tests.policy.test_verl import ours, same
from tests.support.released import imported, released
from warpup.policy.rows import per_token

B, T = 6, 40
LOSS = "openrlhf.models.loss"
REAL, STUBS = ["openrlhf.models.utils", LOSS], ["openrlhf", "flash_attn", "deepspeed"]


@pytest.fixture(scope="module")
def openrlhf():
    with imported(released("openrlhf", "0.11.2"), REAL, STUBS) as modules:
        yield modules[LOSS]


@pytest.fixture
def x():
    mask = torch.arange(T) < torch.tensor([[3], [40], [17], [1], [25], [9]])
    return problem(B, T, spread=0.3) | {"mask": mask}


def theirs(openrlhf, x, rollout=None, **options):
    """Its loss, and its gradient."""
    logp = x["logp"].detach().requires_grad_()
    mask, advantages = x["mask"].double(), per_token(x["advantages"], x["logp"])
    loss, *_ = openrlhf.PolicyLoss(**options)(logp, x["old_logp"], advantages, mask, rollout_log_probs=rollout)
    return loss.detach(), torch.autograd.grad(loss, logp)[0]


@pytest.mark.parametrize(
    ("options", "mine"),
    [
        ({}, {"kind": "ppo"}),
        ({"clip_eps_high": 0.28}, {"kind": "dapo"}),
        ({"dual_clip": 1.3}, {"kind": "ppo", "dual_clip": 1.3}),
        ({"token_level_loss": False}, {"kind": "ppo", "normalizer": "sequence"}),
        (
            {"policy_loss_type": "gspo", "clip_eps_low": 0.05, "clip_eps_high": 0.1},
            {"kind": "gspo", "clip": (0.05, 0.1)},
        ),
    ],
)
def test_losses(openrlhf, x, options, mine):
    same(ours(x, **mine), theirs(openrlhf, x, **options))


@pytest.mark.parametrize("level", ["token", "seq"])
@pytest.mark.parametrize(("gating", "low", "high"), [("ratio", 0.9, 1.1), ("binary_kl", 0.0, 0.02), ("tv", 0.0, 0.06)])
def test_masks(openrlhf, x, level, gating, low, high):
    """What is kept is weighed by each token's own ratio; a token mask by the ratio is IcePop."""
    noise = torch.randn(B, T, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    rollout = x["old_logp"] + torch.tensor([0.02, 0.3, 0.05, 0.4, 0.1, 0.2], dtype=torch.float64)[:, None] * noise
    is_ = {"is_correction_level": level, "is_correction_gating": gating, "is_correction_threshold": (low, high)}
    over = {"token": "token", "seq": "mean"}[level]
    measure = {"ratio": {"measure": "ratio", "floor": low}, "tv": {"measure": "binary_tv"}}.get(gating, {})
    keep = warpup.rollout_mask(x["old_logp"], rollout, x["mask"], cap=high, over=over, **measure)
    assert 0 < keep.sum() < keep.numel()
    keep = keep if keep.dim() == 2 else keep[:, None]
    weights = warpup.rollout_weights(x["old_logp"], rollout, x["mask"], level="token", mode="truncate", cap=math.inf)
    same(ours(x, kind="ppo", weights=weights * keep), theirs(openrlhf, x, rollout, **is_))
    if (level, gating) == ("token", "ratio"):
        icepop = warpup.rollout_weights(
            x["old_logp"], rollout, x["mask"], level="token", mode="mask", cap=high, floor=low
        )
        assert torch.equal(icepop[x["mask"]], (weights * keep)[x["mask"]])
