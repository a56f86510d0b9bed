"""A trained model as a reward: what the stage `step_reward` has written."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

COMBINED = {"min": min, "mean": lambda p: sum(p) / len(p), "product": math.prod, "last": lambda p: p[-1]}
CREDITED = ("completion", "step", "progress")


def reward_model(
    completions: Sequence[str],
    examples: Sequence[Mapping],
    token_ids: Sequence[Sequence[int]],
    finished: Sequence[bool],
    *,
    folder: str,
    credit: str = "completion",
    combine: str = "min",
    device: str = "auto",
    max_tokens: int = 16384,
) -> list[Any]:
    """What the reward model in `folder` gives completions: a number each, or numbers for their tokens.

    A model of whole completions gives its score. A model of steps gives each the probability p of being right; of them
    credit="completion": one number, the `min` of them, their `mean` or `product`, or the `last`.
    credit="step": p at the token that ends each step; the reward is their sum, so more good steps are worth more.
    credit="progress": there what p has risen since the step before, so that the sum is the last p.
    A model of progress gives each step what it adds to the whole; credit="completion": their sum, "step": each at the
    token that ends the step.
    Numbers for tokens count where an advantage takes them (gae, reinforce_pp), and need the policy's tokenizer.

    device: where the model is; "auto" for a GPU if there is one. max_tokens: padded tokens that it reads at once.

    Source: p and min as in "Let's Verify Step by Step" (arXiv 2305.20050, there their product) and Math-Shepherd (arXiv
    2312.08935).
    """
    from warpup.train.model.reward_model import split_steps, step_ends

    check(folder=folder, credit=credit, combine=combine)
    judge = _loaded(folder, device)
    if judge.scores == "completions":
        given = zip(examples, completions, finished, strict=True)
        return [score for (score,) in judge.score([judge.whole(*each) for each in given], max_tokens)]
    texts = [split_steps(text, judge.separator) for text in completions]
    pairs = [judge.steps(example, steps) for example, steps in zip(examples, texts, strict=True)]
    found = judge.score(pairs, max_tokens)
    if judge.scores == "progress" and credit == "completion":
        return [sum(row) for row in found]
    chances = found if judge.scores == "progress" else [[1 / (1 + math.exp(-z)) for z in row] for row in found]
    if credit == "completion":
        return [COMBINED[combine](p) for p in chances]
    rows = []
    for p, ids in zip(chances, token_ids, strict=True):
        ends = step_ends([judge.tokenizer.decode([i], skip_special_tokens=True) for i in ids], judge.separator)
        if len(ends) != len(p):
            raise ValueError(f"the completion has {len(p)} steps as a text and {len(ends)} as the policy's tokens")
        row = [0.0] * len(ids)
        for before, now, end in zip([0.0, *p], p, ends, strict=False):
            row[end] += now - before if credit == "progress" else now
        rows.append(row)
    return rows


def check(
    *, folder: str, credit: str = "completion", combine: str = "min", device: str = "auto", max_tokens: int = 16384
) -> None:
    """Raise ValueError on options that cannot be."""
    from warpup.train.errors import TrainError
    from warpup.train.model.reward_model import about

    try:
        scores = about(folder)["scores"]
    except TrainError as error:
        raise ValueError(str(error)) from error
    if credit not in CREDITED:
        raise ValueError(f"credit: expected one of {', '.join(CREDITED)}, got {credit!r}")
    if combine not in COMBINED:
        raise ValueError(f"combine: expected one of {', '.join(COMBINED)}, got {combine!r}")
    if scores == "completions" and (credit, combine) != ("completion", "min"):
        raise ValueError(f"credit, combine: the model in {folder} scores whole completions, leave them out")
    if scores == "progress" and (credit == "progress" or combine != "min"):
        raise ValueError(f"credit, combine: the model in {folder} scores progress: take credit completion or step")
    if credit != "completion" and combine != "min":
        raise ValueError(f"combine: with credit {credit!r} nothing is combined, leave it out")
    if not max_tokens > 0:
        raise ValueError(f"max_tokens: expected more than 0, got {max_tokens}")


reward_model.check_options = check  # type: ignore[attr-defined]  # called when a config names it, before anything is trained


@functools.cache
def _loaded(folder: str, device: str):
    import torch

    from warpup.train.model.reward_model import load_reward_model

    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    return load_reward_model(folder, where)
