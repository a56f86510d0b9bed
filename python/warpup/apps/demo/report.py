"""What `warpup demo` shows: the table of arms on the console, and report.html with curves and traces."""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from warpup.data import REFLECTION_WORDS
from warpup.train.log import MetricsLog

from .._charts import Line, bar_chart, inline_svg, line_chart
from .._report import console_table, curve, html_table, mean_sd, plus_minus, print_lines, write_page
from .settings import ARMS, Size

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


def summary(results: Sequence[dict[str, Any]]) -> dict[str, dict[str, tuple[float, float]]]:
    """arm -> number -> (mean, standard deviation over seeds; 0 for one seed)."""
    table = {}
    for chain, arms in ARMS.items():
        for arm in arms:
            runs = [result[arm] for result in results if result["chain"] == chain]
            table[arm] = {name: mean_sd(run[name] for run in runs) for name in COLUMNS}
    return table


def print_table(results: Sequence[dict[str, Any]]) -> None:
    """Print the arms: means over seeds, with +- one standard deviation where there are several."""
    seeds = len({result["seed"] for result in results})
    names = [name for name in COLUMNS if name != "format_ok"]  # 80 columns
    table = console_table(["arm", *(COLUMNS[name] for name in names)], left=["arm"])
    for arm, numbers in summary(results).items():
        table.add_row(arm, *(cell(numbers[name], name, seeds) for name in names))
    print_lines(f"{LEGEND}, {seeds} seed{'s' * (seeds > 1)}", table, *gains(results))


def cell(value: tuple[float, float], name: str, seeds: int) -> str:
    """A number of the table, rates in percent."""
    scale = 100 if name in ("avg", "greedy", "format_ok") else 1
    mean, sd = (scale * number for number in value)
    return plus_minus(mean, sd if seeds > 1 else None, DIGITS[name])


def gains(results: Sequence[dict[str, Any]]) -> list[str]:
    """The two comparisons that the demo is about, in words, paired by seed."""
    by_seed: dict[int, dict[str, float]] = {}
    for result in results:
        for arm in ARMS[result["chain"]]:
            by_seed.setdefault(result["seed"], {})[arm] = 100 * result[arm]["avg"]
    lines = []
    for arm, against in (("warm-up + RLVR", "base + RLVR"), ("warm-up + RLVR", "warm-up"), ("base + RLVR", "base")):
        found = [row[arm] - row[against] for row in by_seed.values()]
        mean, sd = mean_sd(found)
        spread = f" ± {sd:.1f} (each seed: {', '.join(f'{d:+.1f}' for d in found)})" if len(found) > 1 else ""
        lines.append(f"{arm} against {against}: {mean:+.1f}{spread} points of sampled accuracy")
    return lines


def write_report(out: Path, size: Size, teacher: float, results: Sequence[dict[str, Any]]) -> Path:
    """Write report.html, one file without links, and return its path. teacher: share of its traces that end right."""
    seeds = len({result["seed"] for result in results})
    rows = [[arm, *(cell(numbers[n], n, seeds) for n in COLUMNS)] for arm, numbers in summary(results).items()]
    table = html_table(["arm", *COLUMNS.values()], rows)
    mixture = f", {size.experts} routed experts in each layer" if size.experts else ""
    spread = "One seed: no spread is known (--seeds 3 tells)."
    if seeds > 1:
        spread = f"± is one standard deviation over {seeds} seeds."
    charts = "".join(inline_svg(figure, title) for title, figure in figures(out, results).items() if figure)
    body = f"""<h1>Warm up, then reinforce</h1>
<p>A language model of {results[0]["parameters"]:,} parameters{mixture}, trained from scratch on Knights &amp;
Knaves puzzles of {size.people} people. <b>Warm-up</b> imitates long chains of thought ({size.warm_steps} steps) by a
teacher that misjudges {size.slips:.0%} of its checks; nobody filters them, and {teacher:.0%} end right. <b>Base</b>
imitates random answers ({size.base_steps} steps), so it knows the format and nothing else. <b>RLVR</b> then reinforces
either on the same {size.puzzles} puzzles under changing names ({size.rl_steps} steps of {size.prompts} x {size.samples}
completions), rewarded by a verifier. All accuracy is on {size.held_out} puzzles of which no training puzzle is a
renaming or a mirror image.</p>
<p><b>{LEGEND}</b>; mean reward, tokens and reflection words of the sampled answers; % with a readable format</p>
{table}
<p>{"<br>".join(map(escape, gains(results)))}</p>
<p class="soft">{spread} The sampling error of one accuracy is about {50 / math.sqrt(size.held_out):.0f} points at
worst. This shows the effect within one domain; carrying over to other domains needs pretrained weights.</p>
<h2>Curves</h2>
<p class="soft">Held-out curves are over {size.curve} of the {size.held_out} puzzles; curves of training are
running means of {SMOOTH} steps.{" Bands are ± one standard deviation over the seeds." * (seeds > 1)}</p>
<div class="plots">{charts}</div>
<h2>Traces</h2><p class="soft">Greedy completions for the same held-out puzzles before and after RLVR, first seed;
reflection words are marked.</p>{"".join(traces(results))}"""
    return write_page(out, "warpup demo", body)


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
        shown = [(*table[arm][name], opacity) for name, opacity in (("avg", 1.0), ("greedy", 0.5))]
        return [(100 * mean, 100 * spread, opacity) for mean, spread, opacity in shown]

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
            traces = "".join(completion(arm, rows[i]) for arm, rows in by_arm.items())
            prompt, answer = escape(warm[i]["prompt"]), escape(warm[i]["answer"])
            shown.append(f'<div class="trace"><b>{prompt}</b> <span class="soft">answer: {answer}</span>{traces}</div>')
    return shown


def completion(arm: str, trace: dict[str, Any]) -> str:
    """One completion, coloured by its outcome."""
    words = [f"<mark>{w}</mark>" if w in REFLECTION_WORDS else escape(w) for w in trace["completion"].split()]
    outcome = "right" if trace["correct"] else "wrong"
    head = f'<div class="soft">{escape(arm)}: <span class="{outcome}">{outcome}</span></div>'
    return f"{head}<pre>{' '.join(words)}</pre>"
