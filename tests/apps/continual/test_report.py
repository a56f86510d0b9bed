"""Means and spreads of `warpup continual`."""

import pytest

from warpup.apps.continual import report

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_means_and_spreads():
    run = {"tasks": ["a", "b"], "measured": [[1.0], [0.9, 0.8]], "certified": [[0.7], [0.6, 0.5]]}
    assert report.numbers(run) == [(1.0, 0.7, 0.9, 0.6), (0.8, 0.5, 0.8, 0.5)]
    assert report.cell((0.5, 0.7)) == "60.0 ±14.1"
    assert report.cell((0.5,)) == "50.0"
    runs = [{"method": "intercontinet", "seed": seed, **run} for seed in range(2)]
    [axes] = report.picture(runs).axes
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["intercontinet, measured"] == [[1, 100], [2, pytest.approx(85)]]
    assert drawn["intercontinet, certified"] == [[1, 70], [2, pytest.approx(55)]]
