"""Everything that a policy loss can be told is told by a setting of RLVR, and does something there."""

import dataclasses
import math
import re
from pathlib import Path
from typing import get_args

import pytest
import torch

import warpup
from tests.support.tiny import EXAMPLES, TOKENIZER, llama, log_of, rlvr, weights
from tests.train.model.test_heads import build
from tests.train.sampling.test_penalties import penalized_by_hand
from tests.train.sampling.test_roles import Duel
from warpup import advantage
from warpup.policy.kinds import POLICY_KINDS, PolicyOptions
from warpup.policy.masks import clip_cov_tokens, kl_cov_tokens
from warpup.train import RLVR, Recipe, TrainError
from warpup.train.config import TrainConfig
from warpup.train.config_file import fill
from warpup.train.rewards.reward_set import VERIFIER
from warpup.train.sampling import rollouts
from warpup.train.settings import Advantage

pytestmark = pytest.mark.usefixtures("one_thread")

OPTIONS = {  # of PolicyOptions: the setting of RLVR, a value of it, and what the loss is told
    "kind": ("loss", None, None),
    "clip": ("clip_ratio", (0.1, 0.3), (0.1, 0.3)),
    "delta": ("delta", 3.0, 3.0),
    "dual_clip": ("dual_clip", 3.0, 3.0),
    "constants": ("loss_constants", None, None),
    "kl_coef": ("kl_coef", 0.1, 0.1),
    "kl": ("kl", "k1+", "k1+"),
    "kl_corrected": ("kl_corrected", True, True),
    "kl_clamp": ("kl_clamp", (0.5, 2.0), (0.5, 2.0)),
    "entropy_coef": ("entropy_coef", 0.1, 0.1),
    "normalizer": ("normalizer", "sequence_sum", "sequence_sum"),
}


def stage_of(kind, option):
    """A stage with an option that this kind of loss has; None if it has not."""
    published, (name, value, told) = POLICY_KINDS[kind], OPTIONS[option]
    if option in ("delta", "dual_clip") and published.formula != "clip":
        return None
    if option == "clip":
        if published.clip is None:
            return None
        told = value = (math.inf, 3.0) if published.bounds == "above" else value
    if option == "constants":
        if not published.constants:
            return None
        first = next(iter(published.constants))
        value, told = {first: 1.5}, (1.5, *list(published.constants.values())[1:])
    if option == "kind":
        value = told = kind
    more = {"kl_coef": 0.1} if option.startswith("kl") else {}
    return RLVR(**{"data": EXAMPLES, "inner_epochs": 2, "loss": kind, **more, name: value}), told


@pytest.mark.parametrize("kind", POLICY_KINDS)
def test_every_option_of_every_loss_is_reached(kind):
    elsewhere = {"reduction"}  # of policy_loss alone: a stage takes one mean
    assert OPTIONS.keys() | elsewhere == {field.name for field in dataclasses.fields(PolicyOptions)}
    for option, (name, value, _) in OPTIONS.items():
        found = stage_of(kind, option)
        if found is None:  # what the loss does not have is refused by the setting's name
            value = {"tau": 1.0} if option == "constants" else value
            with pytest.raises(TrainError, match=rf"rlvr.*{name.removesuffix('_ratio')}"):
                RLVR(data=EXAMPLES, inner_epochs=2, loss=kind, **{name: value}).check()
            continue
        stage, told = found
        stage.check()
        assert getattr(stage.policy_options(), option) == told


