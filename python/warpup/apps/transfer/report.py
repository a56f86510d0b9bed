"""What a finished run shows: the table on the console and as Markdown, a picture, and a page with curves and traces."""

import json
import math
from html import escape
from pathlib import Path

from warpup.train.log import MetricsLog

from .._charts import Line, bar_chart, inline_svg, line_chart, write_png
from .._report import curve, html_table, mean_sd, plus_minus, write_page
from .domains import KNIGHTS
from .settings import ARMS, Size, slug

COLORS = {"base": "#8b949e", "form": "#c27c0e", "warm-up": "#2f81f7", "control": "#8250df"}
REINFORCED = tuple(arm for arm, (_, stage) in ARMS.items() if stage == "rlvr")
COMPARED = (
    ("warm-up + RLVR", "form + RLVR"),
    ("warm-up + RLVR", "control + RLVR"),
    ("warm-up", "control"),
    ("form + RLVR", "form"),
    ("warm-up + RLVR", "warm-up"),
)
CURVES = (  # title, stage, arms, number, factor
    ("Loss of the imitation", "1-warmup", ("form", "warm-up", "control"), "loss", 1),
    ("Right answers while reinforcing, %", "1-rlvr", REINFORCED, "accuracy", 100),
    ("Reward while reinforcing", "1-rlvr", REINFORCED, "reward", 1),
    ("Tokens of an answer while reinforcing", "1-rlvr", REINFORCED, "length", 1),
)

Results = dict[str, list[dict]]  # arm -> of each seed, domain -> what `evaluate` found


def show(out: Path, domains: list[str], size: Size, control: str, seeds: int) -> None:
    """Print the table, write table.md, transfer.png and report.html. The first of the domains is the target."""
    results = read_results(out, domains, seeds)
    head, rows = table(results, domains)
    lines = gains(results, domains, size)
    told = "\n".join([markdown(head, rows), "", *(f"- {line}" for line in lines)])
    print(f"{seeds} seed{'s' * (seeds > 1)}, % right of {size.held_out} held-out problems\n\n{told}")
    (out / "table.md").write_text(told + "\n")

    title = f"Right on {domains[0]}: sampled, and greedy (pale), %"
    figure = bars(results, domains[0])
    charts = [inline_svg(figure, title), *curves(out, seeds)]  # this gives the figure its title
    write_png(figure, out / "transfer.png")
    answers = "".join(traces(results, name) for name in domains)
    write_page(out, "transfer", page(domains[0], size, control, seeds, html_table(head, rows), lines, charts, answers))


def folder(out: Path, arm: str, seed: int) -> Path:
    """The base is measured once, the others are trained for each seed."""
    return out / "base" if arm == "base" else out / f"seed-{seed}" / slug(arm)


def read_results(out: Path, domains: list[str], seeds: int) -> Results:
    return {
        arm: [
            {name: json.loads((folder(out, arm, seed) / "eval" / f"{name}.json").read_text()) for name in domains}
            for seed in range(1 if arm == "base" else seeds)
        ]
        for arm in ARMS
    }


# ---- Numbers ---------------------------------------------------------------------------------------------------------


