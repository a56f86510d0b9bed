"""The picture of a bench: a dot for each arm's number, with its spread, below each other."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from warpup.apps._charts import STYLE
from warpup.apps._report import mean_sd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLAIN, OURS = "#8b949e", "#2f81f7"  # what others are compared with, and the others
WIDTH, ROW, EDGE = 7.0, 0.22, 0.9  # inches: of the picture, of an arm, of a panel's axis and margins


def draw(bench: ModuleType, found: dict[str, list[dict]], path: Path) -> None:
    """Writes the bench's own picture, or that of `dots`, as PNG."""
    import matplotlib

    own = getattr(bench, "picture", None)
    with matplotlib.rc_context(STYLE):
        figure = own({arm: [seed["numbers"] for seed in seeds] for arm, seeds in found.items()}) if own else None
        figure = figure or dots(bench, found)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=110, facecolor="white")


def dots(bench: ModuleType, found: dict[str, list[dict]]) -> Figure:
    """A panel for each column that arms are judged by: small dots are seeds, the line is a standard deviation."""
    from matplotlib.figure import Figure

    panels: dict[str, list[str]] = {}
    for name in found:
        panels.setdefault(bench.ARMS[name].by, []).append(name)
    plain = {arm.against for arm in bench.ARMS.values()}
    heights = [len(arms) * ROW + EDGE for arms in panels.values()]
    figure = Figure((WIDTH, sum(heights)), layout="constrained")
    axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)[:, 0]
    for axis, (column, arms) in zip(axes, panels.items(), strict=True):
        factor = bench.COLUMNS[column].factor
        for place, name in enumerate(arms):
            values = [factor * seed["numbers"][column] for seed in found[name]]
            color = PLAIN if name in plain else OURS
            axis.errorbar(*mean_sd(values)[:1], place, xerr=mean_sd(values)[1], fmt="o", color=color, markersize=6)
            axis.plot(values, [place] * len(values), ".", color=color, markersize=3, alpha=0.6)
        axis.set_yticks(range(len(arms)), arms)
        axis.set_ylim(len(arms) - 0.5, -0.5)
        axis.set_xlabel(f"{column}{', %' if factor == 100 else ''}")
        axis.grid(axis="x", color="#d8dee4")
        axis.grid(axis="y", visible=False)
    return figure