def test_they_are_written_in_a_config():
    """As TOML has them: tables, lists and infinity."""
    table = {"loss": "vespo", "loss_constants": {"k_negative": 2.5}, "kl_corrected": True, "delta": 4}
    stage = fill(TrainConfig, {"rlvr": table}, "").rlvr
    assert stage.constants() == (2.0, 3.0, 2.5, 2.0)
    assert (stage.kl_corrected, stage.delta) == (True, 4.0)
    assert fill(TrainConfig, {"rlvr": {"loss": "cispo", "clip_ratio": [math.inf, 4]}}, "").rlvr.policy_options().clip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "sapo", "loss_constants": {"tau": 1.0}}, "loss 'sapo' has tau_positive, tau_negative, got tau"),
        ({"loss_constants": {"tau": 1.0}}, "loss 'grpo' has none, got tau"),
        ({"kl_corrected": True}, "rlvr.kl_corrected: got True, but kl_coef is 0"),
        ({"kl_clamp": (1.0, 1.0)}, "rlvr.kl_clamp: .*but kl_coef is 0"),
        ({"kl_coef": 0.1, "kl": "full", "kl_clamp": (1.0, 1.0)}, "rlvr: .*kl_clamp belongs to kl 'k1', 'k2' and 'k3'"),
        ({"kl_coef": 0.1, "kl_clamp": (0.0, 1.0)}, "rlvr: .*kl_clamp must be two numbers above 0"),
        ({"delta": 3.0}, "rlvr.delta: .*inner_epochs or minibatches"),
        ({"cov_share": 0.1}, "rlvr.cov_share: .*'grpo' chooses no tokens"),
        ({"loss": "kl_cov", "cov_bounds": (0.0, 1.0)}, "rlvr.cov_bounds: .*'kl_cov' draws no tokens"),
        ({"loss": "clip_cov", "cov_bounds": (1.0, 1.0)}, "rlvr.cov_bounds: expected a lower"),
        ({"loss": "kl_cov", "cov_share": 0.0}, "rlvr.cov_share: expected more than 0"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(TrainError, match=message):
        RLVR(data=EXAMPLES, **options).check()


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "sapo", "loss_constants": {"tau_positive": 3.0}},
        {"loss": "kl_cov", "loss_constants": {"penalty": 9.0}, "cov_share": 0.2},
        {"loss": "kl_cov", "cov_share": 0.5},
        {"loss": "clip_cov", "cov_share": 0.5, "cov_bounds": (-9.0, 9.0)},
        {"delta": 1.05},
        {"kl_coef": 1.0, "kl_corrected": True},
        {"kl_coef": 1.0, "kl_clamp": (1e-4, 1e-4)},
        {"kl_coef": 1.0, "kl": "full"},
        {"normalizer": "sequence_sum"},
    ],
    ids=lambda options: "-".join(options),
)
def test_they_change_what_is_learned(tmp_path, options):
    # clip 0: Adam's first steps would not show a factor, and a gradient norm does; clip_ratio wide, so delta is what
    # holds
    plain = {"steps": 1, "inner_epochs": 3, "lr": 3e-2, "clip": 0.0, "weight_decay": 0.1}
    same_kind = {name: options[name] for name in ("loss", "kl_coef") if name in options}
    if "delta" in options:
        plain["clip_ratio"] = (0.9, 9.0)
    trained = []
    for n, more in enumerate((same_kind, options)):
        Recipe([rlvr(**plain, **more)]).run(llama(), TOKENIZER, tmp_path / str(n))
        trained.append([line["grad_norm"] for line in log_of(tmp_path / str(n)) if "grad_norm" in line])
    assert trained[0] != trained[1]


def test_the_shares_and_bounds_of_cov_are_those_of_the_masks(tmp_path, monkeypatch):
    seen = {}
    for name, plain in (("clip_cov_tokens", clip_cov_tokens), ("kl_cov_tokens", kl_cov_tokens)):
        monkeypatch.setattr(
            f"warpup.train.stages.policy_step.{name}",
            lambda *a, _name=name, _plain=plain, **k: seen.setdefault(_name, k) and _plain(*a, **k),
        )
    Recipe([rlvr(steps=1, loss="clip_cov", cov_share=0.3, cov_bounds=(0.5, 2.0))]).run(
        llama(), TOKENIZER, tmp_path / "clip"
    )
    Recipe([rlvr(steps=1, loss="kl_cov", cov_share=0.4)]).run(llama(), TOKENIZER, tmp_path / "kl")
    assert (seen["clip_cov_tokens"]["share"], seen["clip_cov_tokens"]["bounds"]) == (0.3, (0.5, 2.0))
    assert seen["kl_cov_tokens"]["share"] == 0.4


SCHEDULE = "cyclic:amplitude=4,period=8,phase=any"


