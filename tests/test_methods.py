"""docs/methods.md: all 102 rows, up to date, and every snippet gives the value it says."""

import ast
import runpy
from functools import cache

import pytest

from tools import methods

ROWS = methods.rows()
functions = cache(runpy.run_path)
OPTIONAL = ("gymnasium", "peft", "scipy", "sklearn")  # what only some rows need


def test_page_is_up_to_date():
    assert methods.PAGE.read_text() == methods.page(), "run `python tools/methods.py`"


def test_every_row_is_there_once():
    assert [row.number for row in ROWS] == list(range(1, 103))


def test_a_row_has_a_checked_snippet_or_says_why_not():
    for row in ROWS:
        called = [node.func for node in ast.walk(ast.parse(row.snippet)) if isinstance(node, ast.Call)]
        checks = [name for name in called if getattr(name, "attr", "").startswith("assert_")]
        checks += [node for node in ast.walk(ast.parse(row.snippet)) if isinstance(node, ast.Assert)]
        assert bool(checks) == row.offers, f"row {row.number}"


@pytest.mark.parametrize("row", [row for row in ROWS if row.snippet], ids=lambda row: f"{row.path.stem}-{row.number}")
def test_snippet(row, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        functions(str(row.path))[f"row_{row.number}"]()
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        pytest.skip(f"needs {error.name}")
