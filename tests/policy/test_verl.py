"""Losses and advantages against verl as it was released, by calling it. Where a docstring says "verl 0.9.1", this is
what holds it; a disagreement is a convention, named in the case."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import warpup
from tests.policy.test_policy_loss import problem
from tests.support.released import imported, released
from warpup import advantage
from warpup.policy.rows import per_token

B, T = 6, 40
CORE = "verl.trainer.ppo.core_algos"
REAL, STUBS = ["verl.utils.torch_functional", CORE], ["verl", "omegaconf", "tensordict"]


@pytest.fixture(scope="module")
def verl():
    with imported(released("verl", "0.9.1"), REAL, STUBS) as modules:
        yield modules[CORE]


@pytest.fixture
def x():
    mask = torch.arange(T) < torch.tensor([[3], [40], [17], [1], [25], [9]])
    mask[1, 5:9] = False  # a tool's answer
    return problem(B, T, spread=0.3) | {"mask": mask}


def theirs(verl, x, loss, *, clip=(0.2, 0.2), mode="token-mean", weights=None, **constants):
    """verl's loss of a name, and its gradient."""
    config = verl.ActorConfig()
    values = {"clip_ratio": 0.2, "clip_ratio_low": clip[0], "clip_ratio_high": clip[1], "global_batch_info": {}}
    policy = {
        "clip_cov_ratio": None,
        "clip_cov_lb": None,
        "clip_cov_ub": None,
        "kl_cov_ratio": 0.02,
        "ppo_kl_coef": 0.1,
        "dro_beta": 0.3,
    }
    values |= {"policy_loss": SimpleNamespace(**policy), "get": lambda name, default: default}
    config.__dict__.update(values | constants)
    logp = x["logp"].detach().requires_grad_()
    advantages = per_token(x["advantages"], logp)
    value, _ = verl.get_policy_loss_fn(loss)(
        x["old_logp"], logp, advantages, x["mask"].to(logp.dtype), mode, config, weights
    )
    return value.detach(), torch.autograd.grad(value, logp)[0]


def ours(x, **options):
    logp = x["logp"].detach().requires_grad_()
    loss, _ = warpup.policy_loss(**{**x, "logp": logp, **options})
    return loss.detach(), torch.autograd.grad(loss, logp)[0]


def same(got, want):
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-7, atol=1e-8)  # verl adds 1e-8 to its lengths


LOSSES = [  # what verl calls it, what we do
    ({"loss": "vanilla"}, {"kind": "ppo", "dual_clip": 3.0}),
    ({"loss": "vanilla", "clip": (0.2, 0.28)}, {"kind": "dapo", "dual_clip": 3.0}),
    ({"loss": "vanilla", "mode": "seq-mean-token-mean"}, {"kind": "ppo", "dual_clip": 3.0, "normalizer": "sequence"}),
    (
        {"loss": "vanilla", "mode": "seq-mean-token-sum"},
        {"kind": "ppo", "dual_clip": 3.0, "normalizer": "sequence_sum"},
    ),
    (
        {"loss": "vanilla", "mode": "seq-mean-token-sum-norm"},
        {"kind": "ppo", "dual_clip": 3.0, "normalizer": ("sequence_sum", float(B * T))},
    ),
    ({"loss": "gspo", "clip": (0.05, 0.1)}, {"kind": "gspo_token", "clip": (0.05, 0.1), "normalizer": "token"}),
    ({"loss": "sapo", "tau_pos": 1.0, "tau_neg": 1.05}, {"kind": "sapo"}),
    ({"loss": "gpg"}, {"kind": "gpg"}),
    ({"loss": "cispo"}, {"kind": "cispo_verl"}),
    ({"loss": "geo_mean", "clip": (0.1, 0.2)}, {"kind": "gmpo", "clip": (0.1, 0.2)}),
    ({"loss": "dppo_tv", "clip": (0.1, 0.15)}, {"kind": "dppo_tv", "clip": (0.1, 0.15)}),
    ({"loss": "dppo_kl", "clip": (0.01, 0.02)}, {"kind": "dppo_kl", "clip": (0.01, 0.02)}),
    ({"loss": "dro"}, {"kind": "dro", "constants": (0.3,)}),
]


@pytest.mark.parametrize(("name", "mine"), LOSSES, ids=[" ".join(map(str, n.values())) for n, _ in LOSSES])
@pytest.mark.parametrize("shift", [-1.0, 0.0])  # of advantages and ratios: with -1 the dual clip holds many
@pytest.mark.parametrize("weighted", [False, True])
def test_losses(verl, x, name, mine, shift, weighted):
    x = {**x, "advantages": x["advantages"] + shift, "old_logp": x["old_logp"] + 0.8 * shift}
    weights = torch.linspace(0.1, 2, B * T, dtype=torch.float64).view(B, T) if weighted else None
    mine = dict(mine)
    if weighted and name["loss"] == "geo_mean":  # a geometric mean of a row's weights
        logs = (weights.log() * x["mask"]).sum(1) / x["mask"].sum(1)
        mine["weights"] = logs.exp()
    elif weighted:
        mine["weights"] = weights
    same(ours(x, **mine), theirs(verl, x, weights=weights, **name))