@pytest.mark.parametrize(
    "drawn",
    [
        {},
        {"top_k": 6},
        {
            "schedule": SCHEDULE,
            "words": "wait,back",
            "top_p": 0.9,
            "typical_p": 0.9,
            "repetition": 1.3,
            "presence": 0.4,
            "frequency": 0.1,
            "logit_bias": {"back": 0.3},
        },
    ],
    ids=["plain", "filter", "all"],
)
def test_the_full_kl_is_that_of_all_that_could_be_drawn(tmp_path, monkeypatch, drawn):
    """After a step on the same rollouts the policy has left its reference: the KL of whole distributions, by hand. It
    does not depend on how the step is cut."""
    rolled, at, rollout, step = [], [], rollouts.rollout, torch.optim.AdamW.step
    model = llama()
    kept = lambda m, p, **k: rolled.append((p, rollout(m, p, **k))) or rolled[0][1]  # noqa: E731
    monkeypatch.setattr("warpup.train.engines.own.rollout", kept)
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda o, *a: at.append(weights(model)) or step(o, *a))
    options = {"steps": 1, "inner_epochs": 2, "kl_coef": 0.5, "kl": "full", "temperature": 0.7, **drawn}
    Recipe([rlvr(**options, max_tokens=40)]).run(model, TOKENIZER, tmp_path / "cut")
    Recipe([rlvr(**options)]).run(llama(), TOKENIZER, tmp_path / "whole")
    cut, whole = (next(line for line in log_of(tmp_path / name) if "ref_kl" in line) for name in ("cut", "whole"))
    now, before, total, tokens = llama(), llama(), 0.0, 0
    now.load_state_dict(at[1])  # what the second of the two steps was taken at
    prompts, rolls = rolled[0]
    left = None if rolls.kept is None else rolls.kept.to_mask(len(TOKENIZER)).view(*rolls.tokens.shape, -1)
    with torch.no_grad():
        for n in range(len(rolls.tokens)):
            prompt, completion = list(prompts[n // 4]), rolls.completion(n)
            logits = [m(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] for m in (now, before)]
            for t in range(len(completion)):
                rows = [z[t].double() for z in logits]
                if rolls.delta is not None:
                    rows = [torch.where(rolls.token_set, z + rolls.delta[n, t], z) for z in rows]
                if rolls.penalties is not None:
                    rows = [penalized_by_hand(z, prompt, completion[:t], **vars(rolls.penalties)) for z in rows]
                if left is not None:
                    rows = [z[left[n, t]] for z in rows]
                p, q = (torch.log_softmax(z / 0.7, -1) for z in rows)
                total += (p.exp() * (p - q)).sum().item()
            tokens += len(completion)
    assert cut["tokens"] == tokens  # no group was left out
    assert total / tokens > 1e-4
    assert cut["ref_kl"] == pytest.approx(total / tokens, rel=1e-3)
    assert whole["ref_kl"] == pytest.approx(cut["ref_kl"], rel=1e-4)


def test_the_full_kl_of_a_head_that_is_not_linear(tmp_path):
    """Whole rows are made of it, a few at a time; a fresh copy is no nat away."""
    model = build("Gemma2", final_logit_softcapping=3.0)
    Recipe([rlvr(steps=2, kl_coef=0.5, kl="full", lr=3e-2)]).run(model, TOKENIZER, tmp_path)
    first, second = (line["ref_kl"] for line in log_of(tmp_path) if "ref_kl" in line)
    assert first == pytest.approx(0, abs=1e-6)
    assert second > 1e-3


# What of the public names of advantages and token masks RLVR reaches by which settings; and what does not fit in it.
ROLES = {"environment": Duel, "reward": VERIFIER, "credit": "role"}
ADVANTAGES = get_args(Advantage)
ADVANTAGE_OPTIONS = {"hierarchical_grpo": ROLES, "segment": {"branches": 2}, "tree": {"branches": 2}}
REACHED = {
    "gae": {"advantage": "gae"},
    "reward_to_go": {"advantage": "reinforce_pp", "gamma": 0.9},
    "masked_whiten": {"advantage": "reinforce_pp"},
    "group_advantage": {"baseline": "leave_one_out", "scale": "batch_std"},
    "role_advantage": ROLES,
    "segment_advantage": {"advantage": "segment"},
    "tree_advantage": {"advantage": "tree"},
    "clip_cov_tokens": {"loss": "clip_cov"},
    "kl_cov_tokens": {"loss": "kl_cov"},
    "rollout_mask": {"rollout_mask": "k3", "rollout_mask_cap": 0.1},
    "rollout_weights": {"correction": "token_truncate"},
    "sequence_mask": {"off_policy_mask_threshold": 0.1},
    "top_entropy_mask": {"entropy_quantile": 0.5},
}
NOT_FITTING = {
    "segment_ids": "a part of segment_advantage",
    "group_plan": "groups of any rows; those of a stage are `samples` rows each",
    "GroupPlan": "what group_plan returns",
    "GroupStats": "what group_advantage returns if asked to",
    "ESTIMATORS": "the table of names",
    "linear_policy_loss": "every loss, from hidden states: what the stage calls",
    "policy_loss": "the same from log-probs",
    "preference_loss": "pairs: the stage Preference",
    "kto_loss": "judged completions: the stage Preference",
    "degree_loss": "rankings",
}


def test_every_public_name_is_reached_or_does_not_fit():
    stub = Path(warpup.__file__).with_suffix(".pyi").read_text()
    public = {*advantage.__all__}
    for names in re.findall(r"^from \.(?:advantage|policy)\.\w+ import (\([^)]*\)|.*)$", stub, re.MULTILINE):
        public |= {name for name in re.findall(r"\w+", names)}
    known = REACHED.keys() | NOT_FITTING.keys() | {name for name in ADVANTAGES if hasattr(advantage, name)}
    assert public == known
    for options in REACHED.values():
        rlvr(**options).check()


@pytest.mark.parametrize("name", ADVANTAGES)
def test_every_advantage_trains(tmp_path, name):
    Recipe([rlvr(steps=1, advantage=name, **ADVANTAGE_OPTIONS.get(name, {}))]).run(llama(), TOKENIZER, tmp_path)
    (line,) = (line for line in log_of(tmp_path) if "loss" in line)
    assert line["grad_norm"] > 0
    assert line["advantage"] > 0
