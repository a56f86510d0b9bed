"""Puzzles as text: a prompt, and a completion that thinks aloud at a chosen length before it answers.

Everything is words separated by single spaces, so that a word-level tokenizer reads it (`word_tokenizer`).
"""

import random

from .puzzles import ROLES, Puzzle, Statement, evaluate, mentioned

STYLES = ("long", "short", "random")


def example(puzzle: Puzzle, style: str = "long", *, seed: int = 0, slips: float = 0.0) -> dict[str, str]:
    """Prompt, completion and answer of one puzzle, each a string.

    prompt      `A says B knave . B says A knight iff B knight . ?`
    completion  `<think> ... </think> <answer> A knave B knight </answer>`; the end-of-sequence token is the trainer's
    answer      `A knave B knight`, what `verify` takes; the solution in every style

    style: "long" tells a depth-first search aloud (see `think`), "short" thinks nothing and answers, "random" thinks
    nothing and answers at random, each role by a fair coin that depends on `seed` and the puzzle's key alone: it
    teaches the format and nothing else.
    slips: chance that the teller of a long chain misjudges a check (says ok for bad, or bad for ok), by `seed` and the
    puzzle's key; the search goes on from there unaware and its answer may be wrong, like an unfiltered teacher's.
    Raises ValueError on another style, and on slips outside 0 to 1 or with a style that checks nothing.
    """
    if not 0 <= slips <= 1:
        raise ValueError(f"slips: expected a chance from 0 to 1, got {slips!r}")
    if style not in STYLES:
        raise ValueError(f"style: expected one of {STYLES}, got {style!r}")
    if slips and style != "long":
        raise ValueError(f"slips: style {style!r} makes no checks that could be misjudged, got {slips!r}")
    thought, roles, coin = "", puzzle.solution, random.Random(f"{seed} {puzzle.key()}")
    if style == "random":
        roles = tuple(coin.random() < 0.5 for _ in puzzle.names)
    elif style == "long":
        thought, roles = _search(puzzle, lambda: slips > 0 and coin.random() < slips)
    return {
        "prompt": " ".join([*(f"{n} says {_say(s, puzzle.names)} ." for n, s in _lines(puzzle)), "?"]),
        "completion": " ".join(f"<think> {thought} </think> <answer> {_answer(puzzle.names, roles)} </answer>".split()),
        "answer": _answer(puzzle.names, puzzle.solution),
    }


def think(puzzle: Puzzle) -> str:
    """Depth-first search for the solution, told aloud.

    Assume a person's role (`try A knight .`), then check every statement that has all its people assigned now and had
    not before. A check repeats the statement with the value of each part: `B says C knave no and A knight yes = no
    bad .` is bad when B is a knight and ok when B is a knave. At the first bad check turn the last assumption round
    (`wait B knave .`); when a person has been both, `back .` and turn the one before round.

    The first speaker comes first. The next person is the first one not yet assigned among those whom the assigned
    people mention, in order of assignment, else the first one not assigned. The order is fixed before the search.
    """
    return _search(puzzle, lambda: False)[0]


def _search(puzzle: Puzzle, slip) -> tuple[str, tuple[bool, ...]]:
    """The search of `think` and the roles it ends with; each check is misjudged where `slip()` says so."""
    order = search_order(puzzle)
    position = {person: step for step, person in enumerate(order)}
    due = [[] for _ in order]  # statements by the step at which their last person is assigned
    for speaker, statement in enumerate(puzzle.statements):
        due[max(position[person] for person in (speaker, *mentioned(statement)))].append(speaker)
    words, roles = [], [False] * len(order)

    def search(step: int) -> bool:
        if step == len(order):
            return True
        person = order[step]
        for role, verb in ((True, "try"), (False, "wait")):
            roles[person] = role
            words.append(f"{verb} {puzzle.names[person]} {ROLES[not role]} .")
            if all(check(speaker) for speaker in sorted(due[step], key=position.get)) and search(step + 1):
                return True
        words.append("back .")
        return False

    def check(speaker: int) -> bool:
        statement = puzzle.statements[speaker]
        good = (evaluate(statement, roles) == roles[speaker]) != slip()
        told = _tell(statement, puzzle.names, roles)
        words.append(f"{puzzle.names[speaker]} says {told} {'ok' if good else 'bad'} .")
        return good

    search(0)
    return " ".join(words), tuple(roles)


def search_order(puzzle: Puzzle) -> list[int]:
    """People in the order in which the search assigns them: first speaker, then by who is mentioned."""
    order, people = [], range(len(puzzle.statements))
    while len(order) < len(people):
        heard = [other for person in order for other in mentioned(puzzle.statements[person])]
        order.append(next(person for person in (*heard, *people) if person not in order))
    return order


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
