"""warpup's trainer beside TRL's and `generate`, on pretrained models: `python -m bench.train.trainer --models FOLDER`.

    grpo       a whole step of RLVR beside TRL's GRPOTrainer; "few-shot grpo" with prompts of 237 tokens
    sft        a step of Warmup beside TRL's SFTTrainer
    rollout    warpup.train.rollout beside model.generate, at a vocabulary of 49,152 and of 262,144
    large      a step of RLVR with a vocabulary of 262,144 alone: does it fit?
    import     TRL's GRPOTrainer and SFTTrainer with warpup's import beside TRL's own; "wide" on a random model of
               SmolLM2's shape with a vocabulary of 151,936

FOLDER holds `smollm2` and `gemma3-270m`, made by `warpup fetch`. Same model, data, batch, dtype and lengths
for all candidates of a comparison. Each runs in a process of its own, in turn, round after round; times are medians
over the steps of all rounds but each process's first. Memory is the most that the process held beyond what its
libraries take; "beyond" is that without weights, and without the optimizer's two moments where there is one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.harness.report import environment, write
from bench.harness.timing import Samples
from bench.train.candidates import Work
from bench.train.meter import KINDS

ROOT = Path(__file__).parent.parent.parent
QUICK = {"prompts": 2, "samples": 2, "length": 8, "rows": 2, "steps": 1}


@dataclass(frozen=True)
class Comparison:
    name: str
    model: str
    work: dict[str, Any]  # sizes other than those of `Work`
    candidates: tuple[str, ...]  # the first one is ours


COMPARISONS = (
    Comparison("grpo", "smollm2", {}, ("grpo_warpup", "grpo_trl")),
    Comparison("few-shot grpo", "smollm2", {"prompts": 4, "length": 64, "shots": 6}, ("grpo_warpup", "grpo_trl")),
    Comparison("sft", "smollm2", {"prompts": 4, "length": 256}, ("sft_warpup", "sft_trl")),
    Comparison("rollout smollm2", "smollm2", {"length": 64, "steps": 3}, ("rollout_warpup", "rollout_generate")),
    Comparison(
        "rollout gemma3-270m",
        "gemma3-270m",
        {"prompts": 4, "length": 32, "steps": 3},
        ("rollout_warpup", "rollout_generate"),
    ),
    Comparison("large", "gemma3-270m", {"samples": 8, "steps": 1}, ("grpo_warpup",)),
    *(
        Comparison(f"import {method}{name}", "smollm2", sizes | wide, (f"{method}_trl_import", f"{method}_trl"))
        for method, sizes in (("grpo", {"prompts": 2, "length": 32}), ("sft", {"prompts": 2, "length": 128}))
        for name, wide in (("", {}), (" wide", {"vocabulary": 151_936}))
    ),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=os.environ.get("WARPUP_MODELS"), help="default: $WARPUP_MODELS")
    parser.add_argument(
        "-k", dest="pattern", default="", help="only comparisons whose name this regular expression finds"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does every comparison still run?")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each candidate")
    parser.add_argument("--json", type=Path, help="write the results there")
    for name in ("prompts", "samples", "length", "rows", "steps"):
        parser.add_argument(f"--{name}", type=int, help="of every comparison, in place of its own")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    given = parser.parse_args()
    if not given.models:
        parser.error("--models: a folder with smollm2 and gemma3-270m is needed; `warpup fetch` makes them")
    cases = [case for case in COMPARISONS if re.search(given.pattern, case.name)]
    if not cases:
        parser.error(f"-k: {given.pattern!r} is in none of {', '.join(case.name for case in COMPARISONS)}")
    for folder in dict.fromkeys(given.models / case.model for case in cases):
        if not (folder / "config.json").is_file():
            parser.error(f"--models: {folder} is no model; `warpup fetch` makes it")
    asked = {name: getattr(given, name) for name in QUICK if getattr(given, name) is not None}
    results = []
    for case in cases:
        sizes = {**case.work, **(QUICK if given.quick else {}), **asked}
        work = Work(str(given.models / case.model), dtype=given.dtype, threads=given.threads, **sizes)
        results.append(measure(case, work, 1 if given.quick else given.rounds))
        show(results[-1])
        if given.json:  # after each: a run that is cut short still leaves its numbers
            write({"environment": environment("cpu"), "results": results}, given.json)
    return int(any(row["failure"] for result in results for row in result["rows"]))


def measure(case: Comparison, work: Work, rounds: int) -> dict[str, Any]:
    """Run all candidates in turn, `rounds` times; the comparison as it is kept in bench/results."""
    found: dict[str, list[dict]] = {name: [] for name in case.candidates}
    failures = dict.fromkeys(case.candidates)
    for _ in range(rounds):
        for name in case.candidates:
            if failures[name]:
                continue
            print(f"... {case.name}: {name}", file=sys.stderr, flush=True)
            result = run(name, work)
            if isinstance(result, str):
                failures[name] = result
            else:
                found[name].append(result)
    rows = [row(name, found[name], failures[name], "rollout" not in name) for name in case.candidates]
    for entry in rows:  # ratios: a candidate's over the first one's, so above 1 ours is the smaller
        for ratio, of in (("ratio", "median_us"), ("peak_ratio", "peak_bytes"), ("beyond_ratio", "beyond_bytes")):
            entry[ratio] = entry[of] / rows[0][of] if entry.get(of) and rows[0].get(of) else None
    sizes = f"{work.prompts}x{work.samples}x{work.length}, {work.rows} rows at once, {work.shots} shots, {work.dtype}"
    return {
        "case": f"{case.name}: {Path(work.model).name} {sizes}",
        **asdict(replace(work, model=case.model)),
        "rows": rows,
    }


def run(name: str, work: Work) -> dict[str, Any] | str:
    """What a candidate measured in a process of its own, or the last line that it died with."""
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "result.json"
        command = [sys.executable, "-m", "bench.train.candidates", name, json.dumps(asdict(work)), str(target)]
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"OMP_NUM_THREADS": str(work.threads), "PYTHONPATH": os.pathsep.join(paths)}
        done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if done.returncode:
            return (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
        return json.loads(target.read_text())


def row(name: str, runs: list[dict], failure: str | None, trains: bool) -> dict[str, Any]:
    """A candidate's medians over all counted steps."""
    entry: dict[str, Any] = {"candidate": name, "failure": failure}
    steps = [step for found in runs for step in found["steps"]]
    if not steps:
        return entry
    seconds = Samples([step["seconds"] for step in steps])
    peak, weights = median(found["peak"] for found in runs), runs[0]["weights"]
    shares = {kind: median(step[kind] / step["seconds"] for step in steps) for kind in KINDS}
    return entry | {
        "peak_bytes": peak,
        "beyond_bytes": peak - weights * (3 if trains else 1),
        "median_us": seconds.median * 1e6,
        "iqr_us": seconds.iqr * 1e6,
        "rounds": len(steps),
        "bytes_per_second": None,
        "share_of_copy": None,
        "sampling_us": median(step["sampling"] for step in steps) * 1e6,
        "update_us": median(step["seconds"] - step["sampling"] for step in steps) * 1e6,
        "tokens_per_second": median(step["tokens"] / step["seconds"] for step in steps),
        "shares": {**shares, "rest": 1 - sum(shares.values())},
    }


