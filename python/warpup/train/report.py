"""report.html of any run: its curves, what it sampled, its settings and events, on one page without links.

`warpup train` writes it at the end; `warpup report RUN` writes it again, also of a run that is still at work.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import tyro

from warpup._command_line import parse

from .errors import TrainError
from .files import check_folder, read_table
from .log import MetricsLog

CURVES = {  # number -> (title, factor, range of the y axis), in the order of the page
    "loss": ("Loss", 1, (None, None)),
    "reward": ("Reward while training", 1, (None, None)),
    "held_out_greedy": ("Held-out accuracy (greedy), %", 100, (0, 100)),
    "held_out_avg": ("Held-out accuracy (sampled), %", 100, (0, 100)),
    "held_out_reward": ("Held-out reward", 1, (None, None)),
    "accuracy": ("Accuracy while training, %", 100, (0, 100)),
    "length": ("Tokens per completion", 1, (0, None)),
    "unfinished": ("Cut off by the length limit, %", 100, (0, 100)),
    "ref_kl": ("KL to the reference", 1, (0, None)),
    "entropy": ("Entropy, nats a token", 1, (0, None)),
    "grad_norm": ("Norm of the gradient", 1, (0, None)),
    "tokens_per_s": ("Tokens per second", 1, (0, None)),
}
NO_CURVES = ("stage", "step", "sample", "event", "message")
SMOOTHED = 40  # curves of more points than this are drawn faintly under their running mean
SAMPLES = 8  # of a stage, spread over its steps


@dataclass
class ReportArguments:
    """Write report.html of a run, finished or not, to its folder."""

    run: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """Folder of the run."""


def report(arguments: list[str]) -> None:
    """warpup report RUN."""
    given = parse(ReportArguments, arguments, "warpup report")
    check_folder(given.run)
    print(f"report: {write_report(given.run)}")


def write_report(out: str | Path) -> Path:
    """Write report.html to the folder of a run and return its path. TrainError if it has no steps yet."""
    from warpup.apps._report import html_table, write_page

    out = Path(out)
    log = MetricsLog(out / "metrics.jsonl").read()
    if not log:
        raise TrainError(f"{out} holds no run with a finished step: its metrics.jsonl is missing or empty")
    stages = list(dict.fromkeys(line["stage"] for line in log))
    parts = [f"<h1>{escape(out.resolve().name)}</h1>", f'<p class="soft">{escape(subtitle(out))}</p>', tiles(log)]
    for stage in stages:
        lines = [line for line in log if line["stage"] == stage and "event" not in line]
        parts += [f"<h2>{escape(heading(out, stage, lines))}</h2>", *charts(lines, stage), *samples(lines)]
    events = [(line["stage"], str(line["step"]), line["event"], line["message"]) for line in log if "event" in line]
    if events:
        parts += ["<h2>Events</h2>", html_table(["stage", "step", "event", "first message of its kind"], events)]
    parts += ["<h2>Settings</h2>", *settings(out)]
    return write_page(out, f"{out.resolve().name} - warpup", "\n".join(parts))


def read_if_there(path: Path) -> dict[str, Any]:
    """A JSON file of the run, {} if it is not there."""
    return read_table(path) if path.is_file() else {}


def subtitle(out: Path) -> str:
    """What was trained."""
    model = read_if_there(out / "config.json").get("model", {})
    source = read_if_there(out / "train.json").get("model", "")
    named = [source, model.get("kind", ""), f"{model['parameters']:,} parameters" if "parameters" in model else ""]
    return " · ".join(filter(None, named))


def heading(out: Path, stage: str, lines: Sequence[Mapping[str, Any]]) -> str:
    """A stage and how far it is: `Warmup: 500 steps`."""
    done = max((line["step"] for line in lines), default=0)
    planned = read_if_there(out / stage / "stage.json").get("steps", done)
    kind = read_if_there(out / stage / "stage.json").get("kind", stage)
    steps = "step" if planned == 1 else "steps"
    return f"{kind}: {done} {steps}" if done == planned else f"{kind}: {done} of {planned} {steps}"


# Figures


def tiles(log: Sequence[Mapping[str, Any]]) -> str:
    """The run in a few large numbers: where it began and where it came."""

    def values(name: str) -> list[float]:
        return [line[name] for line in log if line.get(name) is not None]

    def change(name: str, scale: float, digits: int, span: int = 1) -> str:
        """`12 → 34`: means over the first and the last `span` values."""
        found = [scale * value for value in values(name)]
        first, last = fmean(found[:span]), fmean(found[-span:])
        return f"{last:.{digits}f}" if len(found) < 2 else f"{first:.{digits}f} → {last:.{digits}f}"

    shown = []
    if values("held_out_greedy"):
        shown.append(("held-out accuracy, %", change("held_out_greedy", 100, 1)))
    elif values("held_out_reward"):  # a reward that does not say what is right
        shown.append(("held-out reward", change("held_out_reward", 1, 2)))
    if rewards := values("reward"):
        shown.append(("reward", change("reward", 1, 2, max(1, len(rewards) // 10))))
    # The loss of a policy says nothing, and those of different stages cannot be compared.
    losses = [(line["stage"], line["loss"]) for line in log if line.get("loss") is not None and "reward" not in line]
    if of_first := [loss for stage, loss in losses if stage == losses[0][0]]:
        shown.append((f"loss of {losses[0][0]}", f"{of_first[0]:.2f} → {of_first[-1]:.2f}"))
    shown.append(("time in steps", duration(sum(values("seconds")))))
    shown.append(("tokens learned from", f"{sum(values('tokens')):,.0f}"))
    cells = "".join(f"<div><b>{escape(text)}</b><span>{escape(name)}</span></div>" for name, text in shown)
    return f'<div class="tiles">{cells}</div>'


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s` or `12 s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02} min"
    return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def charts(lines: Sequence[dict[str, Any]], stage: str) -> list[str]:
    """Curves of every number that a stage logged: those worth watching, and the others folded away."""
    from warpup.apps._charts import inline_svg

    values: dict[str, set[float]] = {}
    for line in lines:
        for name, value in line.items():
            if type(value) in (int, float) and name not in NO_CURVES:
                values.setdefault(name, set()).add(value)
    watched = [name for name in CURVES if name in values]
    others = sorted(name for name in values.keys() - CURVES.keys() if len(values[name]) > 1)
    constant = [f"{name} {value:.4g}" for name in sorted(values.keys() - {*watched, *others}) for value in values[name]]

    def drawn(names: Sequence[str]) -> str:
        titles = {name: CURVES[name][0] if name in CURVES else name.replace("_", " ") for name in names}
        figures = [(figure, titles[name]) for name in names if (figure := chart(lines, stage, name))]
        return f'<div class="plots">{"".join(inline_svg(figure, title) for figure, title in figures)}</div>'

    found = [drawn(watched)]
    if others or constant:
        said = f'<p class="soft">The same at every step: {escape(", ".join(constant))}</p>' if constant else ""
        found.append(f"<details><summary>More numbers</summary>{drawn(others)}{said}</details>")
    return found


def chart(lines: Sequence[dict[str, Any]], stage: str, name: str):
    """One number over the steps: as it was logged if that are few points, else under its running mean."""
    from warpup.apps._charts import ACCENT, Line, line_chart
    from warpup.apps._report import curve

    _, scale, y_range = CURVES.get(name, ("", 1, (None, None)))
    points = curve([list(lines)], stage, name, scale)
    if len(points) <= SMOOTHED:
        return line_chart("step", [Line("", ACCENT, points)], y_range)
    smooth = curve([list(lines)], stage, name, scale, smooth=len(points) // 20)
    return line_chart("step", [Line("", ACCENT, points, faint=True), Line("", ACCENT, smooth)], y_range)


# Texts


def samples(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Completions over the steps, one a card."""
    logged = [(line["step"], line["sample"]) for line in lines if line.get("sample")]
    if not logged:
        return []
    count = min(SAMPLES, len(logged))
    picked = [logged[round(i * (len(logged) - 1) / max(1, count - 1))] for i in range(count)]
    cards = []
    for step, sample in picked:
        reward = "no reward" if sample.get("reward") is None else f"reward {sample['reward']:.3g}"
        cards.append(
            f'<div class="trace"><span class="soft">step {step} · {reward}</span>'
            f'<pre class="soft">{escape(spoken(sample["prompt"]))}</pre><pre>{escape(sample["completion"])}</pre></div>'
        )
    return ["<h3>Completions while training</h3>", *cards]


