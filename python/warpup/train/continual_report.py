"""What `warpup continual` shows: a table for each method, and how accuracy and certificates go as tasks come in."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from .plot import Line, line_chart

COLORS = {"intercontinet": ("#0b6bcb", "#7fb4ea"), "hyperinterval": ("#9a6b00", "#dcb35c"), "finetune": ("#777777", "")}


def show(runs: Sequence[dict[str, Any]], out: Path) -> None:
    """Print the tables; write continual.json and continual.png into `out`."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for method, same in by_method(runs).items():
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"{method}, % right", title_justify="left")
        for heading in ("digits", "when learned", "certified", "after the last", "certified"):
            table.add_column(heading, justify="left" if heading == "digits" else "right", no_wrap=True)
        rows = [numbers(run) for run in same]  # [seed][task][column]
        for task, name in enumerate(same[0]["tasks"]):
            table.add_row(name, *(cell(values) for values in columns([row[task] for row in rows])))
        table.add_section()
        means = [[fmean(column) for column in zip(*row, strict=True)] for row in rows]
        table.add_row("mean", *(cell(values) for values in columns(means)))
        console.print(table)
        if method == "intercontinet":
            console.print("  each certificate covers every later network of this method", highlight=False)
        if method == "hyperinterval":
            console.print("  each certificate covers the universal network of its moment", highlight=False)
    (out / "continual.json").write_text(json.dumps(list(runs), indent=1) + "\n")
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


def columns(rows: Sequence[Sequence[float]]) -> list[tuple[float, ...]]:
    """The rows (one a seed) column by column."""
    return list(zip(*rows, strict=True))


def cell(values: Sequence[float]) -> str:
    """Mean in percent, with its spread over the seeds."""
    spread = f" ±{100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * fmean(values):.1f}{spread}"


def picture(runs: Sequence[dict[str, Any]]):
    """Mean over the tasks learned so far, of accuracy and of certificate, against their number."""
    lines = []
    for method, same in by_method(runs).items():
        for kind, color in zip(("measured", "certified"), COLORS[method], strict=True):
            if not color:
                continue
            points = []
            for learned in range(len(same[0][kind])):
                values = [100 * fmean(run[kind][learned]) for run in same]
                points.append((learned + 1, fmean(values), stdev(values) if len(values) > 1 else 0.0))
            lines.append(Line(f"{method}, {kind}", color, points))
    figure = line_chart("tasks learned", lines)
    figure.axes[0].set_title("% right, mean over the tasks learned")
    return figure
