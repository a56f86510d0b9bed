"""Verifiable rewards: check the format of a completion, parse its answer, compare it with the known one.

Rewards follow "Warm Up Before You Train" (arXiv 2505.13718): -2 for a bad format, -1 for an answer that cannot be
parsed, -0.5 for a wrong one, +2 for the right one.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .puzzles import ROLES


class Rewards(NamedTuple):
    """Reward of each outcome; finite numbers without unit."""

    format: float = -2.0
    parse: float = -1.0
    wrong: float = -0.5
    right: float = 2.0


PAPER_REWARDS = Rewards()


class Verdict(NamedTuple):
    """Outcome of a check. Each flag implies the ones before it: correct implies parsed implies format_ok."""

    reward: float
    format_ok: bool
    parsed: bool
    correct: bool


def answer_block(completion: str) -> str | None:
    """Text of the answer block, or None on a bad format.

    Good is exactly one `</think>`, after it exactly one `<answer> ... </answer>`, after which only white space comes;
    at most one `<think>`, before `</think>` (a chat template may have put it into the prompt).
    """
    if not isinstance(completion, str):
        raise ValueError(f"completion: expected str, got {type(completion).__name__}")
    tags = re.findall(r"</?think>|</?answer>", completion)
    if tags not in (["</think>", "<answer>", "</answer>"], ["<think>", "</think>", "<answer>", "</answer>"]):
        return None
    _, _, rest = completion.partition("<answer>")
    block, _, tail = rest.partition("</answer>")
    return None if tail.strip() else block.strip()


def verify(completion: str, answer: str | Mapping[str, Any], *, rewards: Rewards = PAPER_REWARDS) -> Verdict:
    """Check a Knights & Knaves completion.

    answer: the example (a mapping with "answer"), its answer string (`A knight B knave`) or a mapping name -> role.
    An answer is parsed when it gives each person of the puzzle exactly one role and says nothing else; `A is a knight,
    and B is a knave` and a numbered list are read as well.
    Raises ValueError if `completion` is not a string or `answer` is not a known answer.
    """
    return _judge(completion, _expected_roles(answer), _grade_roles, rewards)


def verify_exact(completion: str, answer: str | Mapping[str, Any], *, rewards: Rewards = PAPER_REWARDS) -> Verdict:
    """Check that the answer block equals the answer, case and white space aside. An empty block counts as unparsed."""
    return _judge(completion, _expected_text(answer), _grade_text, rewards)


def verify_math(completion: str, answer: str | Mapping[str, Any], *, rewards: Rewards = PAPER_REWARDS) -> Verdict:
    r"""Check that the answer block and the answer are the same mathematical object, by the package math-verify.

    answer: an expression as plain text or LaTeX, such as `\frac{1}{2}`; dollar signs are added where there are none.
    Read and limited in time as `warpup.rewards.math_verify` does it.
    Raises ImportError naming the installation if the package is missing, ValueError if `answer` cannot be parsed.
    """
    from warpup.rewards.mathematics import same

    return _judge(completion, _expected_text(answer), same, rewards)


def _judge(completion: str, expected: Any, grade: Callable[[str, Any], bool | None], rewards: Rewards) -> Verdict:
    block = answer_block(completion)
    if block is None:
        return Verdict(rewards.format, False, False, False)
    correct = grade(block, expected)
    if correct is None:
        return Verdict(rewards.parse, True, False, False)
    return Verdict(rewards.right if correct else rewards.wrong, True, True, correct)


def _expected_roles(answer) -> dict[str, str]:
    if isinstance(answer, Mapping) and "answer" in answer:
        answer = answer["answer"]
    if isinstance(answer, Mapping):
        # A table pads the answers of smaller puzzles with None.
        pairs = [(name, role) for name, role in answer.items() if role is not None]
    elif isinstance(answer, str):
        words = answer.split()
        pairs = list(zip(words[::2], words[1::2], strict=False)) if len(words) % 2 == 0 else []
    else:
        pairs = []
    if not pairs or len(dict(pairs)) < len(pairs) or any(role not in ROLES for _, role in pairs):
        raise ValueError(f"answer: expected `name role ...` or name -> role, roles of {ROLES}, got {answer!r}")
    return dict(pairs)


def _grade_roles(block: str, expected: dict[str, str]) -> bool | None:
    filler = {"is", "a", "an", "and"} - expected.keys()
    words = [w for w in re.findall(r"\w+", block) if w in expected or (w not in filler and not w.isdigit())]
    found = dict(zip(words[::2], words[1::2], strict=False))
    if len(words) != 2 * len(expected) or found.keys() != expected.keys():
        return None
    if any(role not in ROLES for role in found.values()):
        return None
    return found == expected


def _expected_text(answer) -> str:
    if isinstance(answer, Mapping) and "answer" in answer:
        answer = answer["answer"]
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        answer = str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"answer: expected a non-empty string or a number, got {answer!r}")
    return answer


def _grade_text(block: str, expected: str) -> bool | None:
    return block.casefold().split() == expected.casefold().split() if block else None
