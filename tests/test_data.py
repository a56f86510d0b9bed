"""Puzzles, traces, verification, loading and samplers. Oracles read the texts and share no code with the package."""

import itertools
import json
import math
import random
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from warpup.data import (
    KINDS,
    REFLECTION_WORDS,
    STYLES,
    DUMPSampler,
    Puzzle,
    Rewards,
    SECSampler,
    UniformSampler,
    count_puzzles,
    example,
    from_reasoning_gym,
    knights_and_knaves,
    load_examples,
    split,
    verify,
    verify_exact,
    verify_math,
    word_tokenizer,
)
from warpup.data.generate import _draw, _law

few = settings(max_examples=30, deadline=None)
GRAMMARS = [
    dict(people=2),
    dict(people=3),
    dict(people=4, width=3),
    dict(people=2, depth=3),
    dict(people=5, kinds=("or", "iff")),
]
grammars = st.sampled_from(GRAMMARS)
seeds = st.integers(0, 10**6)
ALL_TWO = knights_and_knaves(399)


class Reader:
    """Reads a statement and returns its value under `roles`; with `told`, every value the text gives must be true."""

    def __init__(self, words, roles, told=False):
        self.words, self.roles, self.told, self.at = words, roles, told, 0

    def take(self):
        self.at += 1
        return self.words[self.at - 1]

    def peek(self):
        return self.words[self.at] if self.at < len(self.words) else ""

    def agree(self, value):
        if self.told:
            assert self.take() == ("yes" if value else "no"), self.words
        return value

    def atom(self):
        if self.peek() == "(":
            self.take()
            value = self.expression()
            assert self.take() == ")"
            return value
        name, role = self.take(), self.take()
        return self.agree(self.roles[name] == role)

    def expression(self):
        start, values, operator = self.at, [], None
        if self.peek() == "not":
            operator = self.take()
        values.append(self.atom())
        while operator != "not" and self.peek() in ("and", "or", "implies", "iff"):
            assert operator in (None, self.peek())
            operator = self.take()
            values.append(self.atom())
        rules = {None: all, "and": all, "or": any, "not": lambda v: not v[0], "implies": lambda v: v[0] <= v[1]}
        value = rules[operator](values) if operator != "iff" else values[0] is values[1]
        if self.told and operator:
            assert self.take() == "=", self.words[start:]
            self.agree(value)
        return value

    def read(self):
        value = self.expression()
        assert self.at == len(self.words), self.words
        return value


def lines_of(prompt):
    """name -> words of the statement."""
    assert prompt.endswith(" . ?")
    lines = [line.split() for line in prompt.removesuffix(" . ?").split(" . ")]
    assert all(line[1] == "says" for line in lines)
    return {line[0]: line[2:] for line in lines}


def solve(prompt):
    """All solutions of a prompt as answer strings, by trying every assignment on the text."""
    lines, found = lines_of(prompt), []
    for roles in itertools.product(("knight", "knave"), repeat=len(lines)):
        world = dict(zip(lines, roles, strict=True))
        if all(Reader(words, world).read() == (world[name] == "knight") for name, words in lines.items()):
            found.append(" ".join(f"{name} {role}" for name, role in world.items()))
    return found


def replay(prompt, completion):
    """Follow a long trace step by step, check each line, and return its answer."""
    lines, stack, sound, last = lines_of(prompt), {}, set(), ""
    thought, answer = completion.removeprefix("<think> ").split(" . </think> <answer> ")
    for step in thought.split(" . "):
        words = step.split()
        if words[0] == "try":
            assert last in ("", "ok", "try", "wait")
            assert words[1] not in stack
            assert words[2] == "knight"
            stack[words[1]] = "knight"
        elif words[0] == "wait":
            assert last in ("bad", "back")
            assert words[2] == "knave"
            assert list(stack)[-1] == words[1]
            assert stack[words[1]] == "knight"
            stack[words[1]] = "knave"
        elif words[0] == "back":
            assert last in ("bad", "back")
            assert stack.popitem()[1] == "knave"
        else:
            name, told, verdict = words[0], words[2:-1], words[-1]
            value = Reader(told, stack, told=True).read()
            assert [w for w in told if w not in ("yes", "no", "=")] == lines[name]
            assert words[1] == "says"
            assert verdict == ("ok" if value == (stack[name] == "knight") else "bad")
            sound.add((name, tuple(stack.items()))) if verdict == "ok" else None
        last = words[0] if words[0] in ("try", "wait", "back") else words[-1]
    assert stack.keys() == lines.keys()
    assert last != "bad"
    for name in lines:  # each statement was found good under the final roles of those assigned at the time
        assert any(n == name and dict(at).items() <= stack.items() for n, at in sound)
    world = {name: stack[name] for name in lines}
    assert answer == " ".join(f"{n} {r}" for n, r in world.items()) + " </answer>"
    return answer.removesuffix(" </answer>")


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


