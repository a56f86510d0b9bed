"""Verification of answers: format, people, exact and mathematical answers."""

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpup.data import (
    Rewards,
    verify,
    verify_exact,
    verify_math,
)

GOOD = "<think> hm </think> <answer> A knight B knave </answer>"

ANSWER = "A knight B knave"


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (GOOD, 2),
        ("no opening tag </think><answer>A knight B knave</answer>\n", 2),
        ("</think> so <answer> A is a knight, and B is a knave. </answer>", 2),
        ("</think> <answer> (1) B is a knave\n(2) A is a knight </answer>", 2),
        ("</think> <answer> A is a knight B is a knave </answer>", 2),  # a person called like a filler word
        ("</think> <answer> a knight B knave </answer>", -1),
        ("</think> <answer> A knave B knave </answer>", -0.5),
        ("</think> <answer> A knight </answer>", -1),
        ("</think> <answer> A knight B knave C knight </answer>", -1),
        ("</think> <answer> A knight B knave A knight </answer>", -1),
        ("</think> <answer> A knight A knave </answer>", -1),
        ("</think> <answer> A knight B spy </answer>", -1),
        ("</think> <answer> A knight B knave or not </answer>", -1),
        ("</think> <answer> </answer>", -1),
        ("", -2),
        (ANSWER, -2),
        ("<answer> A knight B knave </answer>", -2),
        ("<answer> A knight B knave </answer> </think>", -2),
        (GOOD + " </think>", -2),
        (GOOD + " ok", -2),
        (GOOD + " <answer> A knight B knave </answer>", -2),
        ("</think> " + GOOD, -2),
        ("<think> " + GOOD, -2),
        ("</think> <think> <answer> A knight B knave </answer>", -2),
        ("</think> </answer> A knight B knave <answer>", -2),
        ("<think> </think> <answer> A knight B knave", -2),
    ],
)
def test_verify(completion, reward):
    verdict = verify(completion, ANSWER)
    assert verdict == (reward, reward > -2, reward > -1, reward == 2)
    assert verify(completion, {"answer": ANSWER, "prompt": "x"}) == verdict
    assert verify(completion, {"A": "knight", "B": "knave", "C": None}) == verdict
    worth = {-2: 7, -1: 8, -0.5: 9, 2: 10}[reward]
    assert verify(completion, ANSWER, rewards=Rewards(7, 8, 9, 10)).reward == worth


tokens = st.sampled_from([*GOOD.split(), "C", ".", "is", "1"])

edits = st.lists(st.tuples(st.integers(0, 8), st.integers(0, 2), st.lists(tokens, max_size=2)), max_size=3)


@settings(max_examples=100, deadline=None)
@given(edits)
def test_verify_never_fails_and_is_consistent(edits):
    words = GOOD.split()
    for at, removed, added in edits:
        words[at : at + removed] = added
    text = " ".join(words)
    verdict = verify(text, ANSWER)
    assert verdict.reward == Rewards()[verdict.format_ok + verdict.parsed + verdict.correct]
    assert verdict.format_ok >= verdict.parsed >= verdict.correct
    assert not verdict.format_ok or (words.count("</think>") == words.count("<answer>") == 1)
    assert not verdict.format_ok or words.index("</think>") < words.index("<answer>") < len(words) - 1


def test_verify_rejects_bad_arguments():
    for answer in ("", "A", "A knight A knave", "A spy", 3, None, {}, {"A": "spy"}):
        with pytest.raises(ValueError, match="answer: expected"):
            verify(GOOD, answer)
    with pytest.raises(ValueError, match="completion: expected str, got NoneType"):
        verify(None, ANSWER)


def test_verify_exact():
    for block, answer, reward in ((" Forty  two ", "forty two", 2), ("42", 42, 2), ("43", "42", -0.5), (" ", "42", -1)):
        assert verify_exact(f"</think> <answer>{block}</answer>", answer).reward == reward
    with pytest.raises(ValueError, match="answer"):
        verify_exact(GOOD, "")


def test_verify_math_names_the_installation(monkeypatch):
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ImportError, match="pip install math-verify"):
        verify_math(GOOD, "1")


def test_verify_math():
    pytest.importorskip("math_verify")
    for block, reward in ((r"\frac{1}{2}", 2), ("$0.5$", 2), (r"\boxed{1/2}", 2), ("2", -0.5), ("", -1)):
        text = f"</think> <answer> {block} </answer>"
        assert verify_math(text, "1/2").reward == reward, block
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(verify_math, text, "1/2").result() == verify_math(text, "1/2")
