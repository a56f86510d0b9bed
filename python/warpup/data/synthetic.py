"""Synthetic worlds in which a mechanism can be seen: facts in one and two hops, mazes with one way through."""

import math
import random
from collections.abc import Sequence
from typing import Any

Cell = tuple[int, int]


def two_hop_facts(
    entities: int = 60, relations: int = 12, *, degree: int = 6, ratio: float = 3.0, noise: float = 0.0,
    ood: float = 0.1, cot: bool = True, seed: int = 0,
) -> dict[str, list[dict[str, Any]]]:  # fmt: skip
    """Facts `e1 r2 -> e3`, and what follows from two of them, `e1 r2 r4 -> e3 e5`: does a model combine facts that it
    has never seen combined?

    Every entity has `degree` relations to random entities. All facts are in "train" by themselves; a share `ood` of
    them takes part in no two-hop example there. "train" has `ratio` times as many two-hop examples as facts; "id" holds
    the other two-hop facts of the same facts, "ood" those made of two of the share.

    cot: completions name the entity between, `e3 e5`, else the last alone. noise: share of the training's two-hop
    examples in which that entity is a wrong one. Returns examples with prompt, completion, answer and hops.
    Raises ValueError where there are too few two-hop facts for the ratio, or a number cannot be.

    Source: "Unveiling the Mechanisms of Explicit CoT Training" (arXiv 2502.04667), whose ratio and noise these are.
    """
    if entities < 2 or not 1 <= degree <= relations or not (0 <= noise <= 1 and 0 <= ood < 1 and 0 <= ratio < math.inf):
        raise ValueError(
            f"two_hop_facts: expected 2 or more entities, degree from 1 to relations, noise and ood from 0 to 1 and a "
            f"ratio of at least 0, got {entities}, {degree} of {relations}, {noise}, {ood}, {ratio}"
        )
    rng = random.Random(f"{seed} two hops")
    facts = [
        (head, relation, rng.randrange(entities))
        for head in range(entities)
        for relation in sorted(rng.sample(range(relations), degree))
    ]
    shuffled = rng.sample(range(len(facts)), len(facts))
    apart = set(shuffled[: round(ood * len(facts))])
    of_head: dict[int, list[int]] = {}
    for number, (head, _, _) in enumerate(facts):
        of_head.setdefault(head, []).append(number)
    pairs = [(i, j) for i, (_, _, between) in enumerate(facts) for j in of_head[between]]
    inside = [pair for pair in pairs if not apart & set(pair)]
    wanted = round(ratio * len(facts))
    if wanted > len(inside):
        raise ValueError(f"two_hop_facts: a ratio of {ratio} wants {wanted} two-hop facts, there are {len(inside)}")
    rng.shuffle(inside)

    def two(pair: tuple[int, int], wrong: bool = False) -> dict[str, Any]:
        (head, first, between), (_, second, tail) = facts[pair[0]], facts[pair[1]]
        if wrong:
            between = (between + 1 + rng.randrange(entities - 1)) % entities
        completion = f"e{between} e{tail}" if cot else f"e{tail}"
        return {"prompt": f"e{head} r{first} r{second}", "completion": completion, "answer": f"e{tail}", "hops": 2}

    one = [
        {"prompt": f"e{head} r{relation}", "completion": f"e{tail}", "answer": f"e{tail}", "hops": 1}
        for head, relation, tail in facts
    ]
    train = one + [two(pair, rng.random() < noise) for pair in inside[:wanted]]
    rng.shuffle(train)
    both = [pair for pair in pairs if set(pair) <= apart]
    return {"train": train, "id": [two(pair) for pair in inside[wanted:]], "ood": [two(pair) for pair in both]}


def maze(size: int, *, seed: int = 0) -> dict[str, Any]:
    """A maze on a square of `size` times `size` cells in which one way leads from any cell to any other.

    Returns an example: prompt, the open borders `0,0-0,1 ...` in random order and the two ends; completion and answer,
    the cells of the way between them; cells, how many these are. Cells are `row,column`.
    Raises ValueError unless size is at least 2.

    Source: the mazes of "Transformers Can Navigate Mazes With Multi-Step Prediction" (arXiv 2412.05117), made by a
    depth-first search.
    """
    if type(size) is not int or size < 2:
        raise ValueError(f"maze: expected a size of at least 2, got {size!r}")
    rng = random.Random(f"{seed} maze {size}")
    start = (rng.randrange(size), rng.randrange(size))
    behind: dict[Cell, Cell] = {start: start}  # from each cell back towards the first
    stack = [start]
    while stack:
        row, column = stack[-1]
        around = [(row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)]
        free = [cell for cell in around if 0 <= min(cell) <= max(cell) < size and cell not in behind]
        if free:
            chosen = rng.choice(free)
            behind[chosen] = stack[-1]
            stack.append(chosen)
        else:
            stack.pop()
    ends = rng.sample(sorted(behind), 2)
    borders = [f"{_written(cell)}-{_written(before)}" for cell, before in behind.items() if cell != before]
    rng.shuffle(borders)
    way = " ".join(map(_written, _between(behind, *ends)))
    prompt = f"{' '.join(borders)} : {_written(ends[0])} {_written(ends[1])} :"
    return {"prompt": prompt, "completion": way, "answer": way, "cells": way.count(" ") + 1}


def _between(behind: dict[Cell, Cell], begin: Cell, end: Cell) -> Sequence[Cell]:
    """The way in a tree: up from both ends, to where they meet."""
    up, down = [begin], [end]
    for way in (up, down):
        while behind[way[-1]] != way[-1]:
            way.append(behind[way[-1]])
    while len(up) > 1 and len(down) > 1 and up[-2] == down[-2]:
        up.pop()
        down.pop()
    return up + down[-2::-1]


def _written(cell: Cell) -> str:
    return f"{cell[0]},{cell[1]}"
