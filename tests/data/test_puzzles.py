"""Puzzles: one solution each, their number and law, symmetry, splits without leaks, other generators."""

import itertools
import json
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.puzzle_text import ALL_TWO, few, seeds, solve
from warpup.data import (
    KINDS,
    Puzzle,
    count_puzzles,
    example,
    from_reasoning_gym,
    knights_and_knaves,
    split,
)
from warpup.data.generate import _draw, _law


def test_counts_and_exhaustion():
    def sayings(me, other):
        leaves = [f"{me} knight", f"{other} knight", f"{other} knave"]
        pairs = [f"{a} {op} {b}" for op in KINDS[2:] for a, b in itertools.permutations(leaves, 2)]
        return leaves + [f"not {leaf}" for leaf in leaves] + pairs

    prompts = {f"A says {a} . B says {b} . ?" for a in sayings("A", "B") for b in sayings("B", "A")}
    assert {p for p in prompts if len(solve(p)) == 1} == {example(p)["prompt"] for p in ALL_TWO}
    assert count_puzzles(2) == 399
    assert count_puzzles(2, width=3) == 975
    assert count_puzzles(3) == 304_276
    puzzles = knights_and_knaves(399, seed=5)
    assert len({p.key() for p in puzzles}) == 399
    assert len({p.canonical_key() for p in puzzles}) == 95
    with pytest.raises(ValueError, match="400 puzzles asked for, 399 exist"):
        knights_and_knaves(400)
    narrow = dict(people=3, kinds=("and", "leaf"))
    total = count_puzzles(**narrow)
    assert len({p.key() for p in knights_and_knaves(total, **narrow)}) == total
    with pytest.raises(ValueError, match=f"{total} exist"):
        knights_and_knaves(total + 1, **narrow)
    with pytest.raises(ValueError, match="too many to count"):
        count_puzzles(5)


def test_a_used_up_large_space_says_what_it_found(monkeypatch):
    monkeypatch.setattr("warpup.data.generate.EXHAUSTIVE", 0)
    monkeypatch.setattr("warpup.data.generate.PATIENCE", 5000)
    assert {p.key() for p in knights_and_knaves(399, seed=1)} == {p.key() for p in knights_and_knaves(399, seed=2)}
    with pytest.raises(ValueError, match="400 puzzles asked for, 399 found before 5000 draws"):
        knights_and_knaves(400)


def test_law_is_the_law_of_draw():
    rng, grammar = random.Random(0), (0, 2, 3, 3, ("leaf", "not", "or"))
    law = _law(*grammar)
    assert sum(law.values()) == pytest.approx(1)
    drawn = Counter(_draw(rng, *grammar) for _ in range(20_000))
    assert drawn.keys() <= law.keys()
    for group in (lambda s: s[0], len, lambda s: s if s[0] != "or" else None, lambda s: s[1] if s[0] == "or" else None):
        expected, seen = Counter(), Counter()
        for statement, chance in law.items():
            expected[group(statement)] += chance
            seen[group(statement)] += drawn[statement] / 20_000
        assert all(abs(expected[g] - seen[g]) < 0.015 for g in expected)


def test_both_ways_of_drawing_follow_one_law(monkeypatch):
    def leaves(seeds):
        lists = [knights_and_knaves(40, seed=s) for s in seeds]
        return sum(s[0] in ("knight", "knave") for puzzles in lists for p in puzzles for s in p.statements) / 4000

    enumerated = leaves(range(50))
    monkeypatch.setattr("warpup.data.generate.EXHAUSTIVE", 0)
    assert abs(enumerated - leaves(range(50))) < 0.03
    uniform = sum(s[0] in ("knight", "knave") for p in knights_and_knaves(399) for s in p.statements) / 798
    assert enumerated > uniform + 0.03  # short statements come early: kinds are alike, not statements


def test_generation_is_seeded_and_named():
    assert knights_and_knaves(20, seed=1) == knights_and_knaves(20, seed=1) != knights_and_knaves(20, seed=2)
    puzzles = knights_and_knaves(10, names=("Zoe", "Max", "Ann"), kinds=("iff", "iff"))
    assert all(p.names == ("Zoe", "Max") and {s[0] for s in p.statements} == {"iff"} for p in puzzles)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (dict(n=0), "n: .*0"),
        (dict(n=2.0), "n: .*2.0"),
        (dict(people=1), "people: .*2 to 10, got 1"),
        (dict(people=11), "people"),
        (dict(depth=1), "depth: .*2 to 5, got 1"),
        (dict(kinds=("leaf", "not")), "kinds: leaf and not alone"),
        (dict(width=1), "width"),
        (dict(people=2, width=4), "width: .*2 to 3, got 4"),
        (dict(kinds=("iff",), width=3), "width: it is that of and and or, which kinds .'iff',. has not, got 3"),
        (dict(kinds=("xor",)), "kinds: .*xor"),
        (dict(kinds="not"), "kinds"),
        (dict(kinds=()), "kinds"),
        (dict(names=("A",)), "at least 2 names"),
        (dict(names=("A", "A")), "distinct"),
        (dict(names=("A", "wait")), "'wait'"),
    ],
)
def test_generator_rejects(bad, message):
    with pytest.raises(ValueError, match=message):
        knights_and_knaves(**(dict(n=1) | bad))


