"""Drawing distinct Knights & Knaves puzzles, and splitting them so that no puzzle is on both sides."""

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from .puzzles import KINDS, MAX_PEOPLE, NAMES, Puzzle, Statement, check_names, evaluate, solutions

EXHAUSTIVE = 1_000_000  # spaces up to this many statement tuples are enumerated, larger ones are drawn from
PATIENCE = 20_000  # draws without a new puzzle after which a larger space counts as used up


def knights_and_knaves(
    n: int,
    *,
    people: int = 2,
    depth: int = 2,
    width: int = 2,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
    names: Sequence[str] = NAMES,
) -> list[Puzzle]:
    """`n` puzzles with one solution each and `n` different keys; the same arguments give the same list.

    people: 2 to 10; the first `people` of `names` are used. depth: levels of a statement, 2 to 5; leaves alone make no
    puzzle, for where one assignment solves them, its opposite does too.
    width: most operands of `and` and `or`. kinds: which statements occur above the lowest level, where all are leaves.
    Each statement takes a kind at random, all alike, then its operands likewise, no two of them equal, and never says
    "I am a knave"; statement tuples that have no or several solutions, or came before, are drawn again.

    The default grammar has 399 puzzles of two people (975 with width=3), 304,276 of three and 440,885,525 of four
    (`count_puzzles`); up to symmetry (`Puzzle.canonical_key`) 95 of two people and 15,088 of three.
    Raises ValueError on a bad argument, and, naming how many there are, when fewer than `n` puzzles exist or turn up.
    """
    _check(n, people, depth, width, kinds)
    if len(names) < people:
        raise ValueError(f"names: expected at least {people} names, got {len(names)}")
    names = tuple(names)[:people]
    check_names(names)
    if _size(people, depth, width, kinds) ** people <= EXHAUSTIVE:
        found = _without_replacement(n, people, depth, width, kinds, seed)
    else:
        found = _drawn(n, people, depth, width, kinds, seed)
    return [Puzzle(names, statements) for statements in found]


def count_puzzles(people: int = 2, *, depth: int = 2, width: int = 2, kinds: Sequence[str] = KINDS) -> int:
    """Exact number of puzzles, by key: statement tuples with exactly one solution.

    Raises ValueError on a bad argument or when one person alone has more than 100,000 statements to choose from.
    """
    _check(1, people, depth, width, kinds)
    size = _size(people, depth, width, kinds)
    if size > 100_000 or people > 4:
        raise ValueError(f"too many to count: {people} people with {size} statements each (at most 4 and 100,000)")
    # Fold the people in one at a time: how many partial tuples leave which set of assignments possible.
    left = Counter({(1 << 2**people) - 1: 1})
    for speaker in range(people):
        options = Counter(_possible(s, speaker, people) for s in _law(speaker, people, depth, width, kinds))
        step = Counter()
        for before, many in left.items():
            for mask, ways in options.items():
                step[before & mask] += many * ways
        left = step
    return sum(many for mask, many in left.items() if mask.bit_count() == 1)


def split(
    puzzles: Sequence[Puzzle],
    held_out: int,
    seed: int = 0,
    *,
    key: Callable[[Puzzle], object] = Puzzle.canonical_key,
) -> tuple[list[Puzzle], list[Puzzle]]:
    """(train, test): `held_out` puzzles at random for the test, the others for training; no key on both sides.

    Puzzles with one key stay together, so some training puzzles may have to go: those of the one class that no longer
    fits into the test whole. The default key also holds mirror images together (`Puzzle.canonical_key`); `Puzzle.key`
    is the weaker one that removes the names only. Both lists keep the order of `puzzles`.
    Raises ValueError unless 0 < held_out < len(puzzles) and a puzzle is left to train on.
    """
    if type(held_out) is not int or not 0 < held_out < len(puzzles):
        raise ValueError(f"held_out: expected 1 to {len(puzzles) - 1}, got {held_out!r}")
    classes: dict[object, list[int]] = {}
    for index, puzzle in enumerate(puzzles):
        classes.setdefault(key(puzzle), []).append(index)
    groups = list(classes.values())
    random.Random(seed).shuffle(groups)
    test, rest = [], []
    for group in groups:
        if len(test) + len(group) <= held_out:
            test += group
        else:
            rest.append(group)
    if len(test) < held_out:
        test += rest.pop()[: held_out - len(test)]
    train = sorted(itertools.chain.from_iterable(rest))
    if not train:
        raise ValueError(f"held_out: {held_out} of {len(puzzles)} puzzles leave no puzzle of another class to train on")
    return [puzzles[i] for i in train], [puzzles[i] for i in sorted(test)]


def from_reasoning_gym(entries: Iterable[Mapping], *, names: Sequence[str] | None = None) -> list[Puzzle]:
    """Puzzles from entries of reasoning-gym's `knights_knaves` data set, in order, repetitions kept.

    Each entry's statements and solution are read from its metadata, so the wording of its question (saints and
    sinners, turns of phrase) is left behind. names: replace the entry's names, else they are kept.
    Raises ValueError on an entry without that metadata.
    """
    heads = {"telling-truth": "knight", "lying": "knave", "->": "implies", "<=>": "iff"}

    def convert(statement) -> Statement:
        head, *parts = statement
        head = heads.get(head, head)
        return (head, *(int(p) for p in parts)) if head in ("knight", "knave") else (head, *map(convert, parts))

    puzzles = []
    for number, entry in enumerate(entries):
        metadata = entry.get("metadata", {}) if isinstance(entry, Mapping) else {}
        missing = {"statements", "solution", "names"} - metadata.keys()
        if missing:
            raise ValueError(f"entry {number}: expected a knights_knaves entry, its metadata lacks {sorted(missing)}")
        people = len(metadata["statements"])
        puzzles.append(
            Puzzle(
                tuple(metadata["names"] if names is None else names[:people]),
                tuple(convert(statement) for statement in metadata["statements"]),
                tuple(bool(role) for role in metadata["solution"]),
            )
        )
    return puzzles


