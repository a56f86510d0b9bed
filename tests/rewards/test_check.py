"""The table of right and wrong answers, and what the ready rewards make of it."""

import math
from fractions import Fraction

import pytest

from warpup.rewards import CASES, Case, check
from warpup.train import TrainError

THINK = "<think> it is so </think> <answer> {} </answer>"
TEXTS = [
    Case("Paris", "Paris", True), Case(" paris.\n", "Paris", True), Case("**Paris**", "Paris", True),
    Case("Paris, France", "Paris", False), Case("Not Paris", "Paris", False), Case("", "Paris", False),
]  # fmt: skip


def test_each_kind_has_right_and_wrong_cases_and_none_twice():
    assert len(CASES) >= 8
    for kind, cases in CASES.items():
        assert {case.right for case in cases} == {True, False}
        assert {case.kind for case in cases} == {kind}
        assert len({(case.completion, case.answer) for case in cases}) == len(cases)


@pytest.mark.parametrize("kind", CASES)
def test_number(kind):
    assert check("warpup.rewards:number", CASES[kind]) == []
    assert check("warpup.rewards:number", CASES[kind], form=THINK) == []


@pytest.mark.parametrize("kind", [kind for kind in CASES if kind != "sentences"])
def test_math_verify(kind):
    pytest.importorskip("math_verify")
    assert check("warpup.rewards:math_verify(timeout=60)", CASES[kind]) == []
    assert check("warpup.data:verify_math", CASES[kind], form=THINK) == []


def test_text():
    assert check("warpup.rewards:exact", TEXTS) == []
    assert check("warpup.rewards:exact", TEXTS, form=THINK) == []
    strict = [case for case in TEXTS if case.completion in ("Paris", "Not Paris", "")]
    assert check("warpup.data:verify_exact", strict, form=THINK) == []


def test_lengths_are_judged_by_what_they_wrap():
    assert check("warpup.rewards:cosine_length(max_length=100)") == []


def test_what_common_rewards_get_wrong_is_found():
    def contains(completion, example):  # a third of reasoning-gym's scorers
        return float(example["answer"] in completion)

    def by_text(completion, example):
        return float(completion == example["answer"])

    def first_number(completion, example):
        digits = "".join(letter for letter in completion if letter.isdigit())
        return float(digits == example["answer"])

    paid = {(wrong.case.completion, wrong.case.answer) for wrong in check(contains) if not wrong.case.right}
    assert {("1500", "500"), ("-72", "72"), ("172", "72"), ("$-5", "5")} <= paid
    refused = {wrong.case.completion for wrong in check(by_text) if wrong.case.right}
    assert {"28,080", "500.", r"\frac{1}{2}", "5 cm^2", "\N{MINUS SIGN}72"} <= refused
    assert not any(wrong.case.right is False for wrong in check(by_text))
    assert ("-72", "72") in {(wrong.case.completion, wrong.case.answer) for wrong in check(first_number)}


def test_rewards_of_every_form():
    case = [Case("5", "5", True), Case("6", "5", False)]

    async def later(completion, example):
        return float(completion == example["answer"])

    def group(completions, examples, lengths):
        return [float(c == e["answer"]) * n for c, e, n in zip(completions, examples, lengths, strict=True)]

    def below_zero(completion, example):
        return -1.0 if completion != example["answer"] else 0.5

    def abstains(completion, example):
        return None if completion != example["answer"] else 1

    def reads(completion, example):
        return float(completion == example["answer"] and example["unit"] == "m")

    for reward in (later, group, below_zero, abstains):
        assert check(reward, case) == [], reward
    assert len(check(reads, case, columns={"unit": "m"})) == 0
    [missing, failed] = check(reads, case, columns={}) + check(lambda completion, example: 1 / 0, case[:1])
    assert missing.error.startswith("KeyError")
    assert math.isnan(failed.reward)
    assert str(failed) == "fails on the right '5' for '5': ZeroDivisionError: division by zero"
    [wrong] = check(lambda completion, example: 1.0, case)
    assert str(wrong) == "pays the wrong '6' for '5'"


def test_wrong_calls():
    with pytest.raises(TrainError, match=r"no file gone\.py"):
        check("gone.py:score")
    with pytest.raises(ValueError, match=r"form: expected a text with \{\}"):
        check("warpup.rewards:number", form="<answer>")


def test_percentages_and_spellings_of_numbers():
    """What the table found in `number` itself."""
    from warpup.rewards.answers import last_number

    spelled = {r"\frac12": "1/2", r"\frac{-1}{2}": "-1/2", "28\N{NARROW NO-BREAK SPACE}080": 28080, "1'000": 1000,
               "5cm": 5, "3x": None, "2nd": None, "10\N{EN DASH}5": 5, "\N{EN DASH}5": -5}  # fmt: skip
    for text, value in spelled.items():
        assert last_number(text) == (None if value is None else Fraction(value)), text
