"""The side of `gym.py` that runs in a process of its own, where reasoning-gym may evaluate what a model wrote."""

from collections.abc import Mapping
from typing import Any

from reasoning_gym import get_score_answer_fn


def score_answer(answer: str, entry: Mapping[str, Any]) -> float:
    """What reasoning-gym's own scorer gives an answer, 0 to 1."""
    score: Any = get_score_answer_fn(entry["task"])  # typed there as a function without arguments
    return float(score(answer, entry))
