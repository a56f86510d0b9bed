"""The side of `mathematics.py` that runs in a process of its own, and alone imports math-verify."""

import logging
import re
import resource
from typing import NamedTuple

from math_verify import parse, verify

from .answers import SEPARATORS, UNIT

MEMORY = 4 << 30  # bytes that the process may take

resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that nothing limits its time


class Comparison(NamedTuple):
    """reward: 1.0 the same, 0.0 not, None: no expression in the answer. correct: False if there is none in the known
    one."""

    reward: float | None
    correct: bool


def compare(answer: str, known: str) -> Comparison:
    """Compare two expressions."""
    # An equation is compared with an equation; beside anything else its right side counts.
    if answer.count("=") + known.count("=") == 1:
        answer, known = (text.rpartition("=")[2] for text in (answer, known))
    if re.search(r"\d, \d", known):  # a list: no comma of the answer separates thousands
        answer = re.sub(r",\s*", ", ", answer)
    gold, found = (parse(plain(text), parsing_timeout=0) for text in (known, answer))  # 0: no limit
    same = float(verify(gold, found, timeout_seconds=0)) if gold and found else None
    return Comparison(same, bool(gold))


def plain(text: str) -> str:
    """An expression in the spelling that math-verify reads as it is meant: it takes 2 1/2 for 3/2 and 1e3 for 1 times e
    times 3, and a unit's power for one of the number."""
    text = re.sub("^\N{EN DASH}", "-", text.strip().removesuffix(".").replace("\N{MINUS SIGN}", "-"))
    text = re.sub(r"^([-+]?)[€£]\s?(?=\d)", r"\1", text)
    text = re.sub(rf"(?<=\d)\s?(?:{UNIT}|m)(?:\^\{{?[23]\}}?|[²³])$", "", text)
    text = re.sub(rf"(?<=\d){SEPARATORS}(?=\d)", "", text)
    mixed = re.compile(r"(?<![\w.)])(\d+)\s+(\d+)/(\d+)(?![\w.(])")
    text = mixed.sub(lambda m: f"({int(m[1]) * int(m[3]) + int(m[2])})/{m[3]}", text)
    text = re.sub(r"(?<![\w.])(\d+\.?\d*|\.\d+)[eE]([-+]?\d+)(?!\w)", r"\1 \\times 10^{\2}", text)
    return text if "$" in text or r"\(" in text or r"\[" in text else f"${text}$"