def show(result: dict[str, Any]) -> None:
    """Print a comparison."""
    table = Table(
        title=f"{result['case']}; {result['threads']} threads, load {os.getloadavg()[0]:.1f}", title_justify="left"
    )
    table.add_column("")
    for column in ("s a step", "sampling", "update", "tokens/s", "x time", "MiB", "beyond", "x MiB", "x beyond",
                   *KINDS, "rest"):  # fmt: skip
        table.add_column(column, justify="right")
    for entry in result["rows"]:
        if entry["failure"]:
            table.add_row(entry["candidate"], entry["failure"])
            continue
        table.add_row(
            entry["candidate"],
            f"{entry['median_us'] / 1e6:.2f} ± {entry['iqr_us'] / 1e6:.2f}",
            f"{entry['sampling_us'] / 1e6:.2f}",
            f"{entry['update_us'] / 1e6:.2f}",
            f"{entry['tokens_per_second']:.0f}",
            times(entry["ratio"]),
            f"{entry['peak_bytes'] / 2**20:.0f}",
            f"{entry['beyond_bytes'] / 2**20:.0f}",
            times(entry["peak_ratio"]),
            times(entry["beyond_ratio"]),
            *(f"{share:.0%}" for share in entry["shares"].values()),
        )
    Console(width=160).print(table)


def times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


if __name__ == "__main__":
    sys.exit(main())
