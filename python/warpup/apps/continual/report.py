"""What `warpup continual` shows: a table for each method, and how accuracy and certificates go as tasks come in."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from warpup.train.files import write_text

from .._charts import Line, line_chart
from .._report import console_table, mean_sd, plus_minus, print_lines

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {"intercontinet": ("#0b6bcb", "#7fb4ea"), "hyperinterval": ("#9a6b00", "#dcb35c"), "finetune": ("#777777", "")}

PROMISES = {
    "intercontinet": ["  each certificate covers every later network of this method"],
    "hyperinterval": ["  each certificate covers the universal network of its moment"],
    "finetune": [],
}


def show(runs: Sequence[dict[str, Any]], out: Path) -> None:
    """Print the tables; write continual.json and continual.png into `out`."""
    for method, same in by_method(runs).items():
        headings = ("digits", "when learned", "certified", "after the last", "certified")
        table = console_table(headings, left=["digits"], title=f"{method}, % right")
        rows = [numbers(run) for run in same]  # [seed][task][column]
        for task, name in enumerate(same[0]["tasks"]):
            table.add_row(name, *cells([row[task] for row in rows], method))
        table.add_section()
        means = [[fmean(column) for column in zip(*row, strict=True)] for row in rows]
        table.add_row("mean", *cells(means, method))
        print_lines(table, *PROMISES[method])
    write_text(out / "continual.json", json.dumps(list(runs), indent=1) + "\n")
    picture(runs).savefig(out / "continual.png", dpi=150, facecolor="white")
    print(f"{out / 'continual.png'}, {out / 'continual.json'}")


def by_method(runs: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The runs of each method, in the order in which they came."""
    found: dict[str, list[dict[str, Any]]] = {}
    for run in runs:
        found.setdefault(run["method"], []).append(run)
    return found


def numbers(run: dict[str, Any]) -> list[tuple[float, ...]]:
    """Of each task: accuracy and certificate when it was learned, then both after the last task."""
    measured, certified = run["measured"], run["certified"]
    return [(measured[t][t], certified[t][t], measured[-1][t], certified[-1][t]) for t in range(len(measured))]


def cells(rows: Sequence[Sequence[float]], method: str) -> list[str]:
    """The columns of the rows (one a seed); fine-tuning has nothing in those of certificates."""
    found = [cell(values) for values in zip(*rows, strict=True)]
    return [found[0], "-", found[2], "-"] if method == "finetune" else found


def cell(values: Sequence[float]) -> str:
    """Mean in percent, with its spread over the seeds."""
    mean, sd = mean_sd(100 * value for value in values)
    return plus_minus(mean, sd if len(values) > 1 else None)


def picture(runs: Sequence[dict[str, Any]]) -> "Figure":
    """Accuracy and certificate, mean over the tasks learned so far and over the seeds, against the number of tasks."""
    lines = []
    for method, same in by_method(runs).items():
        for kind, color in zip(("measured", "certified"), COLORS[method], strict=True):
            if not color:
                continue
            means = [[100 * fmean(row) for row in run[kind]] for run in same]
            points = [(n, fmean(values), 0.0) for n, values in enumerate(zip(*means, strict=True), 1)]
            lines.append(Line(f"{method}, {kind}", color, points))
    figure = line_chart("tasks learned", lines)
    assert figure is not None  # as if nothing had been measured
    figure.set_size_inches(7.5, 3.0)
    [axes] = figure.axes
    axes.set_title("% right, mean over the tasks learned so far")
    axes.set_xticks(range(1, len(runs[0]["tasks"]) + 1))
    axes.grid(axis="y", color="#d8dee4")
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    return figure
