"""What a step computes does not depend on how it is cut, for any kind of loss."""

import math

import pytest
import torch

from tests.support.tiny import (
    EXAMPLES,
    TOKENIZER,
    Killed,
    killer,
    llama,
    log_of,
    mixture,
    rlvr,
    same,
    warmup,
    weights,
)
from warpup.advantage import ESTIMATORS
from warpup.policy.kinds import POLICY_KINDS
from warpup.train import Recipe
from warpup.train.model.heads import Head
from warpup.train.rewards.reward_set import Scores
from warpup.train.sampling.groups import parts
from warpup.train.sampling.rounds import advantages_of

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(tmp_path, name, make=llama, **options):
    stage = rlvr(**{"steps": 1, "prompts": 4, "inner_epochs": 2, "lr": 1e-3} | options)
    model = Recipe([stage]).run(make(), TOKENIZER, tmp_path / name)
    return weights(model), [line for line in log_of(tmp_path / name) if "loss" in line]


@pytest.mark.parametrize("kind", POLICY_KINDS)
def test_max_tokens_and_rows_change_no_result(tmp_path, kind):
    options = {"loss": kind, "entropy_coef": 0.01, "kl_coef": 0.1, "samples": 8}
    if kind == "kl_cov":  # |log ratio| has no slope where the ratio is 1: there rounding decides its sign
        options["inner_epochs"] = 1
        options["lr"] = 1e-6
    whole, log = trained(tmp_path, "whole", **options)
    cut, cut_log = trained(tmp_path, "cut", max_tokens=40, rows=5, **options)
    assert [line["loss"] for line in cut_log] == pytest.approx([line["loss"] for line in log], rel=1e-4, abs=1e-6)
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("make", [llama, mixture])
@pytest.mark.parametrize(
    "options",
    [
        {"entropy_quantile": 0.5},
        {"advantage": "reinforce_pp"},
        {"advantage": "opo", "minibatches": 2},
        {"schedule": "cyclic:amplitude=4,period=8,phase=any", "words": "wait,back"},
        {"repetition": 1.3, "presence": 0.4, "min_p": 0.02, "kl_coef": 0.1, "entropy_coef": 0.01},
        {"top_p": 0.9, "top_k": 20, "min_p": 0.01, "kl_coef": 0.1, "entropy_coef": 0.01, "minibatches": 2, "refill": 1},
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_change_no_result_by_how_a_step_is_cut(tmp_path, make, options):
    more = options | ({"balance": 0.1} if make is mixture else {})
    whole, log = trained(tmp_path, "whole", make, **more)
    cut, cut_log = trained(tmp_path, "cut", make, max_tokens=40, rows=5, **more)
    assert [line["loss"] for line in cut_log] == pytest.approx([line["loss"] for line in log], rel=1e-4, abs=1e-6)
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("make", [llama, mixture])
def test_warmup_is_the_same_however_it_is_cut(tmp_path, make):
    more = {"balance": 0.1} if make is mixture else {}
    results = [
        weights(Recipe([warmup(steps=3, lr=1e-3, max_tokens=n, **more)]).run(make(), TOKENIZER, tmp_path / str(n)))
        for n in (16384, 90)
    ]
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("options", "name"), [({"loss": "kl_cov"}, "selected"), ({"entropy_quantile": 0.75}, "weights")]
)
def test_tokens_are_chosen_among_all_of_the_step(tmp_path, monkeypatch, options, name):
    """In pieces of a row each: one token of all for kl_cov, not one a piece; a quarter of all for the quantile, though
    rows differ in their entropies."""
    seen, plain = [], Head.policy_loss

    def policy_loss(head, *arguments, **tensors):
        seen.append(tensors[name])
        return plain(head, *arguments, **tensors)

    monkeypatch.setattr(Head, "policy_loss", policy_loss)
    Recipe([rlvr(steps=1, prompts=4, max_tokens=1, **options)]).run(llama(), TOKENIZER, tmp_path)
    tokens, chosen = sum(len(t) for t in seen), sum(int((t != 0).sum()) for t in seen)
    assert len(seen) == 16
    assert chosen == (1 if name == "selected" else pytest.approx(tokens / 4, abs=1))
    assert name == "selected" or len({int(t.sum()) for t in seen}) > 1


@pytest.mark.parametrize("name", sorted(ESTIMATORS))
def test_an_advantage_by_name_is_that_estimator(name):
    rewards, columns = [0.0, 1.0, 3.0, 0.5, 2.0, 2.5], {"a": [0.0, 1, 0, 1, 1, 0], "b": [2.0, 1, 3, 0, 5, 1]}
    learned = torch.arange(5) < torch.tensor([5, 2, 3, 1, 4, 2])[:, None]
    stage = rlvr(samples=3, advantage=name, reward_weights=(1.0, 0.5) if name == "gdpo" else None)
    got = advantages_of(stage, Scores(rewards=rewards, columns=columns), learned)
    r = torch.tensor(rewards)
    want = {
        "opo": lambda f: f(r, 3, lengths=learned.sum(1)),
        "reinforce_pp": lambda f: f(r, mask=learned),
        "reinforce_pp_baseline": lambda f: f(r, 3, mask=learned),
        "gdpo": lambda f: f(torch.tensor([*zip(*columns.values(), strict=True)]), 3, weights=torch.tensor([1.0, 0.5])),
    }.get(name, lambda f: f(r, 3))(ESTIMATORS[name])
    assert torch.equal(got, want)


def test_gdpo_leaves_out_a_completion_of_which_one_reward_failed():
    """What another reward says of it neither credits it nor moves the two others, which are 1 / sqrt(2) from 0."""
    scores = Scores(rewards=[1.0, math.nan, 3.0], columns={"a": [1.0, 9.0, 3.0], "b": [0.0, math.nan, 0.0]})
    got = advantages_of(rlvr(samples=3, advantage="gdpo"), scores, torch.ones(3, 2).bool())
    assert got[1] == 0
    assert got[2] == -got[0]
    assert got[2] == pytest.approx(0.5**0.5, abs=1e-3)


def test_reinforce_pp_leaves_out_a_completion_without_rewards_of_its_tokens():
    given = [[1.0, 0.0, 0.0], None, [0.0, 2.0, 0.5]]
    scores = Scores(rewards=[1.0, math.nan, 2.5], token_rewards=given, columns={"a": [1.0, math.nan, 2.5]})
    got = advantages_of(rlvr(samples=3, advantage="reinforce_pp"), scores, torch.ones(3, 3).bool())
    wanted = ESTIMATORS["reinforce_pp"](torch.tensor([given[0], given[2]]), mask=torch.ones(2, 3))
    assert torch.equal(got, torch.stack([wanted[0], torch.zeros(3), wanted[1]]))


def test_parts_are_whole_groups():
    assert parts([0, 1, 2, 3, 8, 9, 10, 11, 12, 13], 2, 4) == [[0, 1, 2, 3], [8, 9, 10, 11, 12, 13]]
    assert parts([0, 1], 3, 4) == [[0, 1]]
    assert parts([], 2, 4) == []


def test_refill_samples_until_every_group_teaches(tmp_path):
    """Half of the prompts have a constant reward; with refill a step has as many usable groups as without such."""
    flat = {example["prompt"] for example in EXAMPLES[::2]}

    def reward(completion, example):
        return 0.5 if example["prompt"] in flat else len(completion)

    groups = {}
    for refill in (0, 20):
        stage = rlvr(reward=reward, steps=3, prompts=4, refill=refill)
        Recipe([stage]).run(llama(), TOKENIZER, tmp_path / str(refill))
        groups[refill] = [line["groups"] for line in log_of(tmp_path / str(refill)) if "groups" in line]
    assert min(groups[0]) < 4
    assert groups[20] == [4, 4, 4]


def test_truncated_completions_teach_nothing_where_masked(tmp_path):
    lines = {}
    for masked in (False, True):
        stage = rlvr(steps=1, prompts=4, samples=8, max_new_tokens=6, mask_truncated=masked)
        Recipe([stage]).run(llama(), TOKENIZER, tmp_path / str(masked))
        (lines[masked],) = (line for line in log_of(tmp_path / str(masked)) if "loss" in line)
    assert 0 < lines[False]["unfinished"] < 1
    assert lines[True]["tokens"] < lines[False]["tokens"]


def test_a_resumed_run_has_the_reference_of_one_that_was_not_stopped(tmp_path):
    stage = {"steps": 5, "kl_coef": 0.1, "reference_sync": 2, "save_every": 1}  # killed after a step of its own
    whole = weights(Recipe([rlvr(**stage)]).run(llama(), TOKENIZER, tmp_path / "whole"))
    with pytest.raises(Killed):
        Recipe([rlvr(**stage)]).run(llama(), TOKENIZER, tmp_path / "run", report=killer(4))
    assert same(whole, weights(Recipe([rlvr(**stage)]).run(llama(), TOKENIZER, tmp_path / "run")))


def test_the_reference_is_what_it_was_or_what_it_is_set_to(tmp_path):
    """Against the model before the stage the KL grows; against the one of a step ago it stays small."""
    kl = {}
    for sync in (None, 1):
        stage = rlvr(steps=4, lr=3e-3, kl_coef=1e-6, reference_sync=sync, save_every=3)
        Recipe([stage]).run(llama(), TOKENIZER, tmp_path / str(sync))
        kl[sync] = [line["ref_kl"] for line in log_of(tmp_path / str(sync)) if "ref_kl" in line]
    assert kl[None][-1] > 3 * abs(kl[1][-1])
    assert abs(kl[None][0]) < 1e-10
