"""Importance correction: a sampler whose log-probs are not the trainer's own, by hand."""

import math
from dataclasses import replace

import pytest
import torch

from tests.support.tiny import TOKENIZER, llama, log_of, rlvr, weights
from warpup.policy.masks import rollout_mask
from warpup.train import Recipe, TrainError
from warpup.train.sampling import rollouts, rounds
from warpup.train.stages.correction import Correction

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def engine(monkeypatch):
    """A sampler that rounds otherwise: its log-probs are off by something that depends on the token."""
    seen, plain = {}, rollouts.rollout

    def rollout(*arguments, **options):
        own = plain(*arguments, **options)
        off = torch.sin(own.tokens + torch.arange(own.tokens.shape[1])) * own.logp.ne(0)
        seen.update(own=own, rolls=replace(own, logp=own.logp + off))
        return seen["rolls"]

    advantages_of = rounds.advantages_of

    def advantages(*arguments):
        found = advantages_of(*arguments)
        return seen.setdefault("advantages", found) if "own" in seen else found  # which a check asks for first

    monkeypatch.setattr("warpup.train.engines.own.rollout", rollout)
    monkeypatch.setattr(rounds, "advantages_of", advantages)
    return seen


def trained(folder, **options):
    model = Recipe([rlvr(**{"steps": 1} | options)]).run(llama(), TOKENIZER, folder)
    return weights(model), next(line for line in log_of(folder) if "loss" in line)


def by_hand(mode, ratio, cap, floor):
    return ratio.clamp(floor, cap) if mode.endswith("truncate") else ratio * ((ratio >= floor) & (ratio <= cap))


@pytest.mark.parametrize("mode", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_a_step_is_that_of_a_computation_by_hand(tmp_path, engine, mode):
    """Ratios to the trainer's own log-probs are 1, so the loss is the mean of -weight * advantage over tokens."""
    bounds = {"correction_max": 1.5, "correction_min": 0.6}
    _, line = trained(tmp_path, correction=mode, **bounds, max_tokens=40)
    own, rolls = engine["own"], engine["rolls"]
    mask = rolls.learned() & engine["advantages"].view(3, 4).any(1).repeat_interleave(4)[:, None]
    difference = (own.logp - rolls.logp).double()
    ratio = difference.exp() if mode.startswith("token") else (difference * mask).sum(1).exp()
    w = by_hand(mode, ratio, 1.5, 0.6)
    each = (w if w.dim() == 2 else w[:, None]).expand_as(mask)
    want = -(each * engine["advantages"].double()[:, None])[mask].sum() / mask.sum()
    assert line["loss"] == pytest.approx(want.item(), rel=1e-4, abs=1e-6)
    assert line["ratio_mean"] == pytest.approx(1, abs=1e-4)
    # The diagnostics, over tokens or over completions.
    counted = mask if ratio.dim() == 2 else mask.any(1)
    r, kept = ratio[counted], w[counted]
    assert line["correction_ratio"] == pytest.approx(r.mean().item(), rel=1e-4)
    assert line["correction_outside"] == pytest.approx(((r > 1.5) | (r < 0.6)).double().mean().item())
    assert 0 < line["correction_outside"] < 1
    assert line["correction_ess"] == pytest.approx((kept.sum() ** 2 / kept.square().sum() / len(kept)).item(), rel=1e-4)
    d = difference[mask]
    assert line["sampler_kl"] == pytest.approx((d.exp() - d - 1).mean().item(), rel=1e-4)
    assert line["weight"] == pytest.approx(each[mask].mean().item(), rel=1e-4)


MASKS = [("ratio", "token", 1.5, 0.6), ("k3", "max", 0.65, None), ("binary_kl", "mean", 0.02, None)]


@pytest.mark.parametrize(("measure", "over", "cap", "floor"), MASKS)
@pytest.mark.parametrize("correction", [None, "sequence_truncate"])
def test_what_the_sampler_gives_otherwise_is_left_out(tmp_path, engine, measure, over, cap, floor, correction):
    """Left out of the sum, kept in the denominator; beside weights it multiplies them."""
    settings = {
        "rollout_mask": measure,
        "rollout_mask_over": over,
        "rollout_mask_cap": cap,
        "rollout_mask_floor": floor,
    }
    more = {"correction": correction, "correction_max": 1.5} if correction else {}
    _, line = trained(tmp_path, **settings, **more, max_tokens=40)
    own, rolls = engine["own"], engine["rolls"]
    mask = rolls.learned() & engine["advantages"].view(3, 4).any(1).repeat_interleave(4)[:, None]
    kept = rollout_mask(own.logp, rolls.logp, mask, measure=measure, over=over, cap=cap, floor=floor)
    kept = kept if kept.dim() == 2 else kept[:, None].expand_as(mask)
    assert 0 < kept[mask].double().mean() < 1
    w = ((own.logp - rolls.logp).double() * mask).sum(1).exp().clamp(max=1.5) if correction else torch.ones(len(mask))
    each = w[:, None] * kept
    want = -(each * engine["advantages"].double()[:, None])[mask].sum() / mask.sum()
    assert line["loss"] == pytest.approx(want.item(), rel=1e-4, abs=1e-6)
    assert line["ratio_mean"] == pytest.approx(1, abs=1e-4)  # against the trainer's own log-probs
    assert line["rollout_masked"] == pytest.approx(1 - kept[mask].double().mean().item(), abs=1e-6)
    assert ("correction_ess" in line) == bool(correction)


def test_a_sampler_that_computes_alike_needs_no_correction(tmp_path):
    plain, line = trained(tmp_path / "plain", clip=0.0)
    corrected, said = trained(tmp_path / "corrected", clip=0.0, correction="sequence_mask")
    assert said["grad_norm"] == pytest.approx(line["grad_norm"], rel=1e-4)
    assert said["sampler_kl"] == pytest.approx(0, abs=1e-6)
    assert (said["correction_outside"], said["correction_ess"]) == (0, pytest.approx(1, abs=1e-6))
    assert "weight" not in line
    for name, value in plain.items():
        torch.testing.assert_close(corrected[name], value, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"correction": "token_truncate"},
        {"advantage": "gae", "kl_coef": 0.1, "kl_in_reward": True, "value_coef": 0.5},
        {"kl_coef": 0.1, "kl": "full"},
        {"advantage": "segment", "branches": 2},
        {"advantage": "tree", "branches": 2},
    ],
    ids=["correction", "gae", "full", "segment", "tree"],
)
def test_in_bfloat16(tmp_path, options):
    """Here sampler and trainer do round otherwise: a little, which is measured."""
    Recipe([rlvr(steps=2, **options)], dtype="bfloat16").run(llama(), TOKENIZER, tmp_path)
    lines = [line for line in log_of(tmp_path) if "loss" in line]
    assert all(math.isfinite(line["grad_norm"]) for line in lines)
    if "correction" in options:
        assert 1e-9 < lines[0]["sampler_kl"] < 1e-2
        assert lines[0]["correction_ratio"] == pytest.approx(1, abs=0.05)