@pytest.mark.parametrize(
    ("statements", "message"),
    [
        ((("knight", 0), ("knight", 1)), "exactly one solution, found 4"),
        ((("knave", 0), ("knight", 0)), "I am a knave"),
        ((("knight", 2), ("knight", 0)), r"person of 0\.\.1"),
        ((("xor", ("knight", 0), ("knight", 1)), ("knight", 0)), "xor"),
        ((("not", ("knight", 0), ("knight", 1)), ("knight", 0)), "operands for 'not': 2"),
        ((("knight", True), ("knight", 0)), "person"),
        ((["knave", 1], ("knight", 0)), "statement 0"),
        ((("knave", 1),), "1 and 2"),
    ],
)
def test_puzzle_rejects(statements, message):
    with pytest.raises(ValueError, match=message):
        Puzzle(("A", "B"), statements)


def test_puzzle_rejects_a_wrong_solution():
    statements = (("knave", 1), ("and", ("knight", 0), ("knight", 1)))
    assert Puzzle(("A", "B"), statements).roles == {"A": "knight", "B": "knave"}
    with pytest.raises(ValueError, match=r"expected .True, False., got .True, True."):
        Puzzle(("A", "B"), statements, (True, True))


@few
@given(seeds, st.permutations(range(4)))
def test_symmetry(seed, order):
    puzzle = knights_and_knaves(1, people=4, seed=seed)[0]
    twin = puzzle.permuted(order)
    assert twin.canonical_key() == puzzle.canonical_key()
    assert twin.roles == puzzle.roles
    back = sorted(range(4), key=order.__getitem__)
    assert twin.permuted(back) == puzzle
    other = puzzle.renamed("WXYZ")
    assert other.key() == puzzle.key()
    assert other != puzzle
    assert list(other.roles.values()) == list(puzzle.roles.values())


def test_canonical_key_joins_mirror_images_only():
    def variants(statement):
        yield statement
        if statement[0] in ("and", "or", "iff"):
            yield statement[0], statement[2], statement[1]

    classes = {}
    for puzzle in ALL_TWO:
        classes.setdefault(puzzle.canonical_key(), set()).add(puzzle.key())
    for puzzle in ALL_TWO:
        a, b = puzzle.key()
        swap = [tuple(json.loads(json.dumps(s).translate({48: 49, 49: 48}))) for s in (b, a)]
        swap = [tuple(tuple(x) if isinstance(x, list) else x for x in s) for s in swap]
        orbit = {pair for one, two in ((a, b), swap) for pair in itertools.product(variants(one), variants(two))}
        assert classes[puzzle.canonical_key()] == orbit
    with pytest.raises(ValueError, match="permutation"):
        ALL_TWO[0].permuted([0, 0])


@few
@given(seeds, st.integers(1, 380), st.sampled_from([Puzzle.canonical_key, Puzzle.key]))
def test_split_leaks_nothing(seed, held_out, key):
    puzzles = ALL_TWO + [p.renamed("XY") for p in ALL_TWO[:50]]
    train, test = split(puzzles, held_out, seed, key=key)
    assert len(test) == held_out
    assert not {key(p) for p in train} & {key(p) for p in test}
    assert not {p.key() for p in train} & {p.key() for p in test}
    biggest = 50  # no class is larger, so no more can be dropped
    assert len(puzzles) - biggest < len(train) + len(test) <= len(puzzles)
    assert split(puzzles, held_out, seed, key=key) == (train, test)


def test_split_rejects():
    for held_out in (0, 399, 1.0):
        with pytest.raises(ValueError, match="held_out: expected 1 to 398"):
            split(ALL_TWO, held_out, 0)
    twins = [ALL_TWO[0], ALL_TWO[0].permuted((1, 0))]
    with pytest.raises(ValueError, match="leave no puzzle"):
        split(twins, 1, 0)


def test_reasoning_gym_puzzles_are_ours():
    gym = pytest.importorskip("reasoning_gym")
    entries = gym.create_dataset("knights_knaves", n_people=2, depth_constraint=2, width_constraint=2, size=60, seed=4)
    puzzles = from_reasoning_gym(entries, names="AB")
    assert len(puzzles) == 60
    assert {p.key() for p in puzzles} <= {p.key() for p in ALL_TWO}
    for puzzle, entry in zip(from_reasoning_gym(entries), entries, strict=True):
        terms = entry["metadata"]["knight_knave_terms"]
        said = {name: terms["a_knight" if role == "knight" else "a_knave"] for name, role in puzzle.roles.items()}
        assert entry["answer"] == " and ".join(f"{n} is {r}" for n, r in said.items()).replace(" and ", ", and ") + "."
    with pytest.raises(ValueError, match=r"entry 0.*statements"):
        from_reasoning_gym([{"question": "?"}])
