"""Means, spreads, curves, tables and pages of the reports."""

import pytest

from warpup.apps._report import console_table, curve, html_table, mean_sd, plus_minus, print_lines, write_page


def test_mean_and_spread():
    assert mean_sd([3.0]) == (3.0, 0.0)
    assert mean_sd([1.0, 2.0, 6.0]) == (3.0, pytest.approx(7**0.5))  # over n - 1
    assert plus_minus(12.34, 0.46) == "12.3 ±0.5"
    assert plus_minus(12.34, 0.0, digits=2) == "12.34 ±0.00"
    assert plus_minus(12.34, None) == "12.3"


def test_curves_are_means_over_seeds_of_running_means():
    def log(values):
        lines = [{"stage": "one", "step": step, "loss": value} for step, value in enumerate(values, 1)]
        return [*lines, {"stage": "two", "step": 1, "loss": 99.0}, {"stage": "one", "step": 9}]

    assert curve([log([1.0, 3.0])], "one", "loss") == [(1, 1.0, 0.0), (2, 3.0, 0.0)]
    found = curve([log([1.0, 3.0, 8.0]), log([3.0, 5.0, 8.0])], "one", "loss", scale=10, smooth=2)
    assert found == [
        (1, 20, pytest.approx(200**0.5)),
        (2, 30, pytest.approx(200**0.5)),
        (3, 60, pytest.approx(50**0.5)),
    ]


def test_tables_and_pages(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    table = console_table(["arm", "right"], left=["arm"])
    table.add_row("a", "1")
    print_lines("a line that is longer than forty columns of a terminal", table)
    text = capsys.readouterr().out
    assert "a line that is longer than forty columns of a terminal\n" in text
    assert any(line.split() == ["a", "1"] for line in text.splitlines())
    assert html_table(["<a>"], [["&"], ["b"]]) == (
        '<div class="table"><table><tr><th>&lt;a&gt;</th></tr><tr><td>&amp;</td></tr><tr><td>b</td></tr></table></div>'
    )
    page = write_page(tmp_path, "a title", "<h1>body</h1>").read_text()
    assert page.startswith("<!doctype html>")
    assert "<title>a title</title>" in page
    assert "<h1>body</h1>" in page
    assert "http" not in page
