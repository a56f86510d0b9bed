"""Rewards: found by name, called with what they ask for, and what goes wrong with them."""

import math
from functools import partial

import numpy as np
import pytest
import torch

from warpup.data import Verdict, verify
from warpup.train import TrainError
from warpup.train.rewards.calls import Completion
from warpup.train.rewards.loading import load_reward
from warpup.train.rewards.reward_set import RewardSet, Scores

pytestmark = pytest.mark.usefixtures("one_thread")


def say(*texts, finished=True):
    """Completions of these texts, one token a word and an end token."""
    return [Completion(t, f"{t}<eos>", list(range(len(t.split()) + 1)), finished) for t in texts]


def score(reward, completions, examples, **options):
    return RewardSet(reward).score(completions, examples, **options)


def test_reward_from_a_file(tmp_path):
    (tmp_path / "mine.py").write_text("def good(completion, example):\n    return len(completion) + example['bonus']\n")
    function = load_reward(f"{tmp_path / 'mine.py'}:good")
    assert score(function, say("ab", "abc"), [{"bonus": 1}] * 2).rewards == [3.0, 4.0]
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(TrainError, match=r"cannot import .*ModuleNotFoundError"):
        load_reward(f"{tmp_path / 'broken.py'}:good")


def test_a_reward_gets_what_its_parameters_name():
    def everything(text, row, unknown=5, *, raw_completion, token_ids, length, finished):
        assert (text, row, unknown) == ("a b", {"k": 1}, 5)
        assert (raw_completion, list(token_ids), length, finished) == ("a b<eos>", [0, 1, 2], 3, True)
        return 1.0

    class Callable:
        def __call__(self, completion, example, *, length):
            return length

    rows = [{"k": 1}]
    assert score(everything, say("a b"), rows).rewards == [1.0]
    assert score(Callable(), say("a b"), rows).rewards == [3.0]
    assert score(partial(lambda c, e, length, scale: scale * length, scale=2), say("a b"), rows).rewards == [6.0]
    assert score(lambda *args: len(args), say("a b"), rows).rewards == [2.0]
    assert score(lambda c, e, **more: len(more), say("a b"), rows).rewards == [0.0]
    assert score(lambda c, e: len(c), say("a", "ab", "abc", ""), rows * 4, group=2).rewards == [1.0, 2.0, 3.0, 0.0]
    puzzle = {"answer": "Zoey knight"}
    assert score(verify, say("x"), [puzzle]).rewards == [-2.0]  # its third parameter is its own


def test_a_group_reward_sees_the_completions_of_a_prompt():
    seen = []

    def rank(completions, examples, example, raw_completions, lengths, token_ids, finished, best=1.0):
        seen.append((completions, examples, example, raw_completions, lengths, token_ids, finished))
        return [best if n == max(lengths) else 0 for n in lengths]

    rows = [{"k": 0}, {"k": 0}, {"k": 1}, {"k": 1}]
    scores = score(rank, say("a", "a b", "c d", "c"), rows, group=2)
    assert scores.rewards == [0.0, 1.0, 1.0, 0.0]
    assert seen[1] == (
        ["c d", "c"], [{"k": 1}] * 2, {"k": 1}, ["c d<eos>", "c<eos>"], [3, 2], [[0, 1, 2], [0, 1]], [True, True]
    )  # fmt: skip
    for table in (np.array, torch.tensor):  # (N,) of arrays
        assert score(lambda completions, made=table: made([0.5, 1]), say("a", "b"), rows[:2], group=2).rewards == [
            0.5,
            1.0,
        ]
    verdicts = score(lambda completions: [Verdict(2.0, True, True, True), None], say("a", "b"), rows[:2], group=2)
    assert verdicts.rewards[0] == 2.0
    assert verdicts.correct[0] == 1.0
    assert verdicts.abstained == 1
    # One entry too few is a failure of the whole group, and of that group alone.
    short = score(
        lambda completions, example: [1.0] * (1 + example["k"]), say("a", "b", "c", "d"), rows, group=2
    )  # fmt: skip
    assert short.rewards[2:] == [1.0, 1.0]
    assert [math.isnan(r) for r in short.rewards[:2]] == [True, True]
    assert len(short.errors) == 2
    assert "one entry for each of 2 completions" in short.errors[0]


def test_rewards_of_tokens():
    """Their sum is the completion's reward; a whole completion's reward stands at its last token."""
    entries = [[0.5, 0.25], np.array([1.0, 2.0, 4.0, 9.0]), 3.0, None]  # the second is a row of a padded table
    scores = score(lambda completions: entries, say("a", "a b", "a", "a"), [{}] * 4, group=4)
    assert scores.token_rewards == [[0.5, 0.25], [1.0, 2.0, 4.0], [0.0, 3.0], None]
    assert scores.rewards[:3] == [0.75, 7.0, 3.0]
    assert score(lambda c, e: 1.0, say("a"), [{}]).token_rewards is None
    table = torch.tensor([[1.0, 2.0, 0.0], [1.0, 1.0, 1.0]])
    assert score(lambda completions: table, say("a", "a b"), [{}] * 2, group=2).rewards == [3.0, 3.0]
    few = score(lambda c, e: [1.0, 2.0], say("a", "a b"), [{}] * 2)
    assert few.errors == ["ValueError: 2 rewards for the 3 tokens of a completion"]
    both = Scores()
    both.extend(score(lambda c, e: 1.0, say("a"), [{}]))
    both.extend(scores)
    assert both.token_rewards == [None, *scores.token_rewards]
    assert both.rewards[:4] == [1.0, 0.75, 7.0, 3.0]
    assert both.abstained == 1


def test_failures_and_abstentions_are_told_apart():
    def moody(completion, example):
        return {"fail": lambda: 1 / 0, "nan": lambda: math.nan, "none": lambda: None}.get(completion, lambda: 1.0)()

    scores = score(moody, say("ok", "fail", "nan", "none"), [{}] * 4)
    assert scores.rewards[0] == 1.0
    assert all(map(math.isnan, scores.rewards[1:]))
    assert scores.errors == ["ZeroDivisionError: division by zero", "reward is nan"]
    assert scores.abstained == 1
    assert score(moody, say("none", "none"), [{}] * 2).abstained == 2  # no failure, so no error
    with pytest.raises(TrainError, match=r"failed on all 2 completions.*ZeroDivisionError"):
        score(moody, say("fail", "fail"), [{}] * 2)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda completion: 1.0, r"expected the parameters \(completion, example\)"),
        (lambda completion, example, prompt: 1.0, "nothing fills its parameter 'prompt'.*raw_completion, token_ids"),
        (lambda prompts, completions, **columns: 1.0, r"TRL fills prompts. Here .* takes \(completions, examples\)"),
        (lambda completions, completion_ids: 1.0, "TRL fills completion_ids. Here .* asks for token_ids"),
        (lambda completions, answers: 1.0, "nothing fills its parameter 'answers'; a group reward .*lengths"),
    ],
)
def test_a_signature_that_nothing_can_call_is_refused_at_once(function, message):
    with pytest.raises(TrainError, match=message):
        load_reward(function)