def test_the_trl_defaults():
    """Sequence, mask, cap 3: weights exactly as TRL's sequence_mask gives them."""
    own, sampled = torch.tensor([[-1.0, -1.0], [-1.0, -2.0]]), torch.tensor([[-1.5, -1.75], [-1.0, -1.5]])
    mask = torch.ones(2, 2).bool()
    assert Correction("sequence_mask").weights(own, sampled, mask).tolist() == [0.0, pytest.approx(0.6065, abs=1e-4)]
    assert Correction("token_truncate", cap=2.0).weights(own, sampled, mask)[0, 1] == 2.0


def test_off_policy_completions_are_left_out(tmp_path, engine):
    """Where the advantage is negative and the mean of sampled - own is above the threshold; kept in the denominator."""
    _, line = trained(tmp_path, off_policy_mask_threshold=0.05, loss="gpg", max_tokens=40)
    own, rolls, advantages = engine["own"], engine["rolls"], engine["advantages"]
    used = advantages.view(3, 4).any(1).repeat_interleave(4)
    mask = rolls.learned()
    drift = ((rolls.logp - own.logp) * mask).sum(1) / mask.sum(1)
    keep = (advantages >= 0) | (drift <= 0.05)
    assert 0 < int((~keep).sum()) < int((advantages < 0).sum())
    counted = (mask & used[:, None]).sum().item()
    want = -((advantages * keep)[:, None] * own.logp * mask)[used].sum().item() / counted
    assert line["loss"] == pytest.approx(want, rel=1e-4)
    assert line["weight"] == pytest.approx((keep[:, None] & mask & used[:, None]).sum().item() / counted)


def test_masked_and_corrected_tokens_weigh_the_product(tmp_path, engine):
    _, line = trained(tmp_path, correction="token_truncate", correction_max=1.5, off_policy_mask_threshold=0.05)
    own, rolls, advantages = engine["own"], engine["rolls"], engine["advantages"]
    mask = rolls.learned()
    keep = (advantages >= 0) | (((rolls.logp - own.logp) * mask).sum(1) / mask.sum(1) <= 0.05)
    each = (own.logp - rolls.logp).exp().clamp(max=1.5) * keep[:, None]
    mask = mask & advantages.view(3, 4).any(1).repeat_interleave(4)[:, None]
    assert line["weight"] == pytest.approx(each[mask].mean().item(), rel=1e-4)
    want = -(each * advantages[:, None])[mask].sum() / mask.sum()
    assert line["loss"] == pytest.approx(want.item(), rel=1e-4, abs=1e-6)


def test_it_goes_together_with_what_else_weighs_tokens(tmp_path, engine):
    both = {"correction": "token_truncate", "off_policy_mask_threshold": 0.05, "entropy_quantile": 0.5}
    whole, line = trained(tmp_path / "whole", inner_epochs=2, minibatches=2, lr=1e-3, **both)
    cut, _ = trained(tmp_path / "cut", inner_epochs=2, minibatches=2, lr=1e-3, max_tokens=40, **both)
    assert 0 < line["weight"] < 0.8
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"correction_max": 2.0}, "rlvr.correction_max: got 2.0, but correction is none"),
        ({"correction": "token_mask", "correction_max": 0.5}, "expected bounds above and below 1"),
        ({"correction": "token_mask", "correction_min": 1.5}, "expected bounds above and below 1"),
        ({"rollout_mask": "k3"}, "rlvr.rollout_mask_cap: nothing given"),
        ({"rollout_mask_cap": 1.0}, "rlvr.rollout_mask_cap: got 1.0, but nothing is measured"),
        ({"rollout_mask": "k3", "rollout_mask_cap": 1.0, "rollout_mask_floor": 0.5}, "measure 'k3' has no floor"),
        ({"rollout_mask": "ratio", "rollout_mask_cap": 2.0, "rollout_mask_over": "max"}, "no max"),
        ({"off_policy_mask_threshold": -1.0}, "rlvr.off_policy_mask_threshold: expected at least 0"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(TrainError, match=message):
        rlvr(**options).check()
