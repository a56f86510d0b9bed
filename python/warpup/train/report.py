"""What `warpup demo` shows: the table of arms on the console, and report.html with curves and traces."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from .demo import ARMS, Size, summary
from .log import MetricsLog
from .plot import Line, Point, bar_chart, inline_svg, line_chart

COLORS = {"base": "#c27c0e", "warm": "#2f81f7"}  # seen on white as on black
LOADS = ("#c0362c", "#1a7f37", "#8250df")
COLUMNS = {  # number -> heading; accuracies and format in percent
    "avg": "sampled",
    "greedy": "greedy",
    "reward": "reward",
    "length": "tokens",
    "reflections": "wait, back",
    "format_ok": "format",
}
LEGEND = "Held-out puzzles: % right sampled at T=.7 (avg@4) and greedy"
SMOOTH = 5  # steps of the running mean of training curves
DIGITS = {"avg": 1, "greedy": 1, "reward": 2, "length": 1, "reflections": 2, "format_ok": 1}
STYLE = """
:root{--ink:#1b1f24;--soft:#5b6470;--grid:#d8dee4;--page:#fff;--card:#f6f8fa;--good:#1a7f37;--bad:#c0362c}
@media(prefers-color-scheme:dark){
:root{--ink:#e6edf3;--soft:#9aa4af;--grid:#30363d;--page:#0d1117;--card:#161b22;--good:#56d364;--bad:#ff7b72}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--page)}
body{max-width:1000px;margin:2rem auto;padding:0 1rem}
h1{font-size:1.5rem;margin-bottom:.2rem}h2{font-size:1.15rem;margin-top:2.2rem}
p{max-width:46rem}.soft{color:var(--soft)}
table{border-collapse:collapse;width:100%}
th,td{padding:.35rem .6rem;text-align:right;border-bottom:1px solid var(--grid)}
th:first-child,td:first-child{text-align:left}th{font-weight:600;color:var(--soft)}
.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(400px,1fr));gap:1rem}
svg{background:var(--card);border-radius:8px;width:100%;height:auto;padding:.4rem;box-sizing:border-box}
svg text{font-family:system-ui,sans-serif!important}
.trace{background:var(--card);border-radius:8px;padding:.7rem 1rem;margin:.8rem 0}
.trace pre{white-space:pre-wrap;margin:.2rem 0 .7rem;font-size:12.5px}
.right{color:var(--good)}.wrong{color:var(--bad)}mark{background:#f5c54288;color:inherit;border-radius:3px}
"""


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """Print the arms: means over seeds, with +- one standard deviation where there are several."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    seeds = len({result["seed"] for result in results})
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("arm", no_wrap=True)
    names = [name for name in COLUMNS if name != "format_ok"]  # 80 columns
    for name in names:
        table.add_column(COLUMNS[name], justify="right", no_wrap=True)
    for arm, numbers in summary(results).items():
        table.add_row(arm, *(cell(numbers[name], name, seeds) for name in names))
    console = Console()
    console.print(f"{LEGEND}, {seeds} seed{'s' * (seeds > 1)}", soft_wrap=True, highlight=False)
    console.print(table)
    for line in gains(results):
        console.print(line, soft_wrap=True, highlight=False)


def cell(value: tuple[float, float], name: str, seeds: int) -> str:
    """A number of the table, rates in percent."""
    scale = 100 if name in ("avg", "greedy", "format_ok") else 1
    mean, spread = (f"{scale * number:.{DIGITS[name]}f}" for number in value)
    return f"{mean} ±{spread}" if seeds > 1 else mean


def gains(results: Sequence[dict[str, Any]]) -> list[str]:
    """The two comparisons that the demo is about, in words, paired by seed."""
    by_seed: dict[int, dict[str, float]] = {}
    for result in results:
        for arm in ARMS[result["chain"]]:
            by_seed.setdefault(result["seed"], {})[arm] = 100 * result[arm]["avg"]
    lines = []
    for arm, against in (("warm-up + RLVR", "base + RLVR"), ("warm-up + RLVR", "warm-up"), ("base + RLVR", "base")):
        found = [row[arm] - row[against] for row in by_seed.values()]
        spread = f" ± {stdev(found):.1f} (each seed: {', '.join(f'{d:+.1f}' for d in found)})" if len(found) > 1 else ""
        lines.append(f"{arm} against {against}: {fmean(found):+.1f}{spread} points of sampled accuracy")
    return lines


def write_report(out: Path, size: Size, teacher: float, results: Sequence[dict[str, Any]]) -> Path:
    """Write report.html, one file without links, and return its path. teacher: share of its traces that end right."""
    seeds = len({result["seed"] for result in results})
    rows = "".join(
        f"<tr><td>{escape(arm)}</td>" + "".join(f"<td>{cell(numbers[n], n, seeds)}</td>" for n in COLUMNS) + "</tr>"
        for arm, numbers in summary(results).items()
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in ("arm", *COLUMNS.values()))
    mixture = f", {size.experts} routed experts in each layer" if size.experts else ""
    spread = "One seed: no spread is known (--seeds 3 tells)."
    if seeds > 1:
        spread = f"± is one standard deviation over {seeds} seeds."
    charts = "".join(inline_svg(figure, title) for title, figure in figures(out, results).items() if figure)
    page = f"""<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>warpup demo</title><style>{STYLE}</style>
<h1>Warm up, then reinforce</h1>
<p>A language model of {results[0]["parameters"]:,} parameters{mixture}, trained from scratch on Knights &amp;
Knaves puzzles of {size.people} people. <b>Warm-up</b> imitates long chains of thought ({size.warm_steps} steps) by a
teacher that misjudges {size.slips:.0%} of its checks; nobody filters them, and {teacher:.0%} end right. <b>Base</b>
imitates random answers ({size.base_steps} steps), so it knows the format and nothing else. <b>RLVR</b> then reinforces
either on the same {size.puzzles} puzzles under changing names ({size.rl_steps} steps of {size.prompts} x {size.samples}
completions), rewarded by a verifier. All accuracy is on {size.held_out} puzzles of which no training puzzle is a
renaming or a mirror image.</p>
<p><b>{LEGEND}</b>; mean reward, tokens and reflection words of the sampled answers; % with a readable format</p>
<table><tr>{head}</tr>{rows}</table>
<p>{"<br>".join(map(escape, gains(results)))}</p>
<p class="soft">{spread} The sampling error of one accuracy is about {50 / math.sqrt(size.held_out):.0f} points at
worst. This shows the effect within one domain; carrying over to other domains needs pretrained weights.</p>
<h2>Curves</h2>
<p class="soft">Held-out curves are over {size.curve} of the {size.held_out} puzzles; curves of training are
running means of {SMOOTH} steps.{" Bands are ± one standard deviation over the seeds." * (seeds > 1)}</p>
<div class="plots">{charts}</div>
<h2>Traces</h2><p class="soft">Greedy completions for the same held-out puzzles before and after RLVR, first seed;
reflection words are marked.</p>{"".join(traces(results))}
</html>"""
    path = out / "report.html"
    path.write_text(page)
    return path


def figures(out: Path, results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """title -> matplotlib figure; None where nothing was logged."""
    table, logs = summary(results), {}
    for result in results:
        path = out / f"seed-{result['seed']}" / result["chain"] / "metrics.jsonl"
        logs.setdefault(result["chain"], []).append(MetricsLog(path).read())

    def lines(stage, name, scale=1.0, y_range=(0, None), smooth=1):
        after = stage == "2-rlvr"
        curves = [
            Line(arms[after], COLORS[chain], curve(logs[chain], stage, name, scale, smooth))
            for chain, arms in ARMS.items()
        ]
        return line_chart("RLVR step" if after else "warm-up step", curves, y_range)

    def balance(stage):
        """Loads of the most and the least loaded expert, 1 if all are alike, and the balance loss."""
        names = ("load_max", "load_min", "balance_loss")
        shades = zip(names, ("most loaded expert", "least loaded expert", "balance loss"), LOADS, strict=True)
        curves = [Line(label, color, curve(logs["warm"], stage, name, 1.0, SMOOTH)) for name, label, color in shades]
        return line_chart("RLVR step" if stage == "2-rlvr" else "warm-up step", curves, (0, None))

    def bars(arm):
        return [(*(100 * x for x in table[arm][name]), opacity) for name, opacity in (("avg", 1), ("greedy", 0.5))]

    return {
        "Accuracy: sampled, and greedy (pale), %": bar_chart(
            [(arm, COLORS[chain], bars(arm)) for chain, arms in ARMS.items() for arm in arms]
        ),
        "Held-out accuracy (greedy) while warming up, %": lines("1-warmup", "held_out_greedy", 100, (0, 100)),
        "Held-out accuracy (greedy) during RLVR, %": lines("2-rlvr", "held_out_greedy", 100, (0, 100)),
        "Reward of the training completions": lines("2-rlvr", "reward", y_range=(None, None), smooth=SMOOTH),
        "Tokens per training completion": lines("2-rlvr", "length", smooth=SMOOTH),
        "Reflection words per held-out answer (greedy)": lines("2-rlvr", "held_out_reflections"),
        "Experts' load while warming up (1: all alike)": balance("1-warmup"),
        "Experts' load during RLVR after the warm-up": balance("2-rlvr"),
    }


def curve(logs: Sequence[list[dict]], stage: str, name: str, scale: float = 1.0, smooth: int = 1) -> list[Point]:
    """`scale` times the logged number; `smooth`: running mean of each seed over so many logged steps."""
    at: dict[int, list[float]] = {}
    for log in logs:
        points = [
            (line["step"], scale * line[name]) for line in log if line["stage"] == stage and line.get(name) is not None
        ]
        for i, (step, _) in enumerate(points):
            recent = [value for _, value in points[max(0, i - smooth + 1) : i + 1]]
            at.setdefault(step, []).append(fmean(recent))
    return [(step, fmean(values), stdev(values) if len(values) > 1 else 0.0) for step, values in sorted(at.items())]


def traces(results: Sequence[dict[str, Any]], of_each: int = 2) -> list[str]:
    """Puzzles that RLVR put right, that it broke, and that were right or wrong throughout."""
    first = {result["chain"]: result for result in reversed(results)}
    by_arm = {arm: first[chain][arm]["traces"] for chain in reversed(ARMS) for arm in ARMS[chain]}
    warm, warm_after = (by_arm[arm] for arm in ARMS["warm"])
    kinds = {
        (0, 1): "put right by RLVR",
        (1, 0): "broken by RLVR",
        (1, 1): "right before and after",
        (0, 0): "wrong before and after",
    }
    shown = []
    for kind, text in kinds.items():
        same = [i for i in range(len(warm)) if (bool(warm[i]["correct"]), bool(warm_after[i]["correct"])) == kind]
        shown.append(f"<h3>{text[0].upper()}{text[1:]}: {len(same)} of {len(warm)} puzzles</h3>")
        for i in same[:of_each]:
            told = "".join(completion(arm, rows[i]) for arm, rows in by_arm.items())
            prompt, answer = escape(warm[i]["prompt"]), escape(warm[i]["answer"])
            shown.append(f'<div class="trace"><b>{prompt}</b> <span class="soft">answer: {answer}</span>{told}</div>')
    return shown


def completion(arm: str, trace: dict[str, Any]) -> str:
    """One completion, coloured by its outcome."""
    from warpup.data import REFLECTION_WORDS

    words = [f"<mark>{w}</mark>" if w in REFLECTION_WORDS else escape(w) for w in trace["completion"].split()]
    outcome = "right" if trace["correct"] else "wrong"
    head = f'<div class="soft">{escape(arm)}: <span class="{outcome}">{outcome}</span></div>'
    return f"{head}<pre>{' '.join(words)}</pre>"
