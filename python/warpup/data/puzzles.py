"""Knights & Knaves puzzles: knights always tell the truth, knaves always lie, and one statement is made by each person.

The statement grammar is that of mem-kk-logic (Xie et al. 2024, arXiv 2410.23123): a leaf names a person's role; `not`,
`and`, `or`, `implies` and `iff` combine statements.
"""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

# ("knight", i) | ("knave", i) | ("not", s) | ("and" | "or", s, s, ...) | ("implies" | "iff", s, s)
Statement = tuple

ROLES = ("knight", "knave")
KINDS = ("leaf", "not", "and", "or", "implies", "iff")
NAMES = ("A", "B", "C", "D", "E", "F", "G")
MAX_PEOPLE = 10  # 2^n assignments are enumerated for every puzzle

# Words with a meaning in prompts, traces or answers: no person may bear one as a name.
RESERVED = {
    *("knight", "knave", "says", "not", "and", "or", "implies", "iff", "yes", "no", "ok", "bad"),
    *("try", "wait", "back", "is", "a", "an", "think", "answer"),
}


def evaluate(statement: Statement, roles: Sequence[bool]) -> bool:
    """Truth value of a statement when person i is a knight exactly where `roles[i]` is True."""
    head = statement[0]
    if head == "knight":
        return roles[statement[1]]
    if head == "knave":
        return not roles[statement[1]]
    values = [evaluate(part, roles) for part in statement[1:]]
    if head == "not":
        return not values[0]
    if head == "and":
        return all(values)
    if head == "or":
        return any(values)
    if head == "implies":
        return not values[0] or values[1]
    return values[0] == values[1]


def mentioned(statement: Statement) -> list[int]:
    """People a statement speaks about, each once, in reading order."""
    if statement[0] in ROLES:
        return [statement[1]]
    return list(dict.fromkeys(person for part in statement[1:] for person in mentioned(part)))


def solutions(statements: tuple[Statement, ...]) -> list[tuple[bool, ...]]:
    """All role assignments (True = knight) under which exactly the knights' statements are true; tries all 2^n."""
    return [
        roles
        for roles in itertools.product((True, False), repeat=len(statements))
        if all(evaluate(statement, roles) == role for statement, role in zip(statements, roles, strict=True))
    ]


def check_statement(statement: Statement, speaker: int, people: int) -> None:
    """Raise ValueError unless the statement follows the grammar and names people 0 .. people - 1."""
    if not isinstance(statement, tuple) or len(statement) < 2 or statement[0] not in (*ROLES, *KINDS[1:]):
        raise ValueError(
            f"statement {speaker}: expected (head, ...) with a head of {(*ROLES, *KINDS[1:])}, got {statement!r}"
        )
    head, parts = statement[0], statement[1:]
    if head in ROLES:
        if len(parts) != 1 or type(parts[0]) is not int or not 0 <= parts[0] < people:
            raise ValueError(f"statement {speaker}: expected ({head!r}, person of 0..{people - 1}), got {statement!r}")
        if head == "knave" and parts[0] == speaker:
            raise ValueError(f"statement {speaker}: 'I am a knave' has no consistent speaker")
        return
    if len(parts) != 1 if head == "not" else len(parts) < 2 if head in ("and", "or") else len(parts) != 2:
        raise ValueError(f"statement {speaker}: wrong number of operands for {head!r}: {len(parts)}")
    for part in parts:
        check_statement(part, speaker, people)


def check_names(names: tuple[str, ...]) -> None:
    """Raise ValueError unless the names are distinct single words that are no word of the puzzle language."""
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w*", name) or name in RESERVED:
            raise ValueError(f"names: expected words that start with a letter, none of them reserved, got {name!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"names: expected distinct names, got {names}")


@dataclass(frozen=True)
class Puzzle:
    """A puzzle with exactly one solution, proven on construction by trying all 2^n assignments.

    names: one single-word name a person, distinct. statements: statement i is said by person i; people are indices.
    solution: True for a knight; may be left out, and is then found.
    Raises ValueError on a malformed statement, on a wrong solution, and unless there is exactly one solution.
    """

    names: tuple[str, ...]
    statements: tuple[Statement, ...]
    solution: tuple[bool, ...] = ()

    def __post_init__(self):
        people = len(self.statements)
        if not 1 <= people <= MAX_PEOPLE or len(self.names) != people:
            raise ValueError(
                f"expected 1 to {MAX_PEOPLE} statements and as many names, got {people} and {len(self.names)}"
            )
        check_names(self.names)
        for speaker, statement in enumerate(self.statements):
            check_statement(statement, speaker, people)
        found = solutions(self.statements)
        if len(found) != 1:
            raise ValueError(f"expected exactly one solution, found {len(found)} for {self.statements}")
        if not self.solution:
            object.__setattr__(self, "solution", found[0])
        elif self.solution != found[0]:
            raise ValueError(f"solution: expected {found[0]}, got {self.solution}")

    @property
    def roles(self) -> dict[str, str]:
        """The solution as name -> "knight" or "knave"."""
        return {name: ROLES[not knight] for name, knight in zip(self.names, self.solution, strict=True)}

    def key(self) -> tuple[Statement, ...]:
        """Abstract identity: the statements with people as positions, names removed."""
        return self.statements

    def canonical_key(self) -> tuple[Statement, ...]:
        """Identity under symmetry: least statement tuple over all n! orders of the people and all operand orders.

        Two puzzles share it exactly when one becomes the other by renumbering people and reordering the operands of
        `and`, `or` and `iff`. Coarser than `key`, finer than logical equivalence.
        """
        orders = itertools.permutations(range(len(self.statements)))
        return min(tuple(_sorted(s) for s in _reorder(self.statements, order)) for order in orders)

    def renamed(self, names) -> "Puzzle":
        """The same puzzle told of other names: same key, other words."""
        return replace(self, names=tuple(names))

    def permuted(self, order) -> "Puzzle":
        """The same puzzle with person `order[j]` speaking in place j: same canonical key. `order` permutes 0..n-1."""
        order = tuple(order)
        if sorted(order) != list(range(len(self.statements))):
            raise ValueError(f"order: expected a permutation of 0..{len(self.statements) - 1}, got {order}")
        return Puzzle(
            names=tuple(self.names[person] for person in order),
            statements=_reorder(self.statements, order),
            solution=tuple(self.solution[person] for person in order),
        )


def _reorder(statements, order):
    place = {person: position for position, person in enumerate(order)}
    return tuple(_relabel(statements[person], place) for person in order)


def _relabel(statement, place):
    if statement[0] in ROLES:
        return (statement[0], place[statement[1]])
    return (statement[0], *(_relabel(part, place) for part in statement[1:]))


def _sorted(statement):
    if statement[0] in ROLES:
        return statement
    parts = [_sorted(part) for part in statement[1:]]
    return (statement[0], *(sorted(parts) if statement[0] in ("and", "or", "iff") else parts))
