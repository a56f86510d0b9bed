"""The picture of a bench: a dot for each arm's number, with its spread, below each other."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from warpup.apps._charts import STYLE
from warpup.apps._report import mean_sd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAIN, OURS, GRID = "#8b949e", "#2f81f7", "#d8dee4"  # what others are compared with, and the others
WIDTH, ROW, EDGE, EXTRA = 7.0, 0.22, 0.9, 2.6  # inches: picture, an arm, a panel's axis and margins, the bench's own


def draw(bench: ModuleType, found: dict[str, list[dict]], path: Path) -> None:
    """Writes a PNG: the panels of `dots`, and the bench's own below them where it has one."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        path.parent.mkdir(parents=True, exist_ok=True)
        dots(bench, found).savefig(path, dpi=110, facecolor="white")


def dots(bench: ModuleType, found: dict[str, list[dict]]) -> Figure:
    """A panel for each column that arms are judged by: small dots are seeds, the line is a standard deviation."""
    from matplotlib.figure import Figure

    panels: dict[str, list[str]] = {}
    for name in found:
        panels.setdefault(bench.ARMS[name].by, []).append(name)
    plain = {arm.against for arm in bench.ARMS.values()}
    heights = [len(arms) * ROW + EDGE for arms in panels.values()]
    heights += [EXTRA] if hasattr(bench, "panel") else []
    figure = Figure((WIDTH, sum(heights)), layout="constrained")
    axes = figure.subplots(len(heights), squeeze=False, height_ratios=heights)[:, 0]
    for axis, (column, arms) in zip(axes, panels.items(), strict=False):
        factor = bench.COLUMNS[column].factor
        for place, name in enumerate(arms):
            values = [factor * seed["numbers"][column] for seed in found[name]]
            mean, sd = mean_sd(values)
            color = PLAIN if name in plain else OURS
            axis.errorbar(mean, place, xerr=sd, fmt="o", color=color, markersize=6)
            axis.plot(values, [place] * len(values), ".", color=color, markersize=3, alpha=0.6)
        axis.set_yticks(range(len(arms)), arms)
        axis.set_ylim(len(arms) - 0.5, -0.5)
        axis.set_xlabel(f"{column}{', %' if factor == 100 else ''}")
        axis.grid(axis="x", color=GRID)
        axis.grid(axis="y", visible=False)
    if hasattr(bench, "panel"):
        axes[-1].grid(axis="y", color=GRID)
        bench.panel(axes[-1], {name: [seed["numbers"] for seed in seeds] for name, seeds in found.items()})
    return figure
