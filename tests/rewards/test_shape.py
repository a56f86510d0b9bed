"""Rewards of length and form: values at the ends, in the middle, and where they meet."""

import math

import pytest

from warpup.rewards import cosine_length, difficulty, overlong, pattern, think_answer
from warpup.train import TrainError
from warpup.train.rewards.calls import Completion
from warpup.train.rewards.reward_set import RewardSet

DAPO = {"max_length": 20480, "buffer": 4096}


@pytest.mark.parametrize(
    ("length", "reward"), [(1, 0), (16384, 0), (16385, -1 / 4096), (18432, -0.5), (20480, -1), (20481, -1), (99999, -1)]
)
def test_overlong(length, reward):
    assert overlong("", {}, length=length, **DAPO) == reward


def test_overlong_refuses_a_buffer_that_cannot_be():
    for buffer in (0, 20481):
        with pytest.raises(ValueError, match="buffer: expected 1 to max_length = 20480 tokens"):
            overlong("", {}, length=1, max_length=20480, buffer=buffer)


@pytest.mark.parametrize(
    ("text", "length", "finished", "reward"),
    [
        ("5", 0, True, 2.0),
        ("5", 50, True, 1.5),
        ("5", 25, True, 1.5 + 0.5 * math.cos(math.pi / 4)),
        ("5", 100, True, 1.0),
        ("6", 0, True, -10.0),
        ("6", 50, True, -5.0),
        ("6", 100, True, 0.0),
        ("5", 100, False, -10.0),
        ("5", 101, True, -10.0),
    ],
)
def test_cosine_length(text, length, finished, reward):
    grade = cosine_length(text, {"answer": 5}, length=length, finished=finished, max_length=100)
    assert grade.reward == pytest.approx(reward, abs=1e-12)
    assert grade.correct == (text == "5")


def test_cosine_length_takes_any_check():
    options = {"length": 0, "finished": True, "max_length": 10, "correct": (1, 0.1), "wrong": (-1, -0.1)}
    assert cosine_length("5", {}, check=lambda c, e: 0.0, **options).reward == -1
    assert cosine_length("5", {}, check=lambda c, e: 0.5, **options).reward == 1
    verdict = cosine_length("x", {"answer": "A knight"}, check="warpup.data:verify", **options)
    assert verdict == (-1, False)


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<think>a</think><answer>b</answer>", 1),
        ("a</think>\n<answer>b</answer>\n", 1),
        ("<answer>b</answer>", 0),
        ("<think>a</think><answer>b</answer> so", 0),
    ],
)
def test_think_answer(text, reward):
    assert think_answer(text, {}) == reward


def test_pattern():
    assert pattern("a\nb", {}, regex=r"a.b") == 1
    assert pattern("a\nbc", {}, regex=r"a.b") == 0


def test_options_in_a_config():
    """As a config names them: options in brackets."""
    said = [Completion("5", "5<eos>", [1] * 48, True), Completion("5", "5", [1] * 64, False)]
    names = ["warpup.rewards:number", "warpup.rewards:overlong(max_length=64, buffer=32)"]
    scores = RewardSet(names, [1.0, 0.5]).score(said, [{"answer": "5"}] * 2)
    assert scores.columns == {"number": [1.0, 1.0], "overlong": [-0.5, -1.0]}
    assert scores.rewards == [0.75, 0.5]
    assert scores.correct == [1.0, 1.0]
    cosine = "warpup.rewards:cosine_length(max_length=96, check='warpup.rewards:exact', exceeded=-3)"
    assert RewardSet(cosine).score(said, [{"answer": "5"}] * 2).rewards == pytest.approx([1.5, -3.0])
    for name, message in [
        ("warpup.rewards:overlong", "nothing fills its parameter 'max_length'"),
        ("warpup.rewards:overlong(max_lenght=3)", "unexpected keyword argument 'max_lenght'; it is overlong"),
        ("warpup.rewards:overlong(64)", "expected plain values by name in the brackets"),
        ("warpup.rewards:overlong(max_length=open)", "expected plain values by name in the brackets"),
        ("warpup.rewards:overlong(max_length=3", "expected `module:function`"),
    ]:
        with pytest.raises(TrainError, match=message):
            RewardSet(name)


def test_difficulty_of_nothing_and_of_what_cannot_be():
    right = {"answer": "4"}
    assert difficulty([], [], []) == []
    assert difficulty(["[Easy] 4"], [right], [0])[0].reward == 3.0  # no length is as short as it can be
    for options, message in (
        ({"threshold": math.nan}, "threshold: expected 0 to below 1"),
        ({"easy": ""}, "easy, hard: expected two tags"),
        ({"easy": "[Hard]!"}, "easy, hard: expected two tags"),
    ):
        with pytest.raises(ValueError, match=message):
            difficulty(["4"], [right], [1], **options)


def test_difficulty_goes_by_the_group():
    texts, lengths = ["[Easy] 4", " [Hard] 4", "4", "[Easy] 5"], [10, 20, 20, 5]
    asked = [{"prompt": "2 + 2", "answer": "4"}] * 4
    easy = [grade.reward for grade in difficulty(texts, asked, lengths)]
    assert easy == pytest.approx([1 + 0.5 + 1, 1 + 0, 1 - 1, -1 + 1])  # three of four are right
    hard = [grade.reward for grade in difficulty(texts, asked, lengths, threshold=0.75, length_weight=2.0)]
    assert hard == pytest.approx([1 + 2 * 0.5 + 0, 1 + 1, 1 - 1, -1 + 0])  # not more than three quarters
    scores = RewardSet("warpup.rewards:difficulty").score(
        [Completion(t, t, [0] * n, True) for t, n in zip(texts, lengths, strict=True)], asked, group=4
    )
    assert scores.rewards == pytest.approx(easy)
    assert scores.correct == [1, 1, 1, 0]
