"""`ReflectionSchedule`: its closed form, its JSON, its picture, and what it refuses."""

import math

import numpy as np
import pytest
from hypothesis import given

from tests.reflection.schedules import TOKENS, schedules, wave_of
from warpup.reflection import ReflectionSchedule, presets


def test_triangle_turns_where_the_paper_says():
    schedule = wave_of("triangle", amplitude=5.0, period=1200)
    assert [schedule.delta(t) for t in (0, 300, 600, 900, 1200, 150)] == [0, 5, 0, -5, 0, 2.5]
    t = np.arange(5000)
    paper = 5 * np.abs(4 * ((t - 300) % 1200) / 1200 - 2) - 5
    np.testing.assert_allclose(schedule.delta(t), paper, atol=1e-12)


@given(schedules)
def test_json(schedule):
    assert ReflectionSchedule.from_json(schedule.to_json()) == schedule


@pytest.mark.parametrize(
    "wrong", ["", "[1]", '{"wave": "off"}', '{"tokens": [1]}', '{"tokens": {"ids": [1]}, "more": 1}']
)
def test_what_is_no_json_of_a_schedule(wrong):
    with pytest.raises(ValueError, match="not the JSON of a ReflectionSchedule"):
        ReflectionSchedule.from_json(wrong)


def test_json_of_a_ban():
    assert ReflectionSchedule.from_json(presets.no_wait(TOKENS).to_json()) == presets.no_wait(TOKENS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wave": "square"}, "wave: expected one of .*got 'square'"),
        ({"anchor": "start"}, "anchor: expected one of"),
        ({"phase": "thinking"}, "phase: expected some of .*got 'thinking'"),
        ({"phase": ()}, "phase: expected some of"),
        ({"unit": "bit"}, "unit: expected one of"),
        ({"period": 0}, "period: expected tokens, at least 2.4e-07, got 0"),
        ({"period": 1e-308}, "period: expected tokens, at least"),
        ({"amplitude": math.nan}, "amplitude: expected a finite float32"),
        ({"amplitude": math.inf}, "amplitude: expected a finite float32"),
        ({"amplitude": 1e39}, "amplitude: expected a finite float32"),  # inf as the float32 that is added
        ({"wave": "constant", "amplitude": math.inf}, "amplitude: expected a finite float32"),
        ({"wave": "constant", "amplitude": -math.inf, "unit": "nat"}, "amplitude: expected a finite float32"),
        ({"shift": math.nan}, "shift: expected a finite number"),
        ({"start_offset": math.inf}, "start_offset: expected a finite number"),
        ({"window": (math.nan, 3)}, r"window: expected \(begin, end\) with begin < end"),
        ({"window": (3, 3)}, r"window: expected \(begin, end\) with begin < end"),  # acts nowhere
        ({"wave": "table", "table": [(0, 1), (math.nan, 2)]}, "by rising t"),
        ({"wave": "table", "table": [(0, 1), (3, math.nan)]}, "table: expected knots of finite"),
        ({"wave": "table", "table": [(0, 1), (3, 1e39)]}, "table: expected knots of finite"),
        ({"window": (5, 2)}, r"window: expected \(begin, end\)"),
        ({"wave": "table"}, "table: expected"),
        ({"table": [(0, 1)]}, "table: expected"),
        ({"wave": "table", "table": [(3, 1), (3, 2)]}, "by rising t"),
        ({"tokens": []}, "tokens: expected at least one id"),
        ({"tokens": [-1]}, "ids: expected token ids"),
        ({"wave": "constant", "period": 7}, "period: has no effect on wave 'constant', leave it at 1200, got 7"),
        ({"wave": "constant", "shift": 0.5}, "shift: has no effect on wave 'constant'"),
        ({"wave": "table", "table": [(0, 1)], "amplitude": 2.0}, "amplitude: has no effect on wave 'table'"),
        ({"wave": "table", "table": [(0, 1)], "period": 7}, "period: has no effect on wave 'table'"),
    ],
)
def test_wrong_schedules(change, message):
    with pytest.raises(ValueError, match=message):
        ReflectionSchedule(**{"tokens": [1], **change})


def test_plot():
    import matplotlib

    matplotlib.use("agg")
    ax = wave_of("triangle").plot([[1, 7, 7, 2], [7, 7, 1]], length=24)
    np.testing.assert_allclose(ax.lines[0].get_ydata(), wave_of("triangle").delta(np.arange(24)))
    counts = [p.get_height() for p in ax.figure.axes[1].patches]
    assert sum(counts) == 3


def test_values_of_a_wave_its_shift_and_its_window():
    """A triangle of amplitude 4 and period 8 begins at 0 and rises; a window has its begin, and not its end."""
    times = range(9)

    def wave(**options):
        return ReflectionSchedule("triangle", 4.0, 8, tokens=(3,), **options).delta(times).tolist()

    assert wave() == [0, 2, 4, 2, 0, -2, -4, -2, 0]
    assert wave(shift=0.25) == [4, 2, 0, -2, -4, -2, 0, 2, 4]
    assert wave(window=(2, 5)) == [0, 0, 4, 2, 0, 0, 0, 0, 0]
    cosine = ReflectionSchedule("cosine", 4.0, 8, tokens=(3,)).delta(range(0, 9, 2))
    np.testing.assert_allclose(cosine, [0, 4, 0, -4, 0], atol=1e-12)
