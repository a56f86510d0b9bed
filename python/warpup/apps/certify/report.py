"""What `warpup certify` shows: the table on the console, report.html, and its figures as .png files."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import cycle
from pathlib import Path
from typing import Any

from warpup.train.log import MetricsLog

from .._charts import Dot, Line, Point, front_chart, inline_svg, line_chart, write_png
from .._report import console_table, curve, html_table, mean_sd, plus_minus, print_lines, write_page
from .settings import STAGE

ERRORS = {"clean": "#2f81f7", "pgd": "#c27c0e", "verified": "#2da44e"}
COLORS = ("#2f81f7", "#c27c0e", "#2da44e", "#cf222e", "#8250df", "#1b9e9e", "#bf3989", "#6e7781")
KINDS = {"clean": "clean", "pgd": "PGD", "verified": "verified"}  # errors
Groups = dict[tuple[float, str], list[dict[str, Any]]]  # (eps, arm) -> results of its seeds


def grouped(results: Sequence[dict[str, Any]]) -> Groups:
    groups: Groups = {}
    for result in results:
        groups.setdefault((result["eps"], result["arm"]), []).append(result)
    return dict(sorted(groups.items(), key=lambda item: item[0][0]))


def rows(results: Sequence[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table, errors in %; of several arms at one eps, which are on the Pareto front."""
    groups = grouped(results)
    several, best = len(groups) > len({eps for eps, _ in groups}), front(groups)
    kinds = [kind for kind in KINDS if all(kind in result for result in results)]
    table = []
    for (eps, arm), found in groups.items():
        row = [f"{eps:.4g}", arm]
        for kind in kinds:
            mean, sd = mean_sd(100 * result[kind] for result in found)
            row.append(plus_minus(mean, sd if len(found) > 1 else None))
        table.append([*row, "*" if (eps, arm) in best else ""] if several else row)
    return ["eps", "arm", *(f"{KINDS[kind]} %" for kind in kinds), *(["front"] if several else [])], table


def front(groups: Groups) -> set[tuple[float, str]]:
    """The arms that no other at the same eps beats in one of clean and verified error (mean over the seeds) without
    losing in the other."""
    means = {
        key: [mean_sd(run[kind] for run in runs)[0] for kind in ("clean", "verified")] for key, runs in groups.items()
    }

    def beaten(key: tuple[float, str]) -> bool:
        own = means[key]
        others = (found for other, found in means.items() if other[0] == key[0] and found != own)
        return any(clean <= own[0] and verified <= own[1] for clean, verified in others)

    return {key for key in groups if not beaten(key)}


def print_table(results: Sequence[dict[str, Any]], attack: bool) -> None:
    """Print the errors on the test set: means over seeds, with +- one standard deviation where there are several."""
    headings, lines = rows(results)
    table = console_table(headings, left=["arm"])
    for line in lines:
        table.add_row(*line)
    print_lines("Errors on the test set: clean, and not verified within eps by interval bounds", table)
    if "front" in headings:
        print(
            "* on the Pareto front: no arm at this eps is better in one of clean and verified and as good in the other"
        )
    if attack:
        broken = sum(result["broken"] for result in results)
        print(f"PGD broke {broken} of the verified images" + (": the bounds are wrong" if broken else ""))


def write_report(out: Path, source: str, results: Sequence[dict[str, Any]]) -> Path:
    """Write report.html, one file without links, and each figure as a .png beside it; returns the page's path."""
    charts = []
    for number, (title, figure) in enumerate(figures(results).items(), 1):
        charts.append(inline_svg(figure, title))
        write_png(figure, out / f"figure-{number}.png")
    seeds = len({result["seed"] for result in results})
    body = f"""<h1>Certified training with a short warm-up</h1>
<p>CNN-7 of {results[0]["parameters"]:,} parameters on {escape(source)}, {seeds} seed{"s" * (seeds > 1)}. <b>Verified
error</b>: share of the test images for which interval bounds do not prove that every image within eps keeps its class.
No attack can do worse than that.{" ± is one standard deviation over the seeds." * (seeds > 1)}</p>
{html_table(*rows(results))}
<div class="plots">{"".join(charts)}</div>"""
    return write_page(out, "warpup certify", body)


def figures(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """title -> matplotlib figure, for each eps that was trained for."""
    groups, found = grouped(results), {}
    for trained in dict.fromkeys(eps for eps, _ in groups):
        arms = {arm: runs for (eps, arm), runs in groups.items() if eps == trained}
        logs = {
            arm: [MetricsLog(Path(run["folder"]) / "metrics.jsonl").read() for run in runs]
            for arm, runs in arms.items()
        }
        of = f"trained for {trained:.3g}"
        if len(arms) == 1:
            [runs], [log] = arms.values(), logs.values()
            of_curve = [kind for kind in KINDS if kind in runs[0]["curve"][0]]
            over_eps = [Line(KINDS[k], ERRORS[k], over_epsilon(runs, k)) for k in of_curve]
            over_time = [Line(KINDS[k], ERRORS[k], curve(log, STAGE, k, 100)) for k in ("clean", "verified")]
            widths = [
                Line(f"ReLU {i}", COLORS[(i - 1) % len(COLORS)], curve(log, STAGE, f"width_{i}")) for i in layers(log)
            ]
        else:
            colors = dict(zip(arms, cycle(COLORS), strict=False))
            dots = {
                arm: Dot(arm, colors[arm], *(mean_sd(100 * run[k] for run in runs) for k in ("clean", "verified")))
                for arm, runs in arms.items()
            }
            best = [dots[arm] for eps, arm in front(groups) if eps == trained]
            found[f"Pareto front, {of}"] = front_chart("clean error, %", "verified error, %", [*dots.values()], best)
            over_eps = [Line(arm, colors[arm], over_epsilon(runs, "verified")) for arm, runs in arms.items()]
            over_time = [Line(arm, colors[arm], curve(logs[arm], STAGE, "verified", 100)) for arm in arms]
            widths = [Line(arm, colors[arm], curve(logs[arm], STAGE, f"width_{layers(logs[arm])[-1]}")) for arm in arms]
        what = "Error" if len(arms) == 1 else "Verified error"
        where = "each" if len(arms) == 1 else "the last"
        found[f"{what} over epsilon, %, {of}"] = line_chart("eps", over_eps, (0, None))
        found[f"{what} in training, %, {of}"] = line_chart("epoch", over_time, (0, None))
        found[f"Box width at {where} ReLU / input's, {of}"] = line_chart("epoch", widths, log_y=True)
    return found


def over_epsilon(runs: Sequence[dict[str, Any]], kind: str) -> list[Point]:
    """(eps, mean, spread over the seeds) of an error in %."""
    points = zip(*(run["curve"] for run in runs), strict=True)
    return [(at[0]["eps"], *mean_sd(100 * point[kind] for point in at)) for at in points]


def layers(log: Sequence[list[dict[str, Any]]]) -> list[int]:
    """Numbers of the ReLUs whose widths were logged."""
    names = {name for line in log[0] for name in line if name.startswith("width_")}
    return sorted(int(name.removeprefix("width_")) for name in names)
