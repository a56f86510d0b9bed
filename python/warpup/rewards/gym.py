"""The reward of reasoning-gym tasks: its scorers decide, but for what they are known to get wrong."""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from warpup.data.reasoning_gym import package

from .answers import Grade, exact, final_answer, last_number
from .process import call

ONE_ANSWER = ("letter_jumble", "word_sorting")  # tasks with a single right text, whose scorers pay for words behind it
CLOSE = Fraction(1, 100)  # of a number: rounding that a scorer may forgive


def reasoning_gym(completion: str, example: Mapping[str, Any], *, timeout: float = 5.0) -> Grade:
    """1 if the final answer solves the example's task, else 0: `data = "reasoning-gym:name"` gives such examples.

    Only full scores of reasoning-gym count: its parts of 1 pay for text that holds the right answer, for the length of
    a wrong one, for constant answers. A number has to be the number (its scorers drop minus signs), yes and no have to
    be the same, the numbers of a puzzle24 have to be its own. timeout: seconds; some scorers evaluate the answer, so
    they run in a process that can be stopped.
    Raises ImportError naming the installation if reasoning-gym is missing; ValueError if the example is of no task.
    """
    entry = example.get("entry")
    if not isinstance(entry, Mapping) or "task" not in entry:
        raise ValueError('entry: expected an example of load_examples("reasoning-gym:name"), it has no such column')
    answer, known = final_answer(completion), entry["answer"]
    yes_or_no = isinstance(known, str) and known.casefold() in ("true", "false", "yes", "no")
    if yes_or_no or entry["task"] in ONE_ANSWER:
        return exact(completion, {"answer": known})
    wanted = last_number(known) if isinstance(known, str) and re.fullmatch(r"-?\d+(\.\d+)?", known) else None
    if wanted is not None:
        found = last_number(answer)
        if found is None or abs(found - wanted) > CLOSE * abs(wanted):
            return Grade.of(False)
        answer = known if found == wanted else repr(float(found))
    if entry["task"] == "puzzle24" and sorted(map(int, re.findall(r"\d+", answer))) != sorted(
        entry["metadata"]["numbers"]
    ):
        return Grade.of(False)
    package()
    outcome = call("warpup.rewards.gym_worker:score_answer", answer, dict(entry), timeout)
    return Grade.of(outcome is not None and outcome.reward == 1.0)
