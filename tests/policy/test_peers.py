"""policy_loss and its helpers against other implementations, by calling them: TRL's trainer and Liger's loss (verl:
test_verl.py). float32; a disagreement is a convention, named in the case."""

import math
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch

import warpup
from tests.policy.test_policy_loss import problem

B, T = 6, 40


@pytest.fixture(scope="module")
def x():
    return problem(B, T, dtype=torch.float32, spread=0.2) | {
        "mask": torch.arange(T) < torch.tensor([[3], [40], [17], [1], [25], [9]])
    }


def ours(x, **options):
    logp = x["logp"].detach().requires_grad_()
    loss, _ = warpup.policy_loss(**{**x, "logp": logp, **options})
    return loss.detach(), torch.autograd.grad(loss, logp)[0]


def same(got, want):
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=3e-6, atol=3e-6 * w.abs().max().item())


# ---- TRL ------------------------------------------------------------------------------------------------------------


def trl_loss(
    x, *, loss_type, level="token", clip=(0.2, 0.2), beta=0.0, ref_logp=None, ratio=None, entropies=None, **changes
):
    """GRPOTrainer._compute_loss on a trainer that is only what that method reads."""
    trl = pytest.importorskip("trl")
    args = {
        "delta": None, "use_bias_correction_kl": False, "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0,
        "steps_per_generation": 1,
    }  # fmt: skip
    logp = x["logp"].detach().requires_grad_()
    entropies = torch.zeros_like(logp) if entropies is None else entropies
    same_everywhere = SimpleNamespace(
        num_processes=1, gather=lambda t: t, reduce=lambda t, reduction: t, sync_gradients=True,
        pad_across_processes=lambda t, dim, pad_index: t,
    )  # fmt: skip
    trainer = SimpleNamespace(
        args=SimpleNamespace(**{k: changes.get(k, v) for k, v in args.items()}),
        _get_per_token_logps_and_entropies=lambda *a, **k: (logp, entropies, None),
        aux_loss_enabled=False, importance_sampling_level=level, beta=beta, loss_type=loss_type,
        top_entropy_quantile=changes.get("top_entropy_quantile", 1.0),
        off_policy_mask_threshold=changes.get("off_policy_mask_threshold"),
        epsilon_low=clip[0], epsilon_high=clip[1], use_vllm=ratio is not None, vllm_importance_sampling_correction=True,
        current_gradient_accumulation_steps=1, max_completion_length=T, accelerator=same_everywhere,
        model=SimpleNamespace(training=True), _entropy_bonus_enabled="entropy_coef" in changes,
        entropy_coef=changes.get("entropy_coef", 0.0), use_adaptive_entropy=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        get_gamma_weights=trl.GRPOTrainer.get_gamma_weights, get_off_policy_mask=trl.GRPOTrainer.get_off_policy_mask,
    )  # fmt: skip
    trainer.get_high_entropy_mask = lambda *a: trl.GRPOTrainer.get_high_entropy_mask(trainer, *a)
    ids, mask = torch.zeros(B, T, dtype=torch.long), x["mask"].int()
    inputs = {
        "prompt_ids": ids[:, :1], "prompt_mask": mask[:, :1], "completion_ids": ids, "completion_mask": mask,
        "advantages": x["advantages"], "old_per_token_logps": x["old_logp"], "num_items_in_batch": mask.sum(),
        "ref_per_token_logps": ref_logp, "importance_sampling_ratio": ratio,
    }  # fmt: skip
    loss = trl.GRPOTrainer._compute_loss(trainer, trainer.model, inputs)
    if entropies.requires_grad:
        return loss.detach(), *torch.autograd.grad(loss, (logp, entropies))
    return loss.detach(), torch.autograd.grad(loss, logp)[0]


SEQUENCE = {"level": "sequence", "clip": (0.05, 0.1)}
TRL = [  # what TRL calls it, what we do
    ({"loss_type": "grpo"}, {"kind": "grpo", "normalizer": "sequence"}),
    ({"loss_type": "bnpo"}, {"kind": "grpo"}),
    ({"loss_type": "dr_grpo"}, {"kind": "dr_grpo"}),
    ({"loss_type": "dapo", "clip": (0.2, 0.28)}, {"kind": "dapo"}),
    ({"loss_type": "grpo", "delta": 1.4}, {"kind": "grpo", "delta": 1.4, "normalizer": "sequence"}),
    ({"loss_type": "grpo", **SEQUENCE}, {"kind": "gspo", "clip": (0.05, 0.1)}),
    ({"loss_type": "luspo", **SEQUENCE}, {"kind": "luspo", "clip": (0.05, 0.1)}),
    ({"loss_type": "luspo"}, {"kind": "grpo", "normalizer": "sequence_sum"}),  # on token ratios, its config's default
    ({"loss_type": "cispo", "clip": (0.2, 1.1)}, {"kind": "cispo", "clip": (math.inf, 1.1)}),  # a raw upper bound
    ({"loss_type": "sapo"}, {"kind": "sapo"}),
    ({"loss_type": "vespo"}, {"kind": "vespo"}),
]


