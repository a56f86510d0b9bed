"""`warpup eval --schedule`: the grid, the best beside plain, and the spread over seeds."""

import pytest

from warpup.apps import compare
from warpup.train.evaluation import Evaluation


def test_the_grid_is_made_to_the_trace():
    assert compare.grid(40.0) == [
        "tip:alpha=3,beta=20",
        "s1:times=1",
        *(f"cyclic:amplitude={a},period={p}" for p in (20, 40, 80) for a in (1, 3, 5)),
    ]
    assert list(compare.names_of(("s1", "plain", "compare", "s1"))) == ["plain", "s1", None]


def test_rows_and_the_best(monkeypatch, tmp_path, capsys):
    def measured(*_, seed, decoding, greedy, **__):
        name = decoding.name
        avg = {"plain": 0.5, "s1:times=1": 0.4}.get(name, 0.6) + 0.1 * seed
        return Evaluation(avg, avg / 2 if greedy else float("nan"), 1, 1.0, 1, 0.0, 1.0, 40.0, 2.0, 0.0, 0, [])

    monkeypatch.setattr(compare, "evaluate", measured)
    monkeypatch.setattr(compare.DecodingStrategy, "parse", lambda name, *_: type("Named", (), {"name": name}))
    rows = compare.compare(None, None, [], None, ("compare",), ["wait"], (0, 1), lambda *_: None)
    assert [row["decoding"] for row in rows] == ["plain", *compare.grid(40.0)]
    assert rows[0]["avg"] == (pytest.approx(0.55), pytest.approx(0.005**0.5))
    assert rows[0]["greedy"] == (0.25, 0.0)  # one completion: no spread over seeds
    compare.show(rows, tmp_path)
    assert "best beside plain: tip:alpha=3,beta=20, +10.0 points (its spread over seeds 7.1)" in capsys.readouterr().out
