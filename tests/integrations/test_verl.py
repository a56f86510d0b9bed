"""warpup's entries in verl's registries, on the code that verl released: each is called as verl's trainer calls it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.policy.test_policy_loss import problem
from tests.support.released import imported, released
from warpup.policy.rows import per_token

OURS, CORE = "warpup.integrations.verl", "verl.trainer.ppo.core_algos"
HEAD = "verl.utils.experimental.torch_functional"
B, T = 6, 40
GLOBAL = {"dp_size": 2, "batch_num_tokens": 300, "global_batch_size": 12, "loss_scale_factor": 50}
MODES = ["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-sum-norm", "seq-mean-token-mean"]


def test_without_verl():
    with pytest.raises(ImportError, match=r"needs verl 0\.9"):
        import warpup.integrations.verl  # noqa: F401


@pytest.fixture(scope="module")
def verl():
    real = ["verl.utils.torch_functional", CORE, HEAD]
    with imported(released("verl", "0.9.1"), real, ["verl", "omegaconf", "tensordict"], OURS) as modules:
        yield SimpleNamespace(core=modules[CORE], head=modules[HEAD], ours=modules[OURS])


@pytest.fixture
def x():
    mask = torch.arange(T) < torch.tensor([[3], [40], [17], [1], [25], [9]])
    mask[1, 5:9] = False  # a tool's answer
    return problem(B, T, spread=0.3) | {"mask": mask}


def actor(verl, **given):
    """verl's ActorConfig, with a field that its own losses read by `get`."""
    config = verl.core.ActorConfig()
    policy = {"clip_cov_ratio": 0.05, "clip_cov_lb": -9.0, "clip_cov_ub": 9.0, "kl_cov_ratio": 0.02}
    values = {"clip_ratio": 0.2, "clip_ratio_low": 0.1, "clip_ratio_high": 0.15, "tau_pos": 1.0, "tau_neg": 1.2}
    values |= {"policy_loss": SimpleNamespace(**policy, ppo_kl_coef=0.1, dro_beta=0.3), "global_batch_info": {}}
    config.__dict__.update(values | {"get": lambda name, default: default} | given)
    return config


def called(verl, name, x, mode, config, weights=None):
    """(loss, gradient, metrics) of a name in verl's registry."""
    logp = x["logp"].detach().requires_grad_()
    loss, metrics = verl.core.get_policy_loss_fn(name)(
        old_log_prob=x["old_logp"],
        log_prob=logp,
        advantages=per_token(x["advantages"], logp),
        response_mask=x["mask"],
        loss_agg_mode=mode,
        config=config,
        rollout_is_weights=weights,
    )
    return loss.detach(), torch.autograd.grad(loss, logp)[0], metrics


SAME = {"ppo": "vanilla", "gspo_token": "gspo", "gpg": "gpg", "cispo_verl": "cispo", "dppo_tv": "dppo_tv",
        "dppo_kl": "dppo_kl", "dro": "dro", "kl_cov": "kl_cov"}  # fmt: skip


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", SAME)
def test_losses_are_verls(verl, x, kind, mode, weighted):
    x = {**x, "advantages": x["advantages"] - 0.5, "old_logp": x["old_logp"] - 0.9}
    weights = torch.linspace(0.1, 2, B * T, dtype=torch.float64).view(B, T) if weighted else None
    for info in ({}, GLOBAL):
        config = actor(verl, global_batch_info=info)
        if info == {} and mode == "seq-mean-token-sum-norm":
            config.global_batch_info = {"loss_scale_factor": None}
        (loss, slope, metrics), (want, want_slope, theirs) = (
            called(verl, name, x, mode, config, weights) for name in (f"warpup_{kind}", SAME[kind])
        )
        torch.testing.assert_close((loss, slope), (want, want_slope), rtol=1e-7, atol=1e-8)
    if kind == "ppo":
        for name in theirs:
            assert metrics[name] == pytest.approx(theirs[name], abs=1e-6), name
        assert 0 not in theirs.values()


@pytest.mark.parametrize(("kind", "name"), [("sapo", "sapo"), ("gmpo", "geo_mean")])
def test_losses_of_one_division(verl, x, kind, name):
    """Whatever loss_agg_mode says, verl divides these in their papers' way; ours as it says."""
    (loss, slope, _), (want, want_slope, _) = (
        called(verl, n, x, "seq-mean-token-mean", actor(verl)) for n in (f"warpup_{kind}", name)
    )
    torch.testing.assert_close((loss, slope), (want, want_slope), rtol=1e-7, atol=1e-8)
    other = called(verl, f"warpup_{kind}", x, "token-mean", actor(verl))[0]
    assert abs(other - loss) > 1e-3


def test_every_loss_is_there(verl, x):
    for kind in verl.ours.LOSSES:
        loss, slope, metrics = called(verl, f"warpup_{kind}", x, "token-mean", actor(verl))
        assert loss.isfinite(), kind
        assert slope[x["mask"]].norm() > 0, kind
        assert (slope[~x["mask"]] == 0).all(), kind
        assert metrics.keys() >= {"actor/pg_clipfrac", "actor/ppo_kl"}
    assert len(verl.ours.LOSSES) == 19
    with pytest.raises(ValueError, match="Unsupported loss mode: warpup_a_lol"):
        verl.core.get_policy_loss_fn("warpup_a_lol")


