"""A depth-first search for the solution of a puzzle, as what a teller says of it step by step; see `example`."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from .puzzles import Puzzle, evaluate, mentioned

Kind = Literal["try", "check", "wait", "back"]
TRIED: tuple[tuple[bool, Kind], ...] = ((True, "try"), (False, "wait"))  # of a person, one after the other


class Event(NamedTuple):
    """What the teller says next, while person i is taken for a knight where `roles[i]` is True.

    try: a role is assumed for the person. check: the person's statement is looked at, and said to fit or not (`good`).
    wait: the person has the other role. back: the person has been both, and the one before has to change.
    """

    kind: Kind
    person: int
    roles: tuple[bool, ...]
    good: bool = True


def search(puzzle: Puzzle, slip: Callable[[], bool] = lambda: False) -> tuple[list[Event], tuple[bool, ...]]:
    """The events of the search and the roles it ends with; a check is misjudged where `slip()` says so.

    Assume a person's role, then check every statement that has all its people assigned now and had not before. At the
    first check that does not fit turn the last assumption round; when a person has been both, turn the one before.
    The order of the people (`search_order`) is fixed before.
    """
    order = search_order(puzzle)
    position = {person: step for step, person in enumerate(order)}
    due = [[] for _ in order]  # statements by the step at which their last person is assigned
    for speaker, statement in enumerate(puzzle.statements):
        due[max(position[person] for person in (speaker, *mentioned(statement)))].append(speaker)
    events: list[Event] = []
    roles = [False] * len(order)

    def solve(step: int) -> bool:
        if step == len(order):
            return True
        person = order[step]
        for role, kind in TRIED:
            roles[person] = role
            events.append(Event(kind, person, tuple(roles)))
            if all(check(speaker) for speaker in sorted(due[step], key=position.__getitem__)) and solve(step + 1):
                return True
        events.append(Event("back", person, tuple(roles)))
        return False

    def check(speaker: int) -> bool:
        good = (evaluate(puzzle.statements[speaker], roles) == roles[speaker]) != slip()
        events.append(Event("check", speaker, tuple(roles), good))
        return good

    solve(0)
    return events, tuple(roles)


def search_order(puzzle: Puzzle) -> list[int]:
    """People in the order in which the search assigns them: the first speaker, then the first one not yet assigned
    among those whom the assigned people mention, in order of assignment, else the first one not assigned."""
    order, people = [], range(len(puzzle.statements))
    while len(order) < len(people):
        heard = [other for person in order for other in mentioned(puzzle.statements[person])]
        order.append(next(person for person in (*heard, *people) if person not in order))
    return order
