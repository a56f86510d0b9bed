"""`warpup eval RUN --schedule ...`: decodings side by side on held-out examples, as a table and a picture."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from warpup.train.evaluation import evaluate
from warpup.train.files import write_text
from warpup.train.log import Report
from warpup.train.sampling.decoding import DecodingStrategy

from ._report import console_table, mean_sd, plus_minus, print_lines

GRID = "compare"
AMPLITUDES, PERIODS = (1, 3, 5), (0.5, 1, 2)  # logits; lengths of a plain trace
COLUMNS = {"avg": "sampled %", "greedy": "greedy %", "length": "tokens", "reflections": "reflection words"}


def names_of(asked: Sequence[str]) -> Iterator[str | None]:
    """The decodings that were asked for, plain first; None where the grid stands, which needs plain's trace length."""
    yield "plain"
    yield from (None if name == GRID else name for name in dict.fromkeys(asked) if name != "plain")


def grid(length: float) -> list[str]:
    """TIP, s1, and CyclicReflex over AMPLITUDES and PERIODS, made to a trace of so many tokens."""
    cyclic = [f"cyclic:amplitude={a},period={max(2, round(p * length))}" for p in PERIODS for a in AMPLITUDES]
    return [f"tip:alpha=3,beta={max(1, round(length / 2))}", "s1:times=1", *cyclic]


def compare(
    model, tokenizer, examples, reward, asked: Sequence[str], words: Sequence[str], seeds: Sequence[int],
    report: Report, **options,
) -> list[dict[str, Any]]:  # fmt: skip
    """One row a decoding: its name and, of each number in COLUMNS, (mean, standard deviation) over the seeds; greedy
    completions have no spread. `options` go to `evaluate`. Raises TrainError on an unknown decoding."""
    for name in asked:
        if name != GRID:
            DecodingStrategy.parse(name, tokenizer, words)  # before any work
    rows: list[dict[str, Any]] = []

    def measure(name: str) -> None:
        decoding = DecodingStrategy.parse(name, tokenizer, words)
        found = []
        for n, seed in enumerate(seeds):
            report(f"measure {name}", n, len(seeds), {})
            found.append(
                evaluate(
                    model, tokenizer, examples, reward, seed=seed, greedy=n == 0, decoding=decoding,
                    reflection_words=words, traces=0, **options,
                ).numbers()
            )  # fmt: skip
        report(f"measure {name}", len(seeds), len(seeds), {"accuracy": found[0]["avg"]})
        row: dict[str, Any] = {"decoding": name}
        for number in COLUMNS:
            row[number] = mean_sd(f[number] for f in found[: 1 if number == "greedy" else None])
        rows.append(row)

    for name in names_of(asked):
        for each in [name] if name else grid(rows[0]["length"][0]):
            measure(each)
    return rows


def show(rows: Sequence[dict[str, Any]], folder: Path) -> None:
    """Print the table; write schedules.json and schedules.png beside the run."""
    table = console_table(["decoding", *COLUMNS.values()], left=["decoding"])
    for row in rows:
        table.add_row(row["decoding"], *(cell(row[name], name) for name in COLUMNS))
    print_lines(table)
    best = max(rows[1:], key=lambda row: row["avg"][0], default=rows[0])
    gain, spread = (100 * (best["avg"][i] - (rows[0]["avg"][0] if i == 0 else 0)) for i in (0, 1))
    if len(rows) > 1:
        print(f"best beside plain: {best['decoding']}, {gain:+.1f} points (its spread over seeds {spread:.1f})")
    write_text(folder / "schedules.json", json.dumps(rows, indent=1) + "\n")
    picture(rows).savefig(folder / "schedules.png", dpi=150)
    print(f"{folder / 'schedules.png'}, {folder / 'schedules.json'}")


def cell(value: tuple[float, float], name: str) -> str:
    scale = 100 if name in ("avg", "greedy") else 1
    mean, spread = (scale * v for v in value)
    return plus_minus(mean, spread or None)


def picture(rows: Sequence[dict[str, Any]]):
    """Accuracy, trace length and reflection words of each decoding, with their spread over the seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 1.2 + 0.3 * len(rows)), layout="constrained")
    panels = figure.subplots(1, 3, sharey=True)
    places = range(len(rows))
    for axes, name in zip(panels, ("avg", "length", "reflections"), strict=True):
        scale = 100 if name == "avg" else 1
        means, spreads = zip(*((scale * m, scale * s) for m, s in (row[name] for row in rows)), strict=True)
        colors = ["#9a6b00" if row["decoding"] == "plain" else "#0b6bcb" for row in rows]
        axes.barh(places, means, xerr=spreads, color=colors, alpha=0.8)
        axes.axvline(means[0], color="#9a6b00", linewidth=0.8, linestyle="--")
        axes.set_xlabel(COLUMNS[name])
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].set_yticks(places, [row["decoding"] for row in rows])
    panels[0].invert_yaxis()
    return figure
