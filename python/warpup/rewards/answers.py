"""Find the final answer of a completion, and compare it with the known one, as text or as a number.

Only the final answer counts: a completion that names many numbers is paid for the last of them, or not at all.
"""

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple


class Grade(NamedTuple):
    """What an answer is worth, and whether it is right (the accuracy in metrics and reports)."""

    reward: float
    correct: bool

    @classmethod
    def of(cls, correct: bool) -> "Grade":
        """1 for a right answer, 0 for any other."""
        return cls(float(correct), correct)


def number(completion: str, example: Mapping[str, Any], *, tolerance: float = 0.0) -> Grade:
    """1 if the last number of the final answer equals the last number of `example["answer"]`, else 0.

    Numbers are compared exactly: 72, "72.", "$72.00", "#### 72" and 144/2 are one number, -72 and 720 are others. Read
    are signs, thousands with commas, decimals, exponents (1e3), fractions and mixed numbers (2 1/2, \\frac{5}{2}); the
    digits of x2, cm^2 and the like are none. 5% is both 5 and .05. Units are not compared: 5 m is 5 cm. tolerance:
    largest difference, as a share of the known number.
    Raises ValueError if the example's answer holds no number.
    """
    known, said = known_answer(example), final_answer(completion)
    wanted, found = last_number(known), last_number(said)
    if wanted is None:
        raise ValueError(f"answer: expected a number, got {example['answer']!r}")
    if found is None:
        return Grade.of(False)
    read = [found]
    if is_percent(said) != is_percent(known):
        read.append(found / 100 if is_percent(said) else found * 100)
    return Grade.of(any(abs(one - wanted) <= abs(wanted) * Fraction(tolerance) for one in read))


def exact(completion: str, example: Mapping[str, Any]) -> Grade:
    """1 if the final answer equals `example["answer"]` but for case, white space and a full stop at the end, else 0.

    Raises ValueError if the example has no answer text.
    """
    return Grade.of(_folded(final_answer(completion)) == _folded(known_answer(example)))


def final_answer(completion: str) -> str:
    r"""The part of a completion that answers.

    That is what stands after the last `</think>`, and of it the last `<answer>` block, `\boxed{...}` or rest after
    `####`, whichever are there, the inner of one another. A thought that has not ended answers nothing.
    """
    text = completion.rpartition("</think>")[2]
    if "<think>" in text:
        return ""
    if "<answer>" in text:
        text = text.rpartition("<answer>")[2].partition("</answer>")[0]
    if r"\boxed{" in text:
        text = _braced(text.rpartition(r"\boxed{")[2])
    return unadorned(text.rpartition("####")[2])


def unadorned(text: str) -> str:
    """The text without white space around it, and without Markdown's bold, italics or code around all of it."""
    return re.sub(r"^(\*\*?|__?|`)([^*_`]+)\1(\.?)$", r"\2\3", text.strip())


def is_marked(completion: str) -> bool:
    """Whether the final answer is set apart from the text around it."""
    return any(mark in completion.rpartition("</think>")[2] for mark in ("<answer>", r"\boxed{", "####"))


def known_answer(example: Mapping[str, Any]) -> str:
    """The example's answer as text, read like a completion's; ValueError if there is none."""
    answer = example.get("answer")
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return str(answer)
    if not isinstance(answer, str) or not answer.strip():
        raise ValueError(f"answer: expected a text or a number in the example's column 'answer', got {answer!r}")
    return final_answer(answer)


_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
UNIT = "(?:[kcm]m|[km]g|ml)"  # written to a number without a space between them; 3x and 2nd are no numbers
_NUMBER = re.compile(
    rf"""(?<![\w.^\\])            # no part of a word, of another number, or of a power
    (?P<sign>(?<![\w)\]}}])[-+])?(?:\$\s?(?P<inner_sign>-)?)?   # 7-4 holds no minus 4; -$5 and $-5 are -5
    (?:(?P<whole>\d+)\s+(?=\d+/\d))?         # 2 1/2
    (?P<value>{_DIGITS})(?:[eE](?P<exponent>[-+]?\d{{1,3}}))?
    (?:\s?/\s?(?P<below>\d+))?(?:(?!\w|\.\d)|(?={UNIT}\b))
    (?P<percent>\s?(?:\\?%|percent\b|per\ cent\b))?""",
    re.VERBOSE,
)


def last_number(text: str) -> Fraction | None:
    """The last number of a text, exactly, or None. Of a percentage the number before the sign."""
    found = _last(text)
    if found is None:
        return None
    try:
        value = Fraction(found["value"].replace(",", "")) * Fraction(10) ** int(found["exponent"] or 0)
        value = (value / int(found["below"]) if found["below"] else value) + int(found["whole"] or 0)
    except (ValueError, ZeroDivisionError):  # thousands of digits; nothing over 0
        return None
    return -value if "-" in (found["sign"], found["inner_sign"]) else value


def is_percent(text: str) -> bool:
    """Whether the last number of a text is a percentage."""
    found = _last(text)
    return found is not None and found["percent"] is not None


# Between the digits of one number: what TeX and typographers write for a comma.
SEPARATORS = r"(?:\{,\}|\\,|\\!|,\\!|['\N{NO-BREAK SPACE}\N{NARROW NO-BREAK SPACE}\N{THIN SPACE}](?=\d{3}(?!\d)))"


def _last(text: str) -> re.Match | None:
    """The last number in the spelling of `_NUMBER`."""
    text = re.sub("[\N{MINUS SIGN}\N{EN DASH}]", "-", text).replace(r"\$", "$")
    text = re.sub(rf"(?<=\d){SEPARATORS}(?=\d)", "", text)
    text = re.sub(r"\\[dt]?frac", r"\\frac", text)
    text = re.sub(r"\\frac\s?(\d)(\d)(?!\d)", r"\\frac{\1}{\2}", text)  # TeX's arguments of one digit
    text = re.sub(r"\\frac\{-(\d+)\}\{(\d+)\}", r"-\\frac{\1}{\2}", text)
    text = re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"\1/\2 ", re.sub(r"(?<=\d)(?=\\frac)", " ", text))
    found = None
    for found in _NUMBER.finditer(text):  # noqa: B007  the last one is meant
        pass
    return found


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).removesuffix(".").rstrip()


def _braced(text: str) -> str:
    """The text up to the brace that closes one opened before it; all of it if none does."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "{") - (letter == "}")
        if depth == 0:
            return text[:place]
    return text
