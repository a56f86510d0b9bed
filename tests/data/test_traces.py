"""Traces and their words: each line true, in the order of the search; the tokenizer that reads them."""

import itertools

import pytest
from hypothesis import given

from tests.support.puzzle_text import GRAMMARS, few, grammars, replay, seeds, solve
from warpup.data import (
    REFLECTION_WORDS,
    STYLES,
    Puzzle,
    example,
    knights_and_knaves,
    verify,
    word_tokenizer,
)


@few
@given(grammars, seeds)
def test_puzzles_have_one_solution_and_true_traces(grammar, seed):
    for puzzle in knights_and_knaves(8, seed=seed, **grammar):
        told = {style: example(puzzle, style, seed=seed) for style in STYLES}
        long = told["long"]
        assert solve(long["prompt"]) == [long["answer"]]
        assert replay(long["prompt"], long["completion"]) == long["answer"]
        assert told["short"]["completion"] == f"<think> </think> <answer> {long['answer']} </answer>"
        assert all(e["prompt"] == long["prompt"] and e["answer"] == long["answer"] for e in told.values())
        assert verify(long["completion"], long).correct
        assert verify(told["short"]["completion"], long["answer"]).correct
        assert verify(told["random"]["completion"], long).parsed


def test_replay_rejects_false_lines():
    puzzle = Puzzle(("A", "B"), (("knave", 1), ("and", ("knight", 0), ("knight", 1))))
    case = example(puzzle)
    assert case["completion"] == (
        "<think> try A knight . try B knight . A says B knight no bad . wait B knave . "
        "A says B knave yes ok . B says A knight yes and B knight no = no ok . "
        "</think> <answer> A knight B knave </answer>"
    ).replace("B knight no bad", "B knave no bad")
    for good, bad in (("yes ok", "no ok"), ("= no ok", "= yes ok"), ("no bad", "no ok"), ("wait B", "wait A")):
        assert good in case["completion"]
        with pytest.raises(AssertionError):
            replay(case["prompt"], case["completion"].replace(good, bad))


def test_trace_backs_up():
    case = example(Puzzle(("A", "B"), (("and", ("knight", 0), ("knave", 1)), ("or", ("knight", 0), ("knave", 0)))))
    assert case["answer"] == "A knave B knight"
    assert " bad . back . wait A knave . try B knight . " in case["completion"]
    traces = [example(p)["completion"].split() for p in knights_and_knaves(200, people=3, seed=3)]
    assert all(sum(word in trace for trace in traces) > 20 for word in REFLECTION_WORDS)


def test_people_are_assigned_in_order_of_mention():
    both = ("and", ("knight", 0), ("knave", 0))
    puzzle = Puzzle(("A", "B", "C"), (("knave", 2), ("and", ("knight", 2), ("knight", 1)), both))
    words = example(puzzle)["completion"].split()
    tried = [words[i + 1] for i, word in enumerate(words) if word == "try"]
    assert list(dict.fromkeys(tried)) == ["A", "C", "B"]


def test_random_style_is_a_seeded_fair_coin():
    puzzles = knights_and_knaves(399)
    first, again, other = ([example(p, "random", seed=s)["completion"] for p in puzzles] for s in (1, 1, 2))
    assert first == again != other
    right = sum(verify(c, example(p)).correct for c, p in zip(first, puzzles, strict=True))
    assert 60 < right < 140  # 399 / 4 within more than four standard deviations
    with pytest.raises(ValueError, match=r"style.*'lng'"):
        example(puzzles[0], "lng")
    with pytest.raises(ValueError, match=r"slips: style 'random' makes no checks that could be misjudged, got 0.1"):
        example(puzzles[0], "random", slips=0.1)


def test_a_slipping_teacher_goes_on_unaware():
    puzzles = knights_and_knaves(60, seed=2)
    exact = [example(puzzle) for puzzle in puzzles]
    assert exact == [example(puzzle, slips=0.0, seed=5) for puzzle in puzzles]
    slipped = [example(puzzle, slips=0.4, seed=5) for puzzle in puzzles]
    right = [verify(row["completion"], row) for row in slipped]
    assert all(verdict.parsed for verdict in right)
    assert 0.2 < sum(verdict.correct for verdict in right) / 60 < 0.8
    for puzzle, row in zip(puzzles, slipped, strict=True):
        assert row["answer"] == example(puzzle)["answer"]  # what is rewarded stays right
        thought, answer = row["completion"].split(" </think> <answer> ")
        last = {}
        for line in thought.removeprefix("<think> ").split(" ."):
            if line.split()[:1] in (["try"], ["wait"]):
                _, name, role = line.split()
                last[name] = role
        assert answer.split()[:-1] == [word for name in puzzle.names for word in (name, last[name])]


def test_slips_go_both_ways():
    """Who misjudges every check swaps good and bad, and gives up where nothing is left."""
    verdicts, given_up = set(), 0
    for puzzle in knights_and_knaves(60, seed=2):
        world = {}
        thought = example(puzzle, slips=1.0)["completion"].split(" </think>")[0].removeprefix("<think> ")
        for line in thought.removesuffix(" .").split(" . "):
            words = line.split()
            if words[0] in ("try", "wait"):
                world[words[1]] = words[2]
            elif words[0] != "back":
                value = words[-2] == "yes"  # of the whole statement, told right
                good = value == (world[words[0]] == "knight")
                assert words[-1] == ("bad" if good else "ok")
                verdicts.add(words[-1])
        first = f"wait {puzzle.names[0]}"
        given_up += first in thought and thought.endswith("back .")
    assert verdicts == {"ok", "bad"}
    assert given_up > 0


def test_tokenizer_round_trip(tmp_path):
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert len(tokenizer) == 35
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    for grammar in GRAMMARS:
        for puzzle, style in itertools.product(knights_and_knaves(30, seed=7, **grammar), STYLES):
            case = example(puzzle, style)
            for text in (case["prompt"], case["completion"]):
                ids = tokenizer(text)["input_ids"]
                assert len(ids) == len(text.split())
                assert tokenizer.unk_token_id not in ids
                assert tokenizer.decode([*ids, tokenizer.eos_token_id], skip_special_tokens=True) == text
                assert loaded(text)["input_ids"] == ids
                assert loaded.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids("nobody") == tokenizer.unk_token_id
    assert all(tokenizer.convert_tokens_to_ids(w) != tokenizer.unk_token_id for w in REFLECTION_WORDS)
    assert (loaded.pad_token, loaded.bos_token, loaded.eos_token) == ("<pad>", "<bos>", "<eos>")
    assert tokenizer(["A", "A B"], padding=True)["input_ids"][0][0] == tokenizer.pad_token_id


def test_tokenizer_takes_names_and_words():
    tokenizer = word_tokenizer(names=("Zoe", "Max"), extra=("seven",))
    assert len(tokenizer) == 31
    assert tokenizer.decode(tokenizer("Max seven A")["input_ids"]) == "Max seven <unk>"
    for bad in (dict(names=("A", "try")), dict(extra=("two words",)), dict(extra=("knight",)), dict(extra=("x", "x"))):
        (argument, values), *_ = bad.items()
        with pytest.raises(ValueError, match=f"{argument}: expected .*{values[-1]}"):
            word_tokenizer(**bad)