def test_gmpo_counts_empty_sequences(verl, x):
    x["mask"][2] = False
    want = theirs(verl, x, "geo_mean")
    same(ours(x, kind="gmpo", clip=(0.2, 0.2), normalizer=("sequence", float(B))), want)
    assert ours(x, kind="gmpo", clip=(0.2, 0.2))[0].item() == pytest.approx(want[0].item() * B / (B - 1))


def test_kl_cov(verl, x):
    """Its config's constant is .1, where the paper has 1."""
    selected = warpup.kl_cov_tokens(x["logp"], x["advantages"], x["mask"], share=0.02)
    assert selected.any()
    same(ours(x, kind="kl_cov", constants=(0.1,), selected=selected), theirs(verl, x, "kl_cov"))


def test_clip_cov(verl, x, monkeypatch):
    """Each draws its own tokens: ours are those that verl's draw leaves out."""
    x["advantages"] = 4 * x["advantages"]
    monkeypatch.setattr(torch, "randperm", lambda n: torch.arange(n))
    want = theirs(verl, x, "clip_cov")
    on, a = x["mask"], per_token(x["advantages"], x["logp"])
    covariance = (a - a[on].mean()) * (x["logp"] - x["logp"][on].mean())
    ratio = (x["logp"] - x["old_logp"]).exp()
    free = on & ~(((ratio > 1.2) & (a > 0)) | ((ratio < 0.8) & (a < 0))) & (covariance > 1) & (covariance < 5)
    first = torch.zeros_like(on)
    first.view(-1)[free.flatten().nonzero()[:1]] = True
    assert first.sum() == 1
    same(ours(x, kind="clip_cov", selected=first), want)


@pytest.mark.parametrize("kl", ["k1", "k2", "k1+", "k3+", "k3_verl"])
def test_kl(verl, x, kl):
    """Its k3 is ours by the name of k3_verl; the value of its k3+ is held too, which no estimate here reaches."""
    logp = x["logp"].detach().requires_grad_()
    ref = x["old_logp"] - 0.1 if kl == "k3+" else x["old_logp"] * 9
    d = verl.kl_penalty(logp, ref, {"k3_verl": "low_var_kl"}.get(kl, kl))
    want = (d * x["mask"]).sum() / x["mask"].sum()
    mine = {**x, "logp": logp.detach().requires_grad_(), "advantages": 0 * x["advantages"]}
    loss, _ = warpup.policy_loss(**mine, kl=kl, kl_coef=1.0, ref_logp=ref)
    same((loss, torch.autograd.grad(loss, mine["logp"])[0]), (want, torch.autograd.grad(want, logp)[0]))


# ---- advantages -----------------------------------------------------------------------------------------------------

GROUPS = torch.tensor([3, 3, 8, 3, 8, 5])  # the last one alone


def rewards_of(x):
    rewards = torch.zeros(B, T, dtype=torch.float64)
    last = (x["mask"] * torch.arange(T)).argmax(1)
    rewards[torch.arange(B), last] = torch.tensor([0.5, 1.0, -2.0, 0.25, 3.0, 1.5], dtype=torch.float64)
    return rewards


ADVANTAGES = {
    "grpo": lambda r, x: advantage.grpo_verl(r, GROUPS),
    "rloo": lambda r, x: advantage.rloo(r, GROUPS, singleton="raw"),
    "opo": lambda r, x: advantage.opo(r, GROUPS, lengths=x["mask"].sum(1).double()),
    "grpo_passk": lambda r, x: advantage.pass_at_k(r, GROUPS),
    "reinforce_plus_plus": lambda r, x: advantage.reinforce_pp(r, mask=x["mask"], gamma=0.9),
    "reinforce_plus_plus_baseline": lambda r, x: advantage.reinforce_pp_baseline(r, GROUPS, mask=x["mask"]),
}


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages(verl, x, name):
    groups, rewards, mask = GROUPS.tolist(), rewards_of(x), x["mask"].double()
    if name == "grpo_passk":  # refuses groups of one
        groups[5] = 8
    config = SimpleNamespace(gamma=0.9, get=lambda key, default: default)
    arguments = {"token_level_rewards": rewards, "response_mask": mask, "config": config}
    if name != "reinforce_plus_plus":
        arguments["index"] = np.array(groups)
    want, _ = verl.get_adv_estimator_fn(name)(**arguments)
    if name == "grpo":
        want[5] *= float(torch.tensor(1.0) + 1e-6)  # it divides a group of one by a std of 1 and the epsilon
    if name == "grpo_passk":
        got = advantage.pass_at_k(rewards.sum(1), torch.tensor(groups))
    else:
        got = ADVANTAGES[name](rewards.sum(1), x)
    got = got[:, None] * mask if got.dim() == 1 else got
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_optimal_token_baseline(verl, x, holes, weighted):
    """Without holes in the mask both of verl's are one; with them ours is the one for several turns."""
    if not holes:
        x["mask"] = torch.arange(T) < x["mask"].sum(1, keepdim=True)
    rewards = rewards_of(x)
    rewards[:, 0] += 0.25  # and one on the way
    probabilities = x["old_logp"].exp()
    sum_p2 = probabilities**2 + (1 - probabilities) ** 2 / 3
    weights = torch.linspace(0.1, 2, B * T, dtype=torch.float64).view(B, T) if weighted else None
    given = {"token_level_rewards": rewards, "response_mask": x["mask"].double(), "index": np.array(GROUPS.tolist())}
    given |= {"old_log_probs": x["old_logp"], "sum_pi_squared": sum_p2, "rollout_is_weights": weights}
    names = ["tir_optimal_token_baseline", *([] if holes else ["optimal_token_baseline"])]
    mine = {"mask": x["mask"], "logp": x["old_logp"], "sum_p2": sum_p2, "weights": weights}
    got = advantage.optimal_token_baseline(rewards * x["mask"], GROUPS, **mine)
    for name in names:
        want, _ = verl.get_adv_estimator_fn(name)(**given)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


