"""Figures of the report: matplotlib's own objects, without pyplot and its global state, and their inline SVG."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Point = tuple[float, float, float]  # x, mean, spread
SIZE = (5.0, 2.9)  # inches, of 72 units in the SVG
# Stand-ins that `inline_svg` turns into variables of the page's style, so that one picture serves light and dark.
INK, SOFT, GRID, ACCENT = "#010203", "#020304", "#030405", "#040506"
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # words stay words: selectable, in the page's font
    "svg.hashsalt": "warpup",  # the same picture from the same numbers
    "font.size": 9,
    "text.color": SOFT,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.titlecolor": INK,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "ytick.left": False,
    "figure.facecolor": "none",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Line:
    """One curve: points (x, mean, spread), joined in order; a spread above 0 draws a band of +- spread around it.

    Without a label it is not in the legend. faint: thin and pale, to lie under a running mean.
    """

    label: str
    color: str
    points: Sequence[Point]
    faint: bool = False


def line_chart(
    x_label: str,
    lines: Sequence[Line],
    y_range: tuple[float | None, float | None] = (None, None),
    log_y: bool = False,
) -> Figure | None:
    """Chart of the curves; None if no curve has a point. Ends of the y range that are None fit the curves."""
    lines = [line for line in lines if line.points]
    if not lines:
        return None
    from matplotlib.ticker import MaxNLocator

    figure, axes = _axes()
    with _style():
        if all(x == int(x) for line in lines for x, _, _ in line.points):  # there is no step 1.5
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        for line in lines:
            x, mean, spread = zip(*line.points, strict=True)
            look: dict[str, Any] = {"marker": "o" if len(x) <= 30 else ""}
            if line.faint:
                look = {"alpha": 0.3, "linewidth": 0.8}
            axes.plot(x, mean, color=line.color, label=line.label or "_", markersize=3.5, **look)
            if any(spread):
                low, high = ([m + sign * s for m, s in zip(mean, spread, strict=True)] for sign in (-1, 1))
                axes.fill_between(x, low, high, color=line.color, alpha=0.18, linewidth=0)
        axes.set_xlabel(x_label)
        axes.set_xmargin(0.02)
        axes.set_yscale("log" if log_y else "linear")
        axes.set_ylim(*y_range)
        if any(line.label for line in lines):
            axes.legend()
    return figure


@dataclass(frozen=True)
class Dot:
    """One point with its spread in both directions: x and y are (mean, spread)."""

    label: str
    color: str
    x: tuple[float, float]
    y: tuple[float, float]


def front_chart(x_label: str, y_label: str, dots: Sequence[Dot], front: Sequence[Dot]) -> Figure:
    """The dots, of which less is better in x and y, and the edge of what those of the Pareto front reach."""
    figure, axes = _axes()
    with _style():
        edge = sorted((dot.x[0], dot.y[0]) for dot in front)
        axes.plot(*zip(*edge, strict=True), color=SOFT, linewidth=1, drawstyle="steps-post")
        for dot in dots:
            spread = {"xerr": dot.x[1] or None, "yerr": dot.y[1] or None, "elinewidth": 1}
            axes.errorbar(dot.x[0], dot.y[0], fmt="o", color=dot.color, label=dot.label, markersize=5, **spread)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.legend()
    return figure


def bar_chart(bars: Sequence[tuple[str, str, Sequence[tuple[float, float, float]]]]) -> Figure:
    """Groups of bars: (group, color, [(value, spread, opacity)]), each with its value above it."""
    figure, axes = _axes()
    with _style():
        for i, (_, color, values) in enumerate(bars):
            width = 0.8 / len(values)
            for j, (value, spread, opacity) in enumerate(values):
                place = i + (j - (len(values) - 1) / 2) * width
                axes.bar(place, value, width * 0.94, color=color, alpha=opacity)
                if spread:
                    axes.errorbar(place, value, spread, color=INK, linewidth=1.2)
                above = {"xytext": (0, 2), "textcoords": "offset points", "ha": "center"}
                axes.annotate(f"{value:.0f}", (place, value + spread), **above)
        axes.set_xticks(range(len(bars)), [group for group, _, _ in bars])
        axes.tick_params(axis="x", length=0)
        axes.margins(y=0.12)
    return figure


def inline_svg(figure: Figure, title: str) -> str:
    """The figure under a title, as an `<svg>` element for an HTML page whose style sets --ink and the other colors."""
    buffer = io.StringIO()
    with _style():
        figure.axes[0].set_title(title)
        figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = buffer.getvalue()
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :])  # HTML knows them
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would hold for the whole page
    for stand_in, name in ((INK, "ink"), (SOFT, "soft"), (GRID, "grid"), (ACCENT, "accent")):
        svg = svg.replace(stand_in, f"var(--{name})")
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(title)}"', 1)


def write_png(figure: Figure, path: Path) -> None:
    """The figure as a picture on white, once it has its title."""
    with _style():
        figure.axes[0].grid(axis="y", color="#d8dee4")
        figure.savefig(path, dpi=150, facecolor="white")


def _style():
    import matplotlib

    return matplotlib.rc_context(STYLE)


def _axes():
    """(figure, axes) without pyplot, which would choose a screen's backend and keep every figure alive."""
    from matplotlib.figure import Figure

    with _style():
        figure = Figure(SIZE, layout="constrained")
        return figure, figure.add_subplot()
