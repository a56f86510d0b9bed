"""The picture of the README, from a finished demo: `python tools/demo_picture.py runs/demo docs/images/demo.png`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean

from matplotlib.figure import Figure

COLORS = {"base": "#c27c0e", "warm": "#2f81f7"}
ARMS = {"base": ("base", "base + RLVR"), "warm": ("warm-up", "warm-up + RLVR")}


def curve(log: list[dict], stage: str, name: str, smooth: int = 1) -> tuple[list[int], list[float]]:
    """Steps, and the running mean of a logged number."""
    found = [(line["step"], line[name]) for line in log if line["stage"] == stage and line.get(name) is not None]
    steps, values = zip(*found, strict=True)
    return list(steps), [fmean(values[max(0, i - smooth + 1) : i + 1]) for i in range(len(values))]


def main() -> None:
    run, out = Path(sys.argv[1]) / "seed-0", Path(sys.argv[2])
    figure = Figure((10, 3.1), layout="constrained")
    bars, warming, rewards = figure.subplots(1, 3)
    for chain, arms in ARMS.items():
        results = json.loads((run / chain / "results.json").read_text())
        log = [json.loads(line) for line in (run / chain / "metrics.jsonl").read_text().splitlines()]
        for arm in arms:
            value = 100 * results[arm]["avg"]
            place = [a for pair in ARMS.values() for a in pair].index(arm)
            bars.bar(place, value, 0.7, color=COLORS[chain], alpha=1 if "RLVR" in arm else 0.5)
            bars.annotate(f"{value:.0f}", (place, value), (0, 2), textcoords="offset points", ha="center")
        steps, values = curve(log, "1-warmup", "held_out_greedy")
        warming.plot(steps, [100 * v for v in values], "o-", color=COLORS[chain], label=arms[0], markersize=3)
        rewards.plot(*curve(log, "2-rlvr", "reward", 10), color=COLORS[chain], label=arms[1])
    bars.set_xticks(range(4), [arm.replace(" + ", "\n+ ") for pair in ARMS.values() for arm in pair])
    bars.set_title("Held-out puzzles answered right, %", loc="left", fontsize=10)
    warming.set_title("The same while warming up (greedy), %", loc="left", fontsize=10)
    warming.set(xlabel="step", ylim=(0, 100))
    rewards.set_title("Reward while reinforcing", loc="left", fontsize=10)
    rewards.set_xlabel("step")
    for axes in (bars, warming, rewards):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#d8dee4", linewidth=0.8)
        axes.set_axisbelow(True)
    warming.legend(frameon=False, fontsize=8)
    rewards.legend(frameon=False, fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110, facecolor="white")


if __name__ == "__main__":
    main()
