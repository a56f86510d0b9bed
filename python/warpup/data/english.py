"""Puzzles and the search for their solution in English sentences, for models that have read some."""

import random
from collections.abc import Sequence

from .puzzles import ROLES, Puzzle, Statement, evaluate
from .search import Event

ISLAND = "On an island live knights, who always tell the truth, and knaves, who always lie."
# Several ways to say a thing, so that what is learned is the search and not its words.
TRY = ("Suppose {name} is a {role}.", "Assume {name} is a {role}.", "Say {name} is a {role}.")
FITS = ("That fits.", "So far so good.", "No contradiction.")
CLASH = ("That is a contradiction.", "That cannot be.", "A contradiction.")
WAIT = ("Wait, then {name} must be a {role}.", "Wait, so {name} is a {role}.")
BACK = ("Neither works for {name}, so I go back.", "{name} can be neither, so let me back up.")


def prompt(puzzle: Puzzle) -> str:
    """The island, what each person says, and the question."""
    lines = zip(puzzle.names, puzzle.statements, strict=True)
    said = [f'{name} says: "{_capital(say(s, puzzle.names))}."' for name, s in lines]
    return " ".join([ISLAND, *said, "Who is a knight and who is a knave?"])


def answer(names: Sequence[str], roles: Sequence[bool]) -> str:
    """`Ann is a knight, Bob is a knave and Cleo is a knight`."""
    parts = [f"{name} is a {ROLES[not knight]}" for name, knight in zip(names, roles, strict=True)]
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def sentences(puzzle: Puzzle, events: Sequence[Event], rng: random.Random) -> list[str]:
    """What is said at each event; `rng` chooses the words."""
    return [_sentence(puzzle, event, rng) for event in events]


def _sentence(puzzle: Puzzle, event: Event, rng: random.Random) -> str:
    name, role = puzzle.names[event.person], ROLES[not event.roles[event.person]]
    if event.kind != "check":
        return rng.choice({"try": TRY, "wait": WAIT, "back": BACK}[event.kind]).format(name=name, role=role)
    statement = puzzle.statements[event.person]
    value = evaluate(statement, event.roles)
    agrees = "and" if event.good else "but"
    return (
        f"{name} says that {say(statement, puzzle.names, event.roles)}. This is {_truth(value)}, {agrees} {name} is a "
        f"{role}. {rng.choice(FITS if event.good else CLASH)}"
    )


def say(statement: Statement, names: Sequence[str], roles: Sequence[bool] | None = None) -> str:
    """A statement; with `roles`, each part of a combined one is followed by its value: `Ann is a knave (false)`. What
    is combined again stands in brackets."""
    head, parts = statement[0], statement[1:]
    if head in ROLES:
        return f"{names[parts[0]]} is a {head}"
    told = []
    for part in parts:
        text = say(part, names, roles)
        text = text if part[0] in ROLES else f"[{text}]"
        told.append(text if roles is None else f"{text} ({_truth(evaluate(part, roles))})")
    match head:
        case "not":
            return f"it is not so that {told[0]}"
        case "implies":
            return f"if {told[0]} then {told[1]}"
        case "iff":
            return f"{told[0]} if and only if {told[1]}"
    return f" {head} ".join(told)


def _truth(value: bool) -> str:
    return "true" if value else "false"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