def _check(n, people, depth, width, kinds):
    for name, value, low, high in (
        ("n", n, 1, math.inf),
        ("people", people, 2, MAX_PEOPLE),
        ("depth", depth, 2, 5),
        ("width", width, 2, 2 * people - 1 if type(people) is int else 2),  # as many leaves as may be told apart
    ):
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"{name}: expected an integer from {low} to {high}, got {value!r}")
    if isinstance(kinds, str) or not kinds or not set(kinds) <= set(KINDS):
        raise ValueError(f"kinds: expected some of {KINDS}, got {kinds!r}")
    if set(kinds) <= {"leaf", "not"}:
        raise ValueError(f"kinds: leaf and not alone make no puzzle with one solution, got {tuple(kinds)}")
    if width > 2 and not set(kinds) & {"and", "or"}:
        raise ValueError(f"width: it is that of and and or, which kinds {tuple(kinds)} has not, got {width!r}")


def _leaves(speaker, people):
    return [(role, p) for p in range(people) for role in ("knight", "knave") if (role, p) != ("knave", speaker)]


def _arities(kind, width):
    return range(2, width + 1) if kind in ("and", "or") else (2,)


def _size(people, depth, width, kinds):
    """Number of statements one person can make."""
    leaves = size = 2 * people - 1
    for _ in range(depth - 1):
        pick = {"leaf": leaves, "not": size}
        size = sum(
            pick[kind] if kind in pick else sum(math.perm(size, arity) for arity in _arities(kind, width))
            for kind in dict.fromkeys(kinds)
        )
    return size


def _law(speaker, people, depth, width, kinds) -> dict[Statement, float]:
    """Every statement the speaker can make, with its probability under `_draw`."""
    leaves = _leaves(speaker, people)
    if depth == 1:
        return dict.fromkeys(leaves, 1 / len(leaves))
    parts = _law(speaker, people, depth - 1, width, kinds)
    kinds, law = tuple(dict.fromkeys(kinds)), {}
    for kind in kinds:
        if kind == "leaf":
            law |= dict.fromkeys(leaves, 1 / len(leaves) / len(kinds))
        elif kind == "not":
            law |= {("not", part): chance / len(kinds) for part, chance in parts.items()}
        else:
            arities = _arities(kind, width)
            for chosen in itertools.chain.from_iterable(itertools.permutations(parts, arity) for arity in arities):
                chance, left = 1 / len(kinds) / len(arities), 1.0
                for part in chosen:
                    chance, left = chance * parts[part] / left, left - parts[part]
                law[(kind, *chosen)] = chance
    return law


def _draw(rng, speaker, people, depth, width, kinds) -> Statement:
    if depth == 1:
        return rng.choice(_leaves(speaker, people))
    kind = rng.choice(tuple(dict.fromkeys(kinds)))
    if kind == "leaf":
        return rng.choice(_leaves(speaker, people))
    count = 1 if kind == "not" else rng.choice(_arities(kind, width))
    parts = {}
    while len(parts) < count:
        parts[_draw(rng, speaker, people, depth - 1, width, kinds)] = None
    return (kind, *parts)


def _possible(statement, speaker, people) -> int:
    """Set of role assignments, one bit each, under which the speaker may make the statement."""
    worlds = itertools.product((True, False), repeat=people)
    return sum((evaluate(statement, roles) == roles[speaker]) << bit for bit, roles in enumerate(worlds))


def _without_replacement(n, people, depth, width, kinds, seed):
    """Exponential races: sorting E / chance gives the order in which repeated draws would first meet each puzzle."""
    laws = [_law(speaker, people, depth, width, kinds) for speaker in range(people)]
    worlds, chance = np.array((1 << 2**people) - 1, np.uint64), np.array(1.0)
    for speaker, law in enumerate(laws):
        masks = np.array([_possible(statement, speaker, people) for statement in law], np.uint64)
        worlds = np.bitwise_and.outer(worlds, masks)
        chance = np.multiply.outer(chance, np.array(list(law.values())))
    single = np.flatnonzero((worlds != 0) & (worlds & (worlds - np.uint64(1)) == 0))
    if len(single) < n:
        raise ValueError(
            f"n: {n} puzzles asked for, {len(single)} exist with people={people}, depth={depth}, width={width}, "
            f"kinds={tuple(kinds)}"
        )
    arrival = np.random.default_rng(seed).exponential(size=len(single)) / chance.reshape(-1)[single]
    places = np.unravel_index(single[np.argsort(arrival, kind="stable")[:n]], worlds.shape)
    tables = [list(law) for law in laws]
    return [tuple(table[i] for table, i in zip(tables, row, strict=True)) for row in zip(*places, strict=True)]


def _drawn(n, people, depth, width, kinds, seed):
    rng, found, tries = random.Random(seed), {}, 0
    while len(found) < n:
        statements = tuple(_draw(rng, speaker, people, depth, width, kinds) for speaker in range(people))
        tries += 1
        if statements not in found and len(solutions(statements)) == 1:
            found[statements], tries = None, 0
        if tries == PATIENCE:
            raise ValueError(
                f"n: {n} puzzles asked for, {len(found)} found before {PATIENCE} draws in a row gave no new one, with "
                f"people={people}, depth={depth}, width={width}, kinds={tuple(kinds)}"
            )
    return list(found)