HELPER = "verl.trainer.ppo.rollout_corr_helper"


@pytest.mark.parametrize(
    ("option", "mine"),
    [(f"{level}_{k}", {"measure": k, "over": over}) for k in ("k2", "k3")
     for level, over in (("token", "token"), ("seq_sum", "sum"), ("seq_mean", "mean"), ("seq_max", "max"))]
    + [(f"{level}_k1", {"measure": "ratio", "over": over})
       for level, over in (("token", "token"), ("seq_sum", "sum"), ("seq_mean", "mean"))],
    ids=str,
)  # fmt: skip
def test_rollout_rejection(x, option, mine):
    """Its k1 bounds the inverse of our ratio."""
    with imported(released("verl", "0.9.1"), [*REAL, HELPER], STUBS) as modules:
        of = modules[HELPER].compute_rollout_rejection_mask
        log_ratio = x["logp"] - x["old_logp"]
        threshold = {"seq_sum": 1.0, "seq_max": 0.2, "seq_mean": 0.05, "token": 0.03}[option.rpartition("_")[0]]
        bounds = {"cap": threshold}
        if option.endswith("k1"):
            low, high = {"seq_mean": (0.95, 1.05)}.get(option.rpartition("_")[0], (0.8, 1.3))
            threshold, bounds = f"{low}_{high}", {"floor": 1 / high, "cap": 1 / low}
        want, _ = of(log_ratio, x["mask"].double(), option, str(threshold))
    got = warpup.rollout_mask(x["logp"], x["old_logp"], x["mask"], **mine, **bounds)
    got = x["mask"] & (got if got.dim() == 2 else got[:, None])
    assert torch.equal(got, want > 0)
    assert 0 < got.sum() < x["mask"].sum()


def test_gae(verl, x):
    rewards, values = rewards_of(x), x["old_logp"]
    mask = x["mask"].double()
    want, returns = verl.compute_gae_advantage_return(rewards, values * mask, mask, 0.9, 0.95)
    got, mine = warpup.gae(rewards, values, x["mask"], gamma=0.9, lam=0.95)
    got = warpup.masked_whiten(got, x["mask"])
    torch.testing.assert_close(got, want * mask, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(mine, returns * mask, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("version", "carry"), [("0.7.0", False), ("0.9.1", True)])
def test_returns_across_a_tools_answer(version, carry):
    """What is told of tokens before it: that they lose (up to 0.7), or that they win."""
    with imported(released("verl", version), REAL, STUBS) as m:
        rewards = torch.tensor([[0.0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], dtype=torch.float64)
        mask = torch.tensor([[1.0, 1, 0, 0, 1], [1, 1, 1, 0, 0]], dtype=torch.float64)
        of = m[CORE].compute_reinforce_plus_plus_outcome_advantage
        want, _ = of(rewards, mask, config=SimpleNamespace(gamma=0.9))
    got = advantage.reinforce_pp(rewards, mask=mask, gamma=0.9, carry=carry)
    torch.testing.assert_close(got, want * mask, rtol=1e-7, atol=1e-7)
    assert (got[0, :2] > 0).all() if carry else (got[0, :2] < 0).all()
    if carry:
        assert torch.equal(advantage.reinforce_pp(rewards, mask=mask, gamma=0.9), got)


def test_where_verl_is_not_followed(verl):
    """Equal rewards are no information: rounding in verl's mean makes some of them, over a std of nearly 0."""
    equal = torch.full((3, 1), 100.3)
    index = np.array([0, 0, 0])
    want, _ = verl.compute_grpo_outcome_advantage(equal.clone(), torch.ones(3, 1), index)
    assert want.abs().max() > 0.5
    assert (advantage.grpo_verl(equal[:, 0], 3) == 0).all()
