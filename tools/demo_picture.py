"""The picture of the README, from a finished demo:

    python tools/demo_picture.py runs/demo docs/images/demo.png

Left what `warpup demo` prints of the arms, means over its seeds; right how the first seed's warm-up got there.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from warpup.apps._report import curve
from warpup.apps.demo.report import COLORS, summary
from warpup.apps.demo.settings import ARMS
from warpup.train.log import MetricsLog

LEGEND = {"warm": "warm-up: long chains of thought", "base": "base: the answer format alone"}


def picture(run: Path) -> Figure:
    """The figure of a demo's folder."""
    results = [json.loads(path.read_text()) for path in sorted(run.glob("seed-*/*/results.json"))]
    seeds = len({result["seed"] for result in results})
    figure = Figure((9.4, 3.3), layout="constrained")
    bars, warming = figure.subplots(1, 2)
    table = summary(results)
    for chain, arms in ARMS.items():
        for arm, alpha in zip(arms, (0.5, 1), strict=True):
            mean, spread = (100 * number for number in table[arm]["avg"])
            label = arm.replace(" + ", "\n+ ")
            bars.bar(label, mean, 0.7, yerr=spread if seeds > 1 else None, color=COLORS[chain], alpha=alpha)
            bars.annotate(f"{mean:.0f}", (label, mean + spread), (0, 3), textcoords="offset points", ha="center")
    for chain, label in LEGEND.items():
        points = curve(
            [MetricsLog(run / "seed-0" / chain / "metrics.jsonl").read()], "1-warmup", "held_out_greedy", 100
        )
        steps, values, _ = zip(*points, strict=True)
        warming.plot(steps, values, "o-", color=COLORS[chain], label=label, markersize=4)
    bars.set_title(f"Held-out puzzles answered right, % ({seeds} seed{'s' * (seeds > 1)})", loc="left", fontsize=11)
    bars.set_ylim(0, 80)
    warming.set_title("The same while warming up, % (greedy, one seed)", loc="left", fontsize=11)
    warming.set(xlabel="supervised steps", ylim=(0, 100))
    warming.legend(frameon=False, fontsize=9, loc="upper left")
    for axes in (bars, warming):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#d8dee4", linewidth=0.8)
        axes.set_axisbelow(True)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="folder of the demo")
    parser.add_argument("picture", type=Path, help="where the picture goes")
    given = parser.parse_args()
    picture(given.run).savefig(given.picture, dpi=100, facecolor="white")


if __name__ == "__main__":
    main()
