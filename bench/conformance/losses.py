"""Policy losses and KL estimators of the peers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import warpup
from bench.conformance.row import B, Result, Row, T, ours
from tests.policy import test_openrlhf, test_peers, test_verl

SEQUENCE = {"level": "sequence", "clip": (3e-4, 4e-4)}
HUGGING_FACE = [  # our kind, their name and options, ours as it comes, convention, ours with it
    ("ppo", {"loss_type": "bnpo"}, {}, "", None),
    ("grpo", {"loss_type": "grpo"}, {}, "mean over sequences of their token means", {"normalizer": "sequence"}),
    ("dapo", {"loss_type": "dapo", "clip": (0.2, 0.28)}, {}, "", None),
    ("dr_grpo", {"loss_type": "dr_grpo"}, {}, "", None),
    ("gspo", {"loss_type": "grpo", **SEQUENCE}, {}, "", None),
    ("luspo", {"loss_type": "luspo", **SEQUENCE}, {}, "", None),
    ("cispo", {"loss_type": "cispo", "clip": (0.2, 5.0)}, {}, "", None),
    ("sapo", {"loss_type": "sapo"}, {}, "", None),
    ("vespo", {"loss_type": "vespo"}, {}, "", None),
]  # fmt: skip


def trl_rows(x: dict) -> Iterator[Row]:
    for kind, theirs, plain, convention, given in HUGGING_FACE:
        name = theirs["loss_type"] + (", level sequence" if "level" in theirs else "")
        yield Row(
            kind, "TRL", name, lambda theirs=theirs: test_peers.trl_loss(x, **theirs), ours(x, kind=kind, **plain),
            convention, given and ours(x, kind=kind, **given),
        )  # fmt: skip
    empty = {**x, "mask": x["mask"] & (torch.arange(B) != 2)[:, None]}
    yield Row(
        "grpo, a sequence empty", "TRL", "grpo", lambda: test_peers.trl_loss(empty, loss_type="grpo"),
        ours(empty, kind="grpo", normalizer="sequence"), "an empty sequence counts as one with loss 0",
        ours(empty, kind="grpo", normalizer=("sequence", float(B))),
    )  # fmt: skip


def liger_rows(x: dict) -> Iterator[Row]:
    from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

    def call(loss_type: str, clip=(0.2, 0.2), level="token") -> Result:
        logp, mask = x["logp"].detach().requires_grad_(), x["mask"].double()
        loss, _ = LigerFusedLinearGRPOFunction.ppo_loss_fn(
            logp, mask, x["advantages"], mask, None, x["old_logp"], *clip, 0.0, loss_type, T, level
        )
        return loss.detach(), torch.autograd.grad(loss, logp)[0]

    for kind, theirs, plain, convention, given in HUGGING_FACE:
        name = theirs["loss_type"] + (", level sequence" if "level" in theirs else "")
        yield Row(
            kind, "Liger", name, lambda theirs=theirs: call(**theirs), ours(x, kind=kind, **plain), convention,
            given and ours(x, kind=kind, **given),
        )  # fmt: skip


VERL = [  # our kind, their name and options, convention, ours with it
    ("ppo", {"loss": "vanilla"}, "always a dual clip of 3", {"dual_clip": 3.0}),
    ("dapo", {"loss": "vanilla", "clip": (0.2, 0.28)}, "always a dual clip of 3", {"dual_clip": 3.0}),
    ("dr_grpo", {"loss": "vanilla", "mode": "seq-mean-token-sum-norm"}, "a dual clip of 3",
     {"dual_clip": 3.0}),
    ("gspo", {"loss": "gspo", "clip": (3e-4, 4e-4)}, "each token's own gradient; mean over tokens",
     {"kind": "gspo_token", "normalizer": "token"}),
    ("cispo", {"loss": "cispo"}, "the ratio in [1 - l, 1 + h], not below h", {"kind": "cispo_verl"}),
    ("sapo", {"loss": "sapo", "tau_pos": 1.0, "tau_neg": 1.05}, "", None),
    ("gpg", {"loss": "gpg"}, "", None),
    ("gmpo", {"loss": "geo_mean", "clip": (0.4, 0.4)}, "", None),
    ("dppo_tv", {"loss": "dppo_tv"}, "", None),
    ("dppo_kl", {"loss": "dppo_kl", "clip": (0.05, 0.05)}, "", None),
    ("dro", {"loss": "dro"}, "its dro_beta has no default, .3 here", {"constants": (0.3,)}),
]  # fmt: skip


def verl_rows(x: dict, verl: Any) -> Iterator[Row]:
    for kind, theirs, convention, given in VERL:
        name = theirs["loss"] + (f", {theirs['mode']}" if "mode" in theirs else "")
        yield Row(
            kind, "verl", name, lambda theirs=theirs: test_verl.theirs(verl, x, **theirs), ours(x, kind=kind),
            convention, given and ours(x, **{"kind": kind, **given}),
        )  # fmt: skip
    selected = warpup.kl_cov_tokens(x["logp"], x["advantages"], x["mask"], share=0.02)
    yield Row(
        "kl_cov", "verl", "kl_cov", lambda: test_verl.theirs(verl, x, "kl_cov"),
        ours(x, kind="kl_cov", selected=selected), "the weight of the KL is .1, in the paper 1",
        ours(x, kind="kl_cov", selected=selected, constants=(0.1,)),
    )  # fmt: skip
    empty = {**x, "mask": x["mask"] & (torch.arange(B) != 2)[:, None]}
    yield Row(
        "gmpo, a sequence empty", "verl", "geo_mean",
        lambda: test_verl.theirs(verl, empty, "geo_mean", clip=(0.4, 0.4)),
        ours(empty, kind="gmpo"), "an empty sequence counts as one with loss 0",
        ours(empty, kind="gmpo", normalizer=("sequence", float(B))),
    )  # fmt: skip


def openrlhf_rows(x: dict, openrlhf: Any) -> Iterator[Row]:
    def call(**options) -> Callable[[], Result]:
        return lambda: test_openrlhf.theirs(openrlhf, x, **options)

    yield Row("ppo", "OpenRLHF", "ppo", call(), ours(x, kind="ppo"))
    yield Row(
        "grpo", "OpenRLHF", "ppo, token_level_loss=False", call(token_level_loss=False), ours(x, kind="grpo"),
        "mean over sequences of their token means", ours(x, kind="grpo", normalizer="sequence"),
    )  # fmt: skip
    clip = {"clip_eps_low": 3e-4, "clip_eps_high": 4e-4}
    yield Row("gspo", "OpenRLHF", "gspo", call(policy_loss_type="gspo", **clip), ours(x, kind="gspo"))


VERL_KL = [  # our estimator, its name, convention, ours with it
    ("k1", "k1", "", None),
    ("k2", "k2", "", None),
    ("k3", "k3", "d within +-20, the value at most 10", "k3_verl"),
    ("k1+", "k1+", "", None),
]


def kl_rows(x: dict, verl: Any) -> Iterator[Row]:
    ref_logp = x["old_logp"] + torch.linspace(-2, 3.5, T, dtype=torch.float64)

    def mine(kl: str) -> Callable[[], Result]:
        return ours({**x, "advantages": 0 * x["advantages"]}, kl=kl, kl_coef=1.0, ref_logp=ref_logp)

    def call(name: str) -> Result:
        logp = x["logp"].detach().requires_grad_()
        kl = (verl.kl_penalty(logp, ref_logp, name) * x["mask"]).sum() / x["mask"].sum()
        return kl.detach(), torch.autograd.grad(kl, logp)[0]

    for kl, name, convention, given in VERL_KL:
        yield Row(
            f"kl={kl}", "verl", f"kl_penalty {name}", lambda name=name: call(name), mine(kl), convention,
            given and mine(given),
        )  # fmt: skip
    for corrected in (False, True):
        near = x["old_logp"] - 0.1
        theirs = {"loss_type": "bnpo", "beta": 0.1, "ref_logp": near, "use_bias_correction_kl": corrected}
        yield Row(
            "kl=k3" + ", kl_corrected" * corrected, "TRL", "beta" + ", use_bias_correction_kl" * corrected,
            lambda theirs=theirs: test_peers.trl_loss(x, **theirs),
            ours(x, kl_coef=0.1, ref_logp=near, kl_corrected=corrected),
        )  # fmt: skip