def spoken(prompt: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt as text; of chat messages a paragraph each."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message.get('role')}: {message.get('content')}" for message in prompt)


def settings(out: Path) -> list[str]:
    """What was set differently from the defaults, and all of it folded away."""
    from warpup.apps._report import html_table

    from .config import TrainConfig

    given = flat(read_if_there(out / "train.json"))
    if given:
        defaults = flat(json.loads(json.dumps(asdict(TrainConfig()))))
        changed = [(name, text) for name, text in given.items() if text != defaults.get(name)]
        shown, note = html_table(["setting", "value"], changed), "All settings"
    else:  # a run from Python, or one that is not finished
        given = flat(read_if_there(out / "config.json"))
        for file in sorted(out.glob("*/stage.json")):
            given |= flat(read_if_there(file), f"{file.parent.name}.")
        shown, note = "", "Settings of the run and its stages"
    return [shown, f"<details><summary>{note}</summary>{html_table(['setting', 'value'], given.items())}</details>"]


def flat(table: Mapping[str, Any], place: str = "") -> dict[str, str]:
    """`part.name` -> value as text, of a table of tables."""
    found: dict[str, str] = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{place}{name}.")
        else:
            found[f"{place}{name}"] = value if isinstance(value, str) else json.dumps(value)
    return found
