"""What the reports share: mean and spread, curves of logged numbers, tables on the console, the HTML page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from warpup.train.files import write_text

from ._charts import Point

STYLE = """
:root{--ink:#1b1f24;--soft:#5b6470;--grid:#d8dee4;--page:#fff;--card:#f6f8fa;--good:#1a7f37;--bad:#c0362c;--accent:#2f6fdb}
@media(prefers-color-scheme:dark){
:root{--ink:#e6edf3;--soft:#9aa4af;--grid:#30363d;--page:#0d1117;--card:#161b22;--good:#56d364;--bad:#ff7b72;--accent:#6ca4ff}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page)}
body{max-width:1000px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2.2rem}
p{max-width:46rem}.soft{color:var(--soft)}
table{border-collapse:collapse;width:100%}
.table{overflow-x:auto}
th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid var(--grid)}
th:first-child,td:first-child{text-align:left}th{font-weight:600;color:var(--soft)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:1rem}
svg{background:var(--card);border-radius:8px;width:100%;height:auto;padding:.4rem;box-sizing:border-box}
svg text{font-family:system-ui,sans-serif!important}
.trace{background:var(--card);border-radius:8px;padding:.7rem 1rem;margin:.8rem 0}
.trace pre{white-space:pre-wrap;margin:.2rem 0 .7rem;font-size:12.5px}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.4rem 0}
.tiles div{background:var(--card);border-radius:8px;padding:.7rem 1rem;flex:1 1 8rem}
.tiles b{display:block;font-size:1.2rem;font-weight:600;white-space:nowrap}
.tiles span{color:var(--soft);font-size:.85rem}
details{margin:1rem 0}summary{cursor:pointer;color:var(--accent);margin-bottom:.6rem}
.right{color:var(--good)}.wrong{color:var(--bad)}mark{background:#f5c54288;color:inherit;border-radius:3px}
"""


def mean_sd(values: Iterable[float]) -> tuple[float, float]:
    """(mean, standard deviation over the seeds); 0 for the deviation of one value, which has none."""
    values = list(values)
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def plus_minus(mean: float, sd: float | None, digits: int = 1) -> str:
    """`12.3 ±0.4`, or `12.3` where sd is None: no spread is known."""
    return f"{mean:.{digits}f}" + ("" if sd is None else f" ±{sd:.{digits}f}")


def curve(logs: Sequence[list[dict]], stage: str, name: str, scale: float = 1.0, smooth: int = 1) -> list[Point]:
    """(step, mean, deviation over the logs of several seeds) of `scale` times a logged number of a stage; `smooth`:
    running mean of each seed over so many logged steps."""
    at: dict[int, list[float]] = {}
    for log in logs:
        points = [
            (line["step"], scale * line[name]) for line in log if line["stage"] == stage and line.get(name) is not None
        ]
        for i, (step, _) in enumerate(points):
            recent = [value for _, value in points[max(0, i - smooth + 1) : i + 1]]
            at.setdefault(step, []).append(fmean(recent))
    return [(step, *mean_sd(values)) for step, values in sorted(at.items())]


def console_table(headings: Sequence[str], left: Sequence[str] = (), title: str | None = None):
    """An empty table of the console, to `add_row` to; columns are on the right but those named in `left`."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), title=title, title_justify="left")
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    return table


def print_lines(*lines: Any) -> None:
    """Print texts and tables, long texts on one line whatever the width of the terminal."""
    from rich.console import Console

    console = Console()
    for line in lines:
        if isinstance(line, str):
            console.print(line, soft_wrap=True, highlight=False)
        else:
            console.print(line)


def html_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of plain texts."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><tr>{head}</tr>{body}</table></div>'


def write_page(out: Path, title: str, body: str) -> Path:
    """Write report.html, one file without links, and return its path."""
    path = out / "report.html"
    write_text(
        path,
        '<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">\n'
        f"<title>{escape(title)}</title><style>{STYLE}</style>\n{body}\n</html>",
    )
    return path
