"""What is asked, in which words, and what an answer is worth: Knights & Knaves, and tasks of reasoning-gym."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from warpup.data import Puzzle, example, knights_and_knaves, load_examples, split, verify
from warpup.data.verify import PAPER_REWARDS, answer_block
from warpup.rewards import final_answer, reasoning_gym
from warpup.rewards.answers import last_number

from .settings import TASKS

Row = dict[str, Any]

KNIGHTS = "knights_and_knaves"
FORM = "Think inside <think> </think>, then answer inside <answer> </answer>."


def plain(question: str, chat: bool) -> str | list[dict[str, str]]:
    """The question alone."""
    return [{"role": "user", "content": question}] if chat else f"Question: {question}\nAnswer:"


def asked(question: str, chat: bool) -> str | list[dict[str, str]]:
    """The question with the form of the answer: as a chat, or for a model without one as text to go on from."""
    if chat:
        return [{"role": "system", "content": FORM}, {"role": "user", "content": question}]
    return f"{FORM}\n\nQuestion: {question}\nAnswer: "


def task_rows(name: str, count: int, start: int, chat: bool) -> list[Row]:
    """`count` problems of a task, no question twice, from its item `start` on. "question" is it without the form."""
    task, options = TASKS[name]
    spread = 4 * count  # questions that came before are left out, and small tasks repeat themselves
    rows = load_examples(
        f"reasoning-gym:{task}:size={spread},start={start}" + (f",{options}" if options else ""), completion=None
    )
    if len(rows) < count:
        raise ValueError(f"{name}: {count} different questions asked for, {len(rows)} found")
    return [
        row | {"question": row["prompt"], "prompt": asked(row["prompt"], chat), "domain": name} for row in rows[:count]
    ]


# ---- Knights & Knaves ------------------------------------------------------------------------------------------------

NAMES = (
    *("Alice", "Ben", "Clara", "David", "Emma", "Frank", "Grace", "Henry", "Iris", "Jack", "Kate", "Leo", "Mia"),
    *("Noah", "Olivia", "Paul", "Quinn", "Rose", "Sam", "Tina", "Umar", "Vera", "Will", "Xenia", "Yusuf", "Zoe"),
)


def puzzles(people: Sequence[int], pool: int, words: int, held_out: int) -> tuple[list[Puzzle], list[Puzzle]]:
    """(to learn from, held out): puzzles whose chain has at most so many words, no abstract puzzle on both sides."""
    found = [
        puzzle
        for n in people
        for puzzle in knights_and_knaves(min(pool, 399) if n == 2 else pool, people=n, names=NAMES)
        if len(example(puzzle, language="english")["completion"].split()) <= words
    ]
    return split(found, held_out)


def puzzle_rows(
    found: list[Puzzle], count: int, style: str, slips: float, words: int, seed: int, chat: bool
) -> list[Row]:
    """`count` puzzles in turn, each time under other names, with a completion in the style (see `example`). A teacher
    who slips may search for long: where that takes more than so many words, it does not slip."""
    rng, rows = random.Random(seed), []
    order = rng.sample(found, len(found))
    for i in range(count):
        puzzle = order[i % len(order)]
        puzzle = puzzle.renamed(rng.sample(NAMES, len(puzzle.names)))
        told = {"language": "english", "seed": seed + i}
        row = example(puzzle, style, slips=slips, **told)
        if len(row["completion"].split()) > words:
            row = example(puzzle, style, **told)
        rows.append(row | {"prompt": asked(row["prompt"], chat), "domain": KNIGHTS})
    return rows


# ---- What an answer is worth -----------------------------------------------------------------------------------------


class Score(NamedTuple):
    """reward: what RLVR learns from. correct: whether the final answer is right, in whatever form it is given, so that
    nothing is gained in the tables by the form alone."""

    reward: float
    format_ok: bool
    correct: bool


def score(completion: str, row: Mapping[str, Any]) -> Score:
    """The paper's rewards: -2 for a bad form, -1 for an answer that cannot be read, -0.5 for a wrong one, 2 for the
    right one."""
    correct = solves(completion, row)
    block = answer_block(completion)
    if block is None:
        return Score(PAPER_REWARDS.format, False, correct)
    if correct:
        return Score(PAPER_REWARDS.right, True, True)
    return Score(PAPER_REWARDS.wrong if is_read(block, row) else PAPER_REWARDS.parse, True, False)


def solves(completion: str, row: Mapping[str, Any]) -> bool:
    """Whether the final answer is right: what stands after the thought, and of it the last answer block if any."""
    if row["domain"] == KNIGHTS:
        return verify(in_form(final_answer(completion)), row).correct
    return reasoning_gym(completion, row).correct


def is_read(block: str, row: Mapping[str, Any]) -> bool:
    """Whether the block holds an answer at all: of puzzles one role for each person, of numbers a number."""
    if row["domain"] == KNIGHTS:
        return verify(in_form(block), row).parsed
    return bool(block) if last_number(row["answer"]) is None else last_number(block) is not None


def in_form(answer: str, thought: str = "") -> str:
    return f"<think> {thought} </think> <answer> {answer} </answer>"


# ---- The model's own answers -----------------------------------------------------------------------------------------


def usable(completion: str, row: Mapping[str, Any], finished: bool) -> float:
    """1 for an answer without tags that came to an end and has a number, right or wrong."""
    return float(finished and "<" not in completion and last_number(completion) is not None)


def own_row(row: Row, completion: str) -> Row:
    """The model's own answer in the asked form: all of it is the thought, its last number the answer."""
    number = last_number(completion)
    assert number is not None  # `usable` has paid for it
    return {"prompt": row["prompt"], "completion": in_form(f"{float(number):g}", completion.strip())}
