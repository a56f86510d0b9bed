"""The final answer of a completion as text, number and mathematics: hard cases that other scorers get wrong."""

import sys
import threading
import time
from fractions import Fraction

import pytest

from warpup.rewards import exact, final_answer, math_verify, number
from warpup.rewards.answers import last_number


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("5", "5"),
        ("<think>6 or <answer>7</answer></think>\n 5 \n", "5"),
        ("thought </think><answer> 5 </answer>", "5"),
        ("<answer>4</answer> no, <answer>5</answer>", "5"),
        ("<answer>5", "5"),
        (r"<answer>\boxed{\frac{1}{2}}</answer>", r"\frac{1}{2}"),
        (r"so \boxed{4}, no: \boxed{5} is it", "5"),
        ("3 + 2 = 5\n#### 5", "5"),
        ("<think> it is 5", ""),
        ("", ""),
    ],
)
def test_final_answer(completion, answer):
    assert final_answer(completion) == answer


NUMBERS = [
    ("72", 72), ("72.", 72), ("72.00", 72), ("+72", 72), ("-72", -72), ("\N{MINUS SIGN}72", -72), ("= -72", -72),
    ("28,080", 28080), ("$1,500", 1500), ("-$1,500.50", "-1500.5"), ("$-5", -5), (r"\$5", 5), ("1,234,567.", 1234567),
    ("1,2", 2), ("500,1500", 1500), (".5", "1/2"), ("-.5", "-1/2"), ("3/4", "3/4"), ("-3/4", "-3/4"),
    ("2 1/2", "5/2"), ("-2 1/2", "-5/2"), ("1e3", 1000), ("1.5e-2", "3/200"), ("5%", 5), (r"28{,}080", 28080),
    (r"1\,000", 1000), (r"\frac{1}{2}", "1/2"), (r"-\frac{1}{2}", "-1/2"), (r"2\frac{1}{2}", "5/2"),
    (r"\dfrac{12}{8}", "3/2"), ("7-4", 4),
    ("7 - 4", 4), ("x = 3 - -4", -4), ("5 cm", 5), ("5 cm^2", 5), ("5 cm2", 5), ("5km", 5), ("H2O", None),
    ("no. 4 of 12, so 3", 3), ("3.14.15", None), ("1/0", None), ("1e999999999", None), ("9" * 5000, None), ("", None),
    ("nothing", None), ("(1, 2)", 2), ("f(2)-3", 3), ("12:30", 30), ("1 2", 2),
]  # fmt: skip


@pytest.mark.parametrize(("text", "value"), NUMBERS, ids=[text[:20] or "empty" for text, _ in NUMBERS])
def test_last_number(text, value):
    assert last_number(text) == (None if value is None else Fraction(value))


@pytest.mark.parametrize(
    ("completion", "answer", "right"),
    [
        ("The answer is 72.\nI hope this helps!", "#### 72", True),
        ("The answer is 72.", 72, True),
        ("-72", "72", False),  # a minus sign is no decoration
        ("28", "28,080", False),
        ("28,080", 28080, True),
        ("1500", "500", False),  # holding the right one is not being it
        ("-500", "500", False),
        ("500.", "500", True),
        ("5, 6, 7, 8", "6", False),
        ("<answer>6 or 5</answer>", "6", False),
        ("\\boxed{6} of the 12", "6", True),
        ("0.333", "1/3", False),
        ("no idea", "0", False),
        ("<think>6", "6", False),
        ("5\n", "5", True),
    ],
)
def test_number(completion, answer, right):
    assert number(completion, {"answer": answer}) == (float(right), right)


def test_number_within_a_tolerance_and_without_an_answer():
    assert number("0.333", {"answer": "1/3"}, tolerance=1e-2).correct
    assert not number("0.33", {"answer": "1/3"}, tolerance=1e-3).correct
    for example in ({"answer": "many"}, {"answer": None}, {"answer": ""}, {}):
        with pytest.raises(ValueError, match="answer: expected a"):
            number("5", example)


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        ("Paris", True),
        ("<answer> paris.\n</answer>", True),
        ("Paris, France", False),
        ("Not Paris", False),
        ("", False),
    ],
)
def test_exact(completion, right):
    assert exact(completion, {"answer": "Paris"}) == (float(right), right)


MATHS = [
    ("1/2", "0.5", True), (r"\boxed{\frac12}", "1/2", True), ("<answer>5</answer>", "5", True),
    ("2 1/2", "5/2", True), ("2 1/2", "1", False), ("2 1/2", "3/2", False), ("-2 1/2", "-2.5", True),
    ("1e3", "1000", True), ("1e3", "1", False), ("1.5e-1", "0.15", True), (r"1\,000", "1000", True),
    (r"28{,}080", "28080", True), ("28,080", "28080", True), ("28", "28,080", False), ("72.", "72", True),
    ("-72", "72", False), ("\N{MINUS SIGN}72", "-72", True), ("x = 5", "5", True), ("5", "x = 5", True),
    ("y = 6", "x = 5", False), ("100,200", "100, 200", True), ("200, 100", "100, 200", True),
    ("100,200", "100200", True),
    ("(1, 2)", "(2, 1)", False), ("$(x+1)^2$", "x^2 + 2x + 1", True), (r"\sqrt{8}", r"2\sqrt{2}", True),
    ("I think so.\nIt is $5$", "5", True), ("$6$\nno", "6", False), ("", "5", False), ("so sad", "5", False),
    ("<think>5", "5", False), ("[1, 2)", "[1, 2)", True), ("[1, 2)", "(1, 2)", False), (r"\text{(B)}", "B", True),
    ("9" * 5000, "5", False),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "answer", "right"), MATHS, ids=[f"{c[:20]} {a}" for c, a, _ in MATHS])
def test_math_verify(completion, answer, right):
    pytest.importorskip("math_verify")
    assert math_verify(completion, {"answer": answer}, timeout=60) == (float(right), right)


def test_math_verify_is_bounded_and_says_what_is_missing(monkeypatch):
    pytest.importorskip("math_verify")
    assert math_verify("5", {"answer": "5"}, timeout=60).correct
    began = time.monotonic()
    assert not math_verify("$9^{9^{9^{9^{9}}}}$", {"answer": "5"}, timeout=2).correct
    assert time.monotonic() - began < 20
    found = []  # in a thread, where math-verify's own limits raise
    thread = threading.Thread(target=lambda: found.append(math_verify("5", {"answer": "5"}, timeout=60)))
    thread.start()
    thread.join()
    assert found[0].correct
    with pytest.raises(ValueError, match=r"math-verify finds no expression in '\$ \$'"):
        math_verify("5", {"answer": "$ $"}, timeout=60)
    monkeypatch.setitem(sys.modules, "math_verify", None)
    with pytest.raises(ImportError, match="pip install math-verify"):
        math_verify("5", {"answer": "5"})
