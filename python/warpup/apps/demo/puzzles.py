"""The demo's puzzles: what is imitated, what is rewarded, what is held out."""

import functools
import random

from warpup.data import NAMES, example, knights_and_knaves, split

from .settings import Size


@functools.cache
def puzzles_of(size: Size) -> tuple[list, list]:
    """(held out, others): puzzles with short prompts, no abstract puzzle (see `Puzzle.canonical_key`) on both sides."""
    drawn = knights_and_knaves(size.pool, people=size.people, depth=size.depth, kinds=size.kinds, seed=0)
    others, held_out = split([p for p in drawn if len(example(p)["prompt"].split()) <= size.words], size.held_out)
    return held_out, others


def puzzle_sets(size: Size, seed: int) -> dict[str, list[dict[str, str]]]:
    """Examples of a seed: "warm" and "base" to imitate, "rl" to be rewarded for, "held_out" to measure on.

    The held-out puzzles are the same for every seed. RLVR's puzzles are not imitated before (their mirror images may
    be) and come under several names.
    """
    held_out, others = puzzles_of(size)
    rng, names = random.Random(seed), random.Random(0)
    others = rng.sample(others, len(others))
    fresh, imitated = others[: size.puzzles], others[size.puzzles :]

    def renamed(puzzle, rng):
        return puzzle.renamed(rng.sample(NAMES, len(puzzle.names)))

    def traces(style, slips=0.0):
        picks = (rng.choice(imitated) for _ in range(size.chains))
        return [example(renamed(puzzle, rng), style, seed=i, slips=slips) for i, puzzle in enumerate(picks)]

    return {
        "held_out": [example(renamed(puzzle, names)) for puzzle in held_out],
        "rl": [example(renamed(puzzle, rng)) for _ in range(size.names) for puzzle in fresh],
        "warm": traces("long", size.slips),
        "base": traces("random"),
    }