GOOD = "<think> hm </think> <answer> A knight B knave </answer>"
ANSWER = "A knight B knave"


@pytest.mark.parametrize(
    ("completion", "reward"),
    [
        (GOOD, 2),
        ("no opening tag </think><answer>A knight B knave</answer>\n", 2),
        ("</think> so <answer> A is a knight, and B is a knave. </answer>", 2),
        ("</think> <answer> (1) B is a knave\n(2) A is a knight </answer>", 2),
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


def test_verify_a_person_called_like_a_filler_letter():
    assert verify("</think> <answer> A is a knight B is a knave </answer>", ANSWER).correct
    assert not verify("</think> <answer> a knight B knave </answer>", ANSWER).parsed


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


ROWS = [{"prompt": f"p{i}", "completion": f"c{i}", "answer": str(i), "level": i % 2} for i in range(5)]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    return path


def test_load_json_lines(tmp_path):
    file = write(tmp_path / "a.jsonl", ROWS[:3])
    write(tmp_path / "b.jsonl", ROWS[3:])
    assert load_examples(file) == ROWS[:3]
    assert load_examples(str(tmp_path)) == ROWS
    assert load_examples(tmp_path, limit=4) == ROWS[:4]
    renamed = write(tmp_path / "c.json", [{"q": "p", "a": "1", "prompt": "gone"}])
    assert load_examples(renamed, prompt="q", completion=None, answer="a") == [{"prompt": "p", "answer": "1"}]


def test_load_saved_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one")
    assert load_examples(tmp_path / "one") == ROWS
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "two")
    assert load_examples(tmp_path / "two" / "train", limit=2) == ROWS[:2]
    with pytest.raises(ValueError, match=r"several splits.*\['test', 'train'\]"):
        load_examples(tmp_path / "two")
    with pytest.raises(ValueError, match=r"row 0: no column 'q' for the prompt, there are .*'level'"):
        load_examples(tmp_path / "one", prompt="q")


def test_load_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "name").mkdir()
    write(tmp_path / "name" / "train.jsonl", ROWS)
    write(tmp_path / "name" / "test.jsonl", ROWS[:1])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert load_examples(f"hub:{tmp_path / 'name'}") == ROWS
    assert load_examples(f"hub:{tmp_path / 'name'}:test") == ROWS[:1]
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or ROWS)
    load_examples("hub:openai/gsm8k@main:train[:10]")
    assert asked == [(("openai/gsm8k", "main"), {"split": "train[:10]"})]


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or directory .*none.jsonl \(.*hub:name"):
        load_examples(tmp_path / "none.jsonl")
    cases = [
        ('{"prompt": "p"}\n{oops', dict(completion=None, answer=None), "bad.jsonl, line 2: bad JSON: .* column 2"),
        ("\n[1]", {}, "line 2: expected a JSON object, got list"),
        ('{"prompt": "p", "a": 1}', {}, r"line 1: no column 'completion' .*\['a', 'prompt'\]; .*completion=None"),
        ('{"prompt": "p"}', dict(completion=None), "no column 'answer' for the answer"),
        ('{"prompt": 3}', dict(completion=None, answer=None), "column 'prompt': expected text, got int"),
        ("\n\n", {}, "has no rows"),
        ("{}", dict(limit=0), "limit"),
        ("{}", dict(prompt=None), "prompt"),
    ]
    for text, options, message in cases:
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_examples(tmp_path / "bad.jsonl", **options)
    (tmp_path / "bad.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(ValueError, match="line 1: not UTF-8"):
        load_examples(tmp_path / "bad.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"neither \*.jsonl"):
        load_examples(tmp_path / "empty")
    with pytest.raises(ValueError, match="hub:name"):
        load_examples("hub:")


CATEGORIES = ["easy"] * 7 + ["hard"] * 3 + ["mid"] * 5
SAMPLERS = {
    "uniform": lambda seed: UniformSampler(15, seed=seed),
    "sec": lambda seed: SECSampler(CATEGORIES, seed=seed),
    "dump": lambda seed: DUMPSampler(CATEGORIES, window=20, seed=seed),
}


def drive(sampler, steps, k, start=0):
    """A run whose advantages depend on the index and the step, so that curricula move."""
    picked = []
    for step in range(start, start + steps):
        indices = sampler.next(k)
        sampler.observe(indices, [[math.sin(i + step), 0.1 * i] for i in indices])
        picked.append(indices)
    return picked


@pytest.mark.parametrize("name", SAMPLERS)
@few
@given(seed=seeds, before=st.integers(0, 12), k=st.integers(1, 9))
def test_samplers_resume_exactly(name, seed, before, k):
    sampler, fresh = SAMPLERS[name](seed), SAMPLERS[name](seed + 1)
    drive(sampler, before, k)
    state = json.loads(json.dumps(sampler.state_dict()))
    rest = drive(sampler, 10, k, before)
    drive(fresh, 3, k)
    fresh.load_state_dict(state)
    assert drive(fresh, 10, k, before) == rest
    assert fresh.state_dict() == sampler.state_dict()
    assert drive(SAMPLERS[name](seed), before + 10, k)[before:] == rest
    assert drive(SAMPLERS[name](seed + 1), before + 10, 9) != drive(SAMPLERS[name](seed), before + 10, 9)


@few
@given(st.integers(1, 20), st.integers(1, 30), seeds)
def test_uniform_sampler_takes_all_once_an_epoch(size, k, seed):
    sampler = UniformSampler(size, seed=seed)
    stream = [i for _ in range(6) for i in sampler.next(k)]
    for start in range(0, len(stream) - size + 1, size):
        assert sorted(stream[start : start + size]) == list(range(size))
    assert sampler.epoch == len(stream) // size
    epochs = [tuple(UniformSampler(40, seed=seed).next(80)[i : i + 40]) for i in (0, 40)]
    assert epochs[0] != epochs[1]


def test_sec_formula():
    sampler = SECSampler(CATEGORIES, alpha=0.25, tau=0.5)
    assert sampler.probabilities() == pytest.approx({"easy": 1 / 3, "hard": 1 / 3, "mid": 1 / 3})
    sampler.observe([0, 1, 8], [[-1.0, 3.0], [0.0, 0.0], [2.0, -4.0]])  # |A| means: easy 1, hard 3
    assert sampler.q == [0.25, 0.75, 0.0]
    sampler.observe([2], [0.0])  # the others do not decay
    assert sampler.q == [0.1875, 0.75, 0.0]
    weights = [math.exp(q / 0.5) for q in sampler.q]
    expected = {c: w / sum(weights) for c, w in zip(("easy", "hard", "mid"), weights, strict=True)}
    assert sampler.probabilities() == pytest.approx(expected)
    counts = {c: 0 for c in expected}
    for i in sampler.next(3000):
        counts[CATEGORIES[i]] += 1
    assert all(abs(counts[c] / 3000 - expected[c]) < 0.04 for c in counts)


def test_dump_formula():
    sampler = DUMPSampler(["x", "y", "x"], window=3, tau=0.3)
    assert sampler.probabilities() == {"x": 0.5, "y": 0.5}
    sampler.observe([0, 2], [[9.0, -1.0], [0.5, 0.0]])  # window keeps 1, .5, 0; four rollouts count
    scores = [0.5 + math.sqrt(2 * math.log(5) / 5), math.sqrt(2 * math.log(5) / 1)]
    weights = [math.exp(s / 0.3) for s in scores]
    assert sampler.probabilities() == pytest.approx({"x": weights[0] / sum(weights), "y": weights[1] / sum(weights)})


def test_samplers_take_tensors_and_reject_nonsense():
    torch = pytest.importorskip("torch")
    one, two, three = (SECSampler(CATEGORIES) for _ in range(3))
    one.observe(torch.tensor([0, 8]), torch.tensor([[1.0, -2.0], [0.0, 4.0]]))
    two.observe([0, 8], [torch.tensor([1.0, -2.0]), [0.0, 4.0]])
    three.observe([0, 0, 8, 8], torch.tensor([1.0, -2.0, 0.0, 4.0]))
    assert one.q == two.q == three.q == [0.75, 1.0, 0.0]
    for indices, advantages, message in (
        ([0], [1, 2], "one for each of 1 indices, got 2"),
        ([15], [1], "0 to 14, got 15"),
        ([-1], [1], "0 to 14, got -1"),
        ([0.0], [1], "integers"),
        ([8, 0], [1, math.nan], "finite numbers, got nan for index 0"),
    ):
        with pytest.raises(ValueError, match=message):
            one.observe(indices, advantages)
    assert one.q == two.q
    for make, message in (
        (lambda: UniformSampler(0), "size: .*0"),
        (lambda: SECSampler([]), "categories: .*none"),
        (lambda: SECSampler("ab", tau=0), "tau: .*0"),
        (lambda: SECSampler("ab", alpha=1.5), "alpha: .*1.5"),
        (lambda: DUMPSampler("ab", window=0), "window: .*0"),
        (lambda: UniformSampler(3).next(0), "k: .*0"),
        (lambda: SECSampler("ab").next(-1), "k: .*-1"),
        (lambda: UniformSampler(3).load_state_dict(UniformSampler(4).state_dict()), "size 3, got .* size 4"),
        (lambda: SECSampler("ab").load_state_dict(DUMPSampler("ab").state_dict()), "SECSampler .* got 'DUMPSampler'"),
        (lambda: SECSampler("aab").load_state_dict(SECSampler("abb").state_dict()), r"\[2, 1\], got .*\[1, 2\]"),
        (lambda: UniformSampler(3).load_state_dict({}), "got None"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_kinds_cover_the_grammar():
    heads = {s[0] for p in knights_and_knaves(300, people=3) for s in p.statements}
    assert heads == {"knight", "knave", *KINDS[1:]}