def test_clip_cov_drops_its_share(verl, x):
    config = actor(verl)
    slopes = [called(verl, f"warpup_{k}", x, "token-sum", config)[1] for k in ("clip_cov", "ppo")]
    dropped = (slopes[0] == 0) & (slopes[1] != 0)
    assert dropped.sum() == int(0.05 * x["mask"].sum())


def test_dro_has_no_default(verl, x):
    config = actor(verl)
    config.policy_loss.dro_beta = None
    with pytest.raises(ValueError, match=r"policy_loss\.dro_beta above 0; there is no default"):
        called(verl, "warpup_dro", x, "token-mean", config)


# ---- Advantages -----------------------------------------------------------------------------------------------------

UIDS = np.array(["q3", "q3", "q8", "q3", "q8", "q8"], dtype=object)


def rewards_of(x):
    rewards = torch.zeros(B, T, dtype=torch.float64)
    last = (x["mask"] * torch.arange(T)).argmax(1)
    rewards[torch.arange(B), last] = torch.tensor([0.5, 1.0, 2.0, 0.25, 3.0, 1.5], dtype=torch.float64)
    return rewards


def estimated(verl, name, x, **settings):
    config = SimpleNamespace(gamma=0.9, get=settings.get)
    return verl.core.get_adv_estimator_fn(name)(
        token_level_rewards=rewards_of(x),
        response_mask=x["mask"].double(),
        config=config,
        index=UIDS,
    )


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("grpo_verl", "grpo"), ("rloo", "rloo"), ("opo", "opo"), ("pass_at_k", "grpo_passk"),
     ("reinforce_pp", "reinforce_plus_plus"), ("reinforce_pp_baseline", "reinforce_plus_plus_baseline")],
)  # fmt: skip
def test_advantages_are_verls(verl, x, name, theirs):
    (got, returns), (want, _) = (estimated(verl, n, x) for n in (f"warpup_{name}", theirs))
    torch.testing.assert_close(got, want * x["mask"], rtol=1e-6, atol=1e-6)
    assert torch.equal(returns, got)


def test_advantages_that_verl_does_not_have(verl, x):
    rewards = rewards_of(x).sum(1)
    same = torch.tensor([[a == b for b in UIDS] for a in UIDS]).double()
    mean = same @ rewards / same.sum(1)
    for name, want in (("dr_grpo", rewards - mean), ("max_rl", (rewards - mean) / mean)):
        got, _ = estimated(verl, f"warpup_{name}", x)
        torch.testing.assert_close(got, want[:, None] * x["mask"], rtol=1e-6, atol=1e-6)


def test_every_estimator_is_there(verl, x):
    for name in verl.ours.ESTIMATORS:
        got, _ = estimated(verl, f"warpup_{name}", x)
        assert got.shape == (B, T)
        assert got.abs().sum() > 0, name
        assert (got[~x["mask"]] == 0).all(), name


def test_what_cannot_be_is_refused(verl, x):
    with pytest.raises(ValueError, match="needs `uid` in the batch"):
        verl.core.get_adv_estimator_fn("warpup_rloo")(
            token_level_rewards=rewards_of(x), response_mask=x["mask"], reward_baselines=None
        )
    with pytest.raises(ValueError, match="it is warpup_dr_grpo"):
        estimated(verl, "warpup_grpo", x, norm_adv_by_std_in_grpo=False)


# ---- The output layer -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(30,), (3, 10)])
def test_the_head_is_verls(verl, shape):
    g = torch.Generator().manual_seed(0)
    found = []
    for kind in (verl.ours.FusedLinearForPPO.__mro__[1], verl.head.FusedLinearForPPO):
        g.manual_seed(0)
        hidden, weight = torch.randn(*shape, 16, generator=g), torch.randn(200, 16, generator=g)
        ids = torch.randint(200, shape, generator=g, dtype=torch.int32)
        weight.requires_grad_()
        body = torch.randn(16, 16, generator=g, requires_grad=True)
        logp, entropy = kind().forward(
            hidden_states=hidden @ body, vocab_weights=weight, input_ids=ids, temperature=0.7
        )
        slopes = torch.autograd.grad((logp * torch.arange(logp.shape[-1])).sum() + entropy.sum(), [body, weight])
        found.append((logp.detach(), entropy.detach(), *slopes))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-3)
    assert verl.head.FusedLinearForPPO is verl.ours.FusedLinearForPPO


def test_other_backends_stay_verls(verl, monkeypatch):
    parent = verl.ours.FusedLinearForPPO.__mro__[1]
    monkeypatch.setattr(parent, "forward", lambda self, *_: "verl's")
    x = torch.zeros(2, 4)
    assert verl.head.FusedLinearForPPO(impl_backend="liger").forward(x, x, torch.zeros(2).long()) == "verl's"
