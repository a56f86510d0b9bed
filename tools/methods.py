"""Writes docs/methods.md: what warpup offers for each of 102 published methods, with a snippet whose value is known.

    python tools/methods.py            write it
    python tools/methods.py --check    exit 1 if it is not up to date (tests/test_methods.py does the same)

A row is a function `row_<number>` of a file in docs/methods/. Its docstring is the title of the paper; then, as a
paragraph, the tier and in one sentence what to call; then whatever else is to be known. Its body is the snippet: it
runs as it stands, and asserts a value that was computed by hand. A row without a body offers nothing and says why:

    T4: nothing offered, because ...
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
ROWS = ROOT / "docs/methods"
PAGE = ROOT / "docs/methods.md"
NOTHING = "nothing offered, because "
OPENING = """\
# Methods

What to call for each of 102 published methods. The table is by number; below it the rows stand by family, each with a
snippet that runs as it stands and checks a value that was computed by hand, or with the reason why there is nothing.
Stages and settings in code type, such as Warmup's `objective = "dco"`, are those of a config: [train](train.md),
[rlvr](rlvr.md), [stages](stages.md).

A row's tier: T1 is a core operator, T2 a loss or recipe made of these, T3 a small generic operator, sampler or metric,
T4 a whole system (a robot, a game, a survey) of which only the named operator is offered.

(This page is written by `tools/methods.py` from the files in `docs/methods/`: change those.)
"""


class Row(NamedTuple):
    number: int
    title: str
    tier: str  # T1 to T4
    offer: str  # the sentence that says what to call
    text: str  # what follows it
    snippet: str
    path: Path

    @property
    def offers(self) -> bool:
        return not self.offer.startswith(NOTHING)


def rows_of(path: Path) -> Iterator[Row]:
    """The rows of a file, in their order there."""
    source = path.read_text()
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef) or not (name := re.fullmatch(r"row_(\d+)", node.name)):
            continue
        title, about, *text = inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n")
        found = re.fullmatch(r"(T[1-4]): (.+)", " ".join(about.split()))
        if not found:
            raise ValueError(f"{path.name}: {node.name} must say its tier and what to call, `T2: ...`, got {about!r}")
        offer, _, rest = found[2].partition(". ")
        body = source.splitlines()[node.body[0].end_lineno : node.end_lineno]
        snippet = textwrap.dedent("\n".join(body)).strip("\n")
        text = "\n\n".join([rest, *text] if rest else text)
        yield Row(
            int(name[1]), " ".join(title.split()), found[1], offer if not rest else offer + ".", text, snippet, path
        )


def rows() -> list[Row]:
    """All rows by number."""
    return sorted((row for path in sorted(ROWS.glob("*.py")) for row in rows_of(path)), key=lambda row: row.number)


def counts() -> str:
    """How many rows of each tier have a call, and how many do not."""
    found = Counter((row.tier, row.offers) for row in rows())
    table = ["| tier | rows | with a call | nothing offered |", "|---|---|---|---|"]
    for tier in ("T1", "T2", "T3", "T4"):
        offered, nothing = found[tier, True], found[tier, False]
        table.append(f"| {tier} | {offered + nothing} | {offered} | {nothing} |")
    return "\n".join(table)


def page() -> str:
    text = [OPENING, counts(), "", "| row | method | tier | |", "|---|---|---|---|"]
    text += [f"| [{row.number}](#{row.number}) | {row.title} | {row.tier} | {row.offer} |" for row in rows()]
    for path in sorted(ROWS.glob("*.py")):
        heading = " ".join((ast.get_docstring(ast.parse(path.read_text())) or path.stem).split())
        text += ["", f"## {heading.removesuffix('.')}"]
        for row in rows_of(path):
            text += ["", f'### <a id="{row.number}"></a>{row.number}. {row.title}', "", f"{row.tier}: {row.offer}"]
            text += ["", row.text] if row.text else []
            text += ["", "```python", row.snippet, "```"] if row.snippet else []
    return "\n".join(text) + "\n"


def main() -> int:
    if sys.argv[1:] == ["--check"]:
        return int(not PAGE.is_file() or PAGE.read_text() != page())
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
