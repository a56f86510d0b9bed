"""Puzzles in English: translated back, they are what the words say, sentence by sentence."""

import re

import pytest
from hypothesis import given

from tests.support.puzzle_text import few, grammars, seeds
from warpup.data import Puzzle, example, knights_and_knaves, verify

TRUE = {"true": "yes", "false": "no"}
FORM = re.compile(r"<think> (.*) </think> <answer> (.*) </answer>")


def statement(text: str) -> str:
    """`If [X is a knight (true) or Y is a knave (false)] (true) then ...` in words, without a value of the whole."""
    text = text[0].lower() + text[1:] if text.startswith(("It is not", "If ")) else text
    text = text.replace("if and only if", "iff").replace("it is not so that", "not").replace("[", "( ")
    text = re.sub(r"\bif ", "", text).replace(" then ", " implies ")
    text = re.sub(r" is a (\w+)", r" \1", text)
    text = re.sub(r"\] \((true|false)\)", lambda m: f" = {TRUE[m[1]]} )", text).replace("]", " )")
    return re.sub(r" \((true|false)\)", lambda m: f" {TRUE[m[1]]}", text)


def thought(text: str) -> str:
    """The sentences of a chain as words."""
    said = []
    for line in re.split(r"(?<=\.) (?=Suppose|Assume|Say|Wait|Neither|\w+ can be neither|\w+ says)", text):
        if found := re.fullmatch(r"(?:Suppose|Assume|Say) (\w+) is a (\w+)\.", line):
            said.append(f"try {found[1]} {found[2]} .")
        elif found := re.fullmatch(r"Wait, (?:then|so) (\w+) (?:must be|is) a (\w+)\.", line):
            said.append(f"wait {found[1]} {found[2]} .")
        elif "either" in line:
            said.append("back .")
        else:
            found = re.fullmatch(r"(\w+) says that (.*)\. This is (\w+), (and|but) \1 is a \w+\. (.*)", line)
            clash = found[5] in ("That is a contradiction.", "That cannot be.", "A contradiction.")
            assert clash == (found[4] == "but")
            value = TRUE[found[3]] if re.fullmatch(r"\w+ is a \w+", found[2]) else f"= {TRUE[found[3]]}"
            said.append(f"{found[1]} says {statement(found[2])} {value} {'bad' if clash else 'ok'} .")
    return " ".join(said)


@few
@given(grammars, seeds)
def test_the_same_as_in_words(grammar, seed):
    for puzzle in knights_and_knaves(6, seed=seed, **grammar):
        for slips in (0.0, 0.3):
            words = example(puzzle, seed=seed, slips=slips)
            told = example(puzzle, seed=seed, slips=slips, language="english")
            inside, answer = FORM.fullmatch(told["completion"]).groups()
            roles = [word for pair in re.findall(r"(\w+) is a (\w+)", answer) for word in pair]
            assert (thought(inside), " ".join(roles)) == FORM.fullmatch(words["completion"]).groups()
            assert verify(told["completion"], words) == verify(words["completion"], words)
            assert told["answer"] == words["answer"]
            lines = re.findall(r'(\w+) says: "(.*?)\."', told["prompt"])
            asked = " ".join(f"{name} says {statement(said)} ." for name, said in lines)
            assert f"{asked} ?" == words["prompt"]


def test_a_puzzle_reads_as_english():
    puzzle = Puzzle(("Ann", "Bob"), (("knave", 1), ("and", ("knight", 0), ("knight", 1))))
    told = example(puzzle, language="english")
    assert told["prompt"] == (
        "On an island live knights, who always tell the truth, and knaves, who always lie. "
        'Ann says: "Bob is a knave." Bob says: "Ann is a knight and Bob is a knight." '
        "Who is a knight and who is a knave?"
    )
    check = "Bob says that Ann is a knight (true) and Bob is a knight (false). This is false, and Bob is a knave."
    assert check in told["completion"]
    assert told["completion"].endswith(" </think> <answer> Ann is a knight and Bob is a knave </answer>")
    assert len({example(puzzle, language="english", seed=seed)["completion"] for seed in range(20)}) > 5
    assert example(puzzle, "short", language="english")["completion"].startswith("<think> </think> <answer> Ann")
    with pytest.raises(ValueError, match=r"language: expected one of \('words', 'english'\), got 'german'"):
        example(puzzle, language="german")


@pytest.mark.parametrize("language", ["words", "english"])
def test_shuffled_says_the_same_sentences(language):
    moved = 0
    for puzzle in knights_and_knaves(40, people=3, seed=4):
        long, shuffled = (
            example(puzzle, style, language=language, seed=1, slips=0.2) for style in ("long", "shuffled")
        )
        parts = [sorted(re.split(r"(?<=\.) ", row["completion"])) for row in (long, shuffled)]
        thoughts, answers = zip(*(row["completion"].split("</think>") for row in (long, shuffled)), strict=True)
        assert sorted(thoughts[0].split()) == sorted(thoughts[1].split())
        assert answers[0] == answers[1]
        assert len(parts[0]) == len(parts[1])
        moved += long != shuffled
    assert moved > 35
