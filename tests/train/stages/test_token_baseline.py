"""Credit against the optimal token baseline: the estimator on what the model itself gives, over turns, resumed."""

import math

import pytest
import torch

from tests.support.tiny import EXAMPLES, TOKENIZER, Killed, killer, llama, log_of, rlvr, same, weights
from tests.train.sampling.test_episodes import Asks
from warpup.advantage import optimal_token_baseline
from warpup.train import Recipe, TrainError
from warpup.train.rewards.reward_set import VERIFIER
from warpup.train.stages import rlvr as stage

pytestmark = pytest.mark.usefixtures("one_thread")
OPTIONS = {"advantage": "optimal_token_baseline", "steps": 1, "temperature": 0.8}


def sometimes(completion, example):
    return math.nan if len(completion) % 5 == 0 else len(set(completion.split())) / 8


@pytest.mark.parametrize(
    "options",
    [{"reward": sometimes}, {"top_k": 6}, {"environment": Asks, "reward": VERIFIER, "turns": 3}],
    ids=["plain", "filtered", "turns"],
)
def test_it_is_the_estimator_on_the_models_own_probabilities(tmp_path, monkeypatch, options):
    seen, credit = {}, stage.credit_tokens

    def recorded(settings, run, head, sampled):
        return seen.setdefault("sampled", credit(settings, run, head, sampled))

    monkeypatch.setattr(stage, "credit_tokens", recorded)
    Recipe([rlvr(**OPTIONS, **options, max_tokens=40)]).run(llama(), TOKENIZER, tmp_path)
    sampled, model = seen["sampled"], llama().eval()
    rolls, known = sampled.rolls, ~torch.tensor(sampled.scores.rewards).isnan()
    mask = rolls.learned() & known[:, None]
    rewards, sum_p2 = torch.zeros(mask.shape), torch.zeros(mask.shape)
    left = torch.ones(*mask.shape, len(TOKENIZER)).bool()
    if rolls.kept is not None:
        left = rolls.kept.to_mask(len(TOKENIZER)).view_as(left)
    for n, (prompt, said, *_) in enumerate(sampled.pairs):
        logits = model(torch.tensor([prompt + said])).logits[0, len(prompt) - 1 : -1].detach() / 0.8
        chances = torch.softmax(logits.masked_fill(~left[n, : len(said)], -torch.inf), -1)
        sum_p2[n, : len(said)] = chances.square().sum(-1)
        if sampled.scores.token_rewards:
            rewards[n] = torch.tensor(sampled.scores.token_rewards[n])
        elif known[n]:
            rewards[n, int(mask[n].nonzero()[-1])] = sampled.scores.rewards[n]
    want = optimal_token_baseline(rewards, 4, mask=mask, logp=rolls.logp, sum_p2=sum_p2)
    torch.testing.assert_close(sampled.advantages, want, rtol=1e-3, atol=1e-4)
    assert (~known).any() == (options.get("reward") is sometimes)


def test_killed_and_resumed_bit_for_bit(tmp_path):
    def some():
        return rlvr(**OPTIONS | {"steps": 3}, save_every=1)

    whole = weights(Recipe([some()]).run(llama(), TOKENIZER, tmp_path / "whole"))
    with pytest.raises(Killed):
        Recipe([some()]).run(llama(), TOKENIZER, tmp_path / "run", report=killer(2))
    assert same(whole, weights(Recipe([some()]).run(llama(), TOKENIZER, tmp_path / "run")))


def test_it_does_not_depend_on_how_a_step_is_cut(tmp_path):
    for name, tokens in (("whole", None), ("cut", 40)):
        Recipe([rlvr(**OPTIONS, max_tokens=tokens)]).run(llama(), TOKENIZER, tmp_path / name)
    whole, cut = (next(line for line in log_of(tmp_path / name) if "loss" in line) for name in ("whole", "cut"))
    assert cut["grad_norm"] == pytest.approx(whole["grad_norm"], rel=1e-4)


def test_refilling_makes_no_sense_with_it():
    with pytest.raises(TrainError, match=r"rlvr.refill: .*optimal_token_baseline learns from groups"):
        rlvr(**OPTIONS, data=EXAMPLES, refill=1).check()
