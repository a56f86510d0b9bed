"""Puzzles as text: a prompt, and a completion that thinks aloud at a chosen length before it answers.

In the language "words" everything is words separated by single spaces, so that a word-level tokenizer reads it
(`word_tokenizer`); "english" is for models that have read some.
"""

import random

from . import english
from .puzzles import ROLES, Puzzle, Statement, evaluate
from .search import Event, search

STYLES = ("long", "shuffled", "short", "random")
LANGUAGES = ("words", "english")


def example(
    puzzle: Puzzle, style: str = "long", *, language: str = "words", seed: int = 0, slips: float = 0.0
) -> dict[str, str]:
    """Prompt, completion and answer of one puzzle, each a string.

    prompt      `A says B knave . B says A knight iff B knight . ?`
    completion  `<think> ... </think> <answer> A knave B knight </answer>`; the end-of-sequence token is the trainer's
    answer      `A knave B knight`, what `verify` takes; the solution in every style

    style: "long" tells a depth-first search aloud (`warpup.data.search`), "shuffled" says the same sentences in random
    order, "short" thinks nothing and answers, "random" thinks nothing and answers at random, each role by a fair coin
    that depends on `seed` and the puzzle's key alone: it teaches the format and nothing else.
    language: "words" as above, or "english": prompt and completion are sentences (`<answer> A is a knave and B is a
    knight </answer>`), several ways to say a thing are drawn by `seed` and the puzzle's key; the answer stays as it is.
    slips: chance that the teller of a chain misjudges a check (says ok for bad, or bad for ok), by `seed` and the
    puzzle's key; the search goes on from there unaware and its answer may be wrong, like an unfiltered teacher's.
    Raises ValueError on another style or language, and on slips outside 0 to 1 or with a style that checks nothing.
    """
    if not 0 <= slips <= 1:
        raise ValueError(f"slips: expected a chance from 0 to 1, got {slips!r}")
    for name, value, known in (("style", style, STYLES), ("language", language, LANGUAGES)):
        if value not in known:
            raise ValueError(f"{name}: expected one of {known}, got {value!r}")
    if slips and style not in ("long", "shuffled"):
        raise ValueError(f"slips: style {style!r} makes no checks that could be misjudged, got {slips!r}")
    events, roles, coin = [], puzzle.solution, random.Random(f"{seed} {puzzle.key()}")
    if style == "random":
        roles = tuple(coin.random() < 0.5 for _ in puzzle.names)
    elif style != "short":
        events, roles = search(puzzle, lambda: slips > 0 and coin.random() < slips)
    if language == "english":
        prompt, answer = english.prompt(puzzle), english.answer(puzzle.names, roles)
        thought = english.sentences(puzzle, events, random.Random(f"{seed} {puzzle.key()} words"))
    else:
        prompt = " ".join([*(f"{n} says {_say(s, puzzle.names)} ." for n, s in _lines(puzzle)), "?"])
        thought, answer = [_word(puzzle, event) for event in events], _answer(puzzle.names, roles)
    if style == "shuffled":
        coin.shuffle(thought)
    return {
        "prompt": prompt,
        "completion": " ".join(["<think>", *thought, "</think>", "<answer>", answer, "</answer>"]),
        "answer": _answer(puzzle.names, puzzle.solution),
    }


def _word(puzzle: Puzzle, event: Event) -> str:
    """`try A knight .`, `wait A knave .`, `back .`, or a check: the statement with the value of each part. `B says C
    knave no and A knight yes = no bad .` is bad when B is a knight and ok when B is a knave."""
    name = puzzle.names[event.person]
    if event.kind == "back":
        return "back ."
    if event.kind == "check":
        told = _tell(puzzle.statements[event.person], puzzle.names, event.roles)
        return f"{name} says {told} {'ok' if event.good else 'bad'} ."
    return f"{event.kind} {name} {ROLES[not event.roles[event.person]]} ."


def _lines(puzzle):
    return zip(puzzle.names, puzzle.statements, strict=True)


def _answer(names, roles):
    return " ".join(f"{name} {ROLES[not knight]}" for name, knight in zip(names, roles, strict=True))


def _say(statement: Statement, names) -> str:
    head, parts = statement[0], statement[1:]
    if head in ROLES:
        return f"{names[parts[0]]} {head}"
    said = [_say(part, names) if part[0] in ROLES else f"( {_say(part, names)} )" for part in parts]
    return f"not {said[0]}" if head == "not" else f" {head} ".join(said)


def _tell(statement: Statement, names, roles) -> str:
    """The statement with the value of every part after it; a combined part carries its own `= value` in brackets."""
    head, parts = statement[0], statement[1:]
    value = "yes" if evaluate(statement, roles) else "no"
    if head in ROLES:
        return f"{names[parts[0]]} {head} {value}"
    told = [_tell(part, names, roles) if part[0] in ROLES else f"( {_tell(part, names, roles)} )" for part in parts]
    return (f"not {told[0]}" if head == "not" else f" {head} ".join(told)) + f" = {value}"
