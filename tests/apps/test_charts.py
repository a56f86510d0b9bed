"""Charts draw what they are given."""

import pytest

from warpup.apps._charts import ACCENT, Dot, Line, bar_chart, front_chart, inline_svg, line_chart

pytestmark = pytest.mark.usefixtures("one_thread")


def test_charts_draw_what_they_are_given():
    points = [(0, 1.0, 0.0), (10, 2.0, 0.5)]
    lines = [Line("one", "#123456", points), Line("none", "#000000", [])]
    [axes] = line_chart("step", lines, (0, None)).axes
    [drawn], [band] = axes.lines, axes.collections
    assert drawn.get_xydata().tolist() == [[0, 1], [10, 2]]
    assert {(10.0, 1.5), (10.0, 2.5)} <= set(map(tuple, band.get_paths()[0].vertices.tolist()))
    assert axes.get_ylim()[0] == 0
    for end, whole in ((2, True), (1.5, False)):  # steps are whole numbers
        [part] = line_chart("step", [Line("one", "#123456", [(1, 0.0, 0.0), (end, 1.0, 0.0)])]).axes
        assert all(tick == int(tick) for tick in part.get_xticks()) == whole
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one"]
    svg, again = (inline_svg(line_chart("step", lines), "<title>") for _ in range(2))
    assert 'aria-label="&lt;title&gt;"' in svg
    assert "&lt;title&gt;</text>" in svg
    assert "var(--ink)" in svg
    assert "#123456" in svg
    assert "<style" not in svg  # nothing that would reach the rest of the page
    assert svg == again
    assert line_chart("step", [Line("none", "#000000", [])]) is None

    figure = line_chart("step", [Line("", ACCENT, points, faint=True), Line("", ACCENT, points)])
    [axes] = figure.axes
    assert axes.get_legend() is None
    assert [line.get_alpha() for line in axes.lines] == [0.3, None]
    assert "var(--accent)" in inline_svg(figure, "title")

    [axes] = bar_chart([("a", "#123456", [(30.0, 2.0, 1), (20.0, 0.0, 0.5)])]).axes
    assert [bar.get_height() for bar in axes.patches] == [30, 20]
    assert [text.get_text() for text in axes.texts] == ["30", "20"]


def test_a_front_is_the_edge_of_what_is_reached():
    dots = [Dot(*given) for given in (("b", "#000001", (2, 0.5), (3, 1)), ("a", "#000002", (1, 0), (5, 0)))]
    dots.append(Dot("beaten", "#000003", (4, 0), (6, 0)))
    [axes] = front_chart("x", "y", dots, dots[:2]).axes
    edge, *marks = axes.lines
    assert edge.get_xydata().tolist() == [[1, 5], [2, 3]]
    assert edge.get_drawstyle() == "steps-post"  # level up to the next dot, then down to it
    assert [mark.get_xydata().tolist() for mark in marks] == [[[2, 3]], [[1, 5]], [[4, 6]]]
    bars = [bar.get_segments()[0].tolist() for bar in axes.collections]
    assert bars == [[[1.5, 3], [2.5, 3]], [[2, 2], [2, 4]]]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x", "y")
