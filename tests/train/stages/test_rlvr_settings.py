"""Everything that a policy loss can be told is told by a setting of RLVR, and does something there."""

import dataclasses
import math

import pytest
import torch

from tests.support.tiny import EXAMPLES, TOKENIZER, llama, log_of, rlvr, weights
from warpup.policy.kinds import POLICY_KINDS, PolicyOptions
from warpup.policy.masks import clip_cov_tokens, kl_cov_tokens
from warpup.train import RLVR, Recipe, TrainError
from warpup.train.config import TrainConfig, fill
from warpup.train.sampling import rounds

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
    assert OPTIONS.keys() == {field.name for field in dataclasses.fields(PolicyOptions)}
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
        ({"delta": 3.0}, "rlvr.delta: .*inner_epochs or minibatches"),
        ({"cov_share": 0.1}, "rlvr.cov_share: .*'grpo' chooses no tokens"),
        ({"loss": "kl_cov", "cov_bounds": (0.0, 1.0)}, "rlvr.cov_bounds: .*'kl_cov' draws no tokens"),
        ({"loss": "clip_cov", "cov_bounds": (1.0, 1.0)}, "rlvr.cov_bounds: expected a lower"),
        ({"loss": "kl_cov", "cov_share": 0.0}, "rlvr.cov_share: expected more than 0"),
        ({"kl_coef": 0.1, "kl": "full", "schedule": "cyclic:amplitude=4,period=8"}, "rlvr.kl: full takes no schedule"),
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


def test_the_full_kl_is_that_of_all_logits(tmp_path, monkeypatch):
    """After a step on the same rollouts the policy has left its reference: the KL of whole distributions, by hand. It
    does not depend on how the step is cut."""
    rolled, at, rollout, step = [], [], rounds.rollout, torch.optim.AdamW.step
    model = llama()
    monkeypatch.setattr(rounds, "rollout", lambda m, p, **k: rolled.append((p, rollout(m, p, **k))) or rolled[0][1])
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda o, *a: at.append(weights(model)) or step(o, *a))
    options = {"steps": 1, "inner_epochs": 2, "kl_coef": 0.5, "kl": "full", "temperature": 0.7}
    Recipe([rlvr(**options, max_tokens=40)]).run(model, TOKENIZER, tmp_path / "cut")
    Recipe([rlvr(**options)]).run(llama(), TOKENIZER, tmp_path / "whole")
    cut, whole = (next(line for line in log_of(tmp_path / name) if "ref_kl" in line) for name in ("cut", "whole"))
    now, before, total, tokens = llama(), llama(), 0.0, 0
    now.load_state_dict(at[1])  # what the second of the two steps was taken at
    prompts, rolls = rolled[0]
    with torch.no_grad():
        for n in range(len(rolls.tokens)):
            prompt, completion = list(prompts[n // 4]), rolls.completion(n)
            logits = [m(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1] for m in (now, before)]
            p, q = (torch.log_softmax(z.double() / 0.7, -1) for z in logits)
            total, tokens = total + (p.exp() * (p - q)).sum().item(), tokens + len(completion)
    assert cut["tokens"] == tokens  # no group was left out
    assert cut["ref_kl"] == pytest.approx(total / tokens, rel=1e-3)
    assert whole["ref_kl"] == pytest.approx(cut["ref_kl"], rel=1e-4)