def table(results: Results, domains: list[str]) -> tuple[list[str], list[list[str]]]:
    """Heading and rows, an arm a row."""
    target, *others = domains
    columns = {  # heading -> domain, number, factor
        target: (target, "avg", 100),
        "greedy": (target, "greedy", 100),
        "in the form": (target, "format_ok", 100),
        "tokens": (target, "length", 1),
        **{name: (name, "greedy", 100) for name in others},
    }
    rows = []
    for arm, found in results.items():
        cells = []
        for name, number, factor in columns.values():
            mean, spread = mean_sd(factor * seed[name][number] for seed in found)
            cells.append(plus_minus(mean, spread if len(found) > 1 else None))
        rows.append([arm, *cells])
    return ["arm", *columns], rows


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """The table with its columns lined up."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def gains(results: Results, domains: list[str], size: Size) -> list[str]:
    """The comparisons that the experiment is about, paired by seed."""

    def difference(arm: str, against: str, domain: str, number: str) -> str:
        other = results[against]
        found = [100 * (a[domain][number] - other[i % len(other)][domain][number]) for i, a in enumerate(results[arm])]
        mean, spread = mean_sd(found)
        each = f" ± {spread:.1f} ({', '.join(f'{d:+.1f}' for d in found)})" if len(found) > 1 else ""
        return f"{arm} against {against}: {mean:+.1f}{each} points on {domain}"

    target, *others = domains
    lines = [f"{difference(*pair, target, 'avg')}, sampled" for pair in COMPARED]
    lines += [f"{difference(arm, 'base', name, 'greedy')}, greedy"
              for name in others if name != KNIGHTS for arm in REINFORCED]  # fmt: skip
    return [*lines, f"the sampling error of one greedy accuracy is at most {50 / math.sqrt(size.held_out):.1f} points"]


# ---- The page --------------------------------------------------------------------------------------------------------


def bars(results: Results, target: str):
    """A group of bars for each arm."""
    groups = []
    for arm, found in results.items():
        values = [
            (*mean_sd(100 * seed[target][number] for seed in found), opacity)
            for number, opacity in (("avg", 1), ("greedy", 0.5))
        ]
        groups.append((arm.replace(" + ", "\n+ "), COLORS[arm.split(" + ")[0]], values))
    return bar_chart(groups)


def curves(out: Path, seeds: int) -> list[str]:
    """Charts of what was logged, running means of three steps."""
    charts = []
    for title, stage, arms, name, factor in CURVES:
        lines = []
        for arm in arms:
            logs = [MetricsLog(folder(out, arm, seed) / "metrics.jsonl").read() for seed in range(seeds)]
            lines.append(Line(arm, COLORS[arm.split(" + ")[0]], curve(logs, stage, name, factor, smooth=3)))
        if figure := line_chart("step", lines):
            charts.append(inline_svg(figure, title))
    return charts


def page(target, size: Size, control: str, seeds: int, numbers: str, lines, charts, answers: str) -> str:
    """The body of the page."""
    instead = {"shuffled": "the sentences of each chain are in random order", "short": "there are no chains"}[control]
    return f"""<h1>Warm up on puzzles, reinforce on {escape(target)}</h1>
<p>Percent of {size.held_out} held-out problems of each domain answered right, whatever the form of the answer. The
target is measured with {size.samples} samples at T=.7, top-p .95, and greedily, the others greedily. <b>Form</b>: the
model imitates up to {size.own} answers of its own, put into the asked form. <b>Warm-up</b>: these and {size.chains}
chains of thought on Knights &amp; Knaves. <b>Control</b>: the same, but {instead}.
<b>RLVR</b>: {size.rl_steps} steps of {size.prompts} x {size.group} answers to {size.examples} problems of the target.
{"± is one standard deviation over the seeds." * (seeds > 1)}</p>
{numbers}<p>{"<br>".join(map(escape, lines))}</p>
<h2>Curves</h2><div class="plots">{"".join(charts)}</div>
<h2>Answers</h2><p class="soft">Greedy answers to the same held-out problems, first seed.</p>{answers}"""


def traces(results: Results, domain: str, count: int = 3) -> str:
    """The first problems of a domain with every arm's answer."""
    shown = [f"<h3>{escape(domain)}</h3>"]
    for i, asked in enumerate(results["base"][0][domain]["traces"][:count]):
        question = asked["prompt"] if isinstance(asked["prompt"], str) else asked["prompt"][-1]["content"]
        answers = []
        for arm, found in results.items():
            trace = found[0][domain]["traces"][i]
            outcome = "right" if trace["correct"] else "wrong"
            answers.append(
                f'<div class="soft">{escape(arm)}: <span class="{outcome}">{outcome}</span></div>'
                f"<pre>{escape(trace['completion'].strip())}</pre>"
            )
        head = f'<b>{escape(question)}</b> <span class="soft">answer: {escape(str(asked["answer"]))}</span>'
        shown.append(f'<div class="trace">{head}{"".join(answers)}</div>')
    return "".join(shown)