@pytest.mark.parametrize(("theirs", "mine"), TRL, ids=["-".join(map(str, mine.values())) for _, mine in TRL])
@pytest.mark.parametrize("kl", [None, "plain", "corrected"])
@pytest.mark.parametrize("weighted", [None, "token", "sequence"])
def test_trl(x, theirs, mine, kl, weighted):
    options = {}
    if kl:
        theirs = {**theirs, "beta": 0.1, "ref_logp": x["old_logp"] - 0.1, "use_bias_correction_kl": kl == "corrected"}
        options |= {"kl_coef": 0.1, "ref_logp": x["old_logp"] - 0.1, "kl_corrected": kl == "corrected"}
    if weighted:
        rollout = x["old_logp"] + 0.02 * x["logp"]
        w = warpup.rollout_weights(x["old_logp"], rollout, x["mask"], level=weighted)
        theirs = {**theirs, "ratio": w if weighted == "token" else w[:, None]}
        options["weights"] = w
    same(ours(x, **mine, **options), trl_loss(x, **theirs))


def test_trl_counts_empty_sequences(x):
    x = {**x, "mask": x["mask"] & (torch.arange(B) != 2)[:, None]}
    want = trl_loss(x, loss_type="grpo")
    same(ours(x, normalizer=("sequence", B)), want)
    assert not torch.allclose(ours(x, normalizer="sequence")[0], want[0])


def test_trl_masks(x):
    """Both multiply the policy term and leave the normalizer; the KL is not masked."""
    kl = {"kl_coef": 0.1, "ref_logp": x["old_logp"] - 0.1}
    options = {"beta": 0.1, "ref_logp": kl["ref_logp"], "loss_type": "grpo"}
    keep = warpup.sequence_mask(x["logp"], x["old_logp"], x["advantages"], x["mask"], delta=0.01)
    assert 0 < keep.sum() < B
    want = trl_loss(x, **options, off_policy_mask_threshold=0.01)
    same(ours(x, normalizer="sequence", weights=keep, **kl), want)
    entropy = x["old_logp"].square()
    top = warpup.top_entropy_mask(entropy, x["mask"], 0.8)
    assert top.sum() == 19
    want = trl_loss(x, **options, top_entropy_quantile=0.2, entropies=entropy)
    same(ours(x, normalizer="sequence", weights=top, **kl), want)


def test_trl_entropy_bonus(x):
    """TRL's is a mean over tokens whatever the loss is divided by; so it is ours where the loss is one too."""
    entropy = x["old_logp"].square().requires_grad_()
    want = trl_loss(x, loss_type="bnpo", entropies=entropy, entropy_coef=0.05)
    logp = x["logp"].detach().requires_grad_()
    loss, _ = warpup.policy_loss(**{**x, "logp": logp}, entropy=entropy, entropy_coef=0.05)
    same((loss.detach(), *torch.autograd.grad(loss, (logp, entropy))), want)


# ---- Liger ----------------------------------------------------------------------------------------------------------

LIGER = [(theirs, mine) for theirs, mine in TRL if theirs["loss_type"] != "luspo" or "level" in theirs]


@pytest.mark.parametrize(("theirs", "mine"), LIGER, ids=["-".join(map(str, mine.values())) for _, mine in LIGER])
@pytest.mark.parametrize("corrected", [False, True])
def test_liger(x, theirs, mine, corrected):
    """Without LUSPO on token ratios, which Liger averages over B * T, and without LUSPO's KL, which it multiplies by
    the length as well."""
    loss_of = pytest.importorskip("liger_kernel.chunked_loss.grpo_loss").LigerFusedLinearGRPOFunction.ppo_loss_fn
    beta = 0.0 if theirs["loss_type"] == "luspo" else 0.1
    logp, mask, ref_logp = x["logp"].detach().requires_grad_(), x["mask"].float(), x["old_logp"] - 0.1
    loss, _ = loss_of(
        logp, x["mask"].float(), x["advantages"], mask, ref_logp, x["old_logp"], *theirs.get("clip", (0.2, 0.2)), beta,
        theirs["loss_type"], T, theirs.get("level", "token"), delta=theirs.get("delta"),
        use_bias_correction_kl=corrected,
    )  # fmt: skip
    want = loss.detach(), torch.autograd.grad(loss, logp)[0]
    same(ours(x, **mine, kl_coef=beta, ref_logp=ref_logp, kl_corrected=corrected), want)
