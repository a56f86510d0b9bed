"""Mathematical equality by the package math-verify, in a process that can be stopped.

math-verify limits its own time by signals, which reach neither a thread nor a power tower inside a C library.
"""

import importlib.util
from collections.abc import Mapping
from typing import Any

from .answers import Grade, final_answer, is_marked, known_answer
from .process import call


def math_verify(completion: str, example: Mapping[str, Any], *, timeout: float = 5.0) -> Grade:
    r"""1 if the final answer and `example["answer"]` are the same mathematical object, else 0.

    Both are plain text or LaTeX: 1/2, 0.5, \frac12 and \boxed{\frac{1}{2}} are the same, so are 2 1/2 and 2.5, 1e3 and
    1000, x = 5 and 5, and 5% and 5. A word is a product of letters, in any order: take `exact` where answers are words.
    Where a completion does not mark its answer (see `final_answer`), its last line is read.
    timeout: seconds; what cannot be compared within them, or in 4 GiB, is not right.
    Raises ImportError naming the installation if math-verify is missing; ValueError if the example's answer holds no
    expression.
    """
    answer = final_answer(completion)
    if not is_marked(completion):
        answer = next((line for line in reversed(answer.splitlines()) if line.strip()), "")
    return Grade.of(same(answer, known_answer(example), timeout=timeout) is True)


def same(answer: str, known: str, *, timeout: float = 5.0) -> bool | None:
    """Whether two expressions are the same; None if there is none in `answer`. Errors as `math_verify`."""
    if importlib.util.find_spec("math_verify") is None:
        raise ImportError("this needs the package math-verify: pip install math-verify")
    outcome = call("warpup.rewards.math_worker:compare", final_answer(answer), known, timeout)
    if outcome is None:
        return False
    if outcome.correct == 0:  # see `compare`
        raise ValueError(f"answer: math-verify finds no expression in {known!r}")
    return None if outcome.abstained else outcome.reward == 1.0  # not so where sympy failed on the answer
