"""Runs the arms of a bench, keeps what each seed gave, and sums it up.

A bench is a file `bench/methods/<name>.py`, named in `BENCHES`. It defines

    SIZE, QUICK     two objects of one dataclass: how large everything is; with QUICK all arms together take seconds
    COLUMNS         {"ACC": Column(100, 1), ...}: the numbers of its table, with their factor and digits
    ARMS            {"EWC": Arm(ewc, by="ACC", against="plain"), ...}: in the order of the table
    panel           optional, (matplotlib axis, {arm: numbers of each seed}): one more panel under the picture's dots

What is too long for one file is in others, `<name>_<part>.py`. docs/results.md has a section with the bench's two
`marks`, between which `publish` writes.

An arm is a function of (seed, size) that returns {column: number}. What has no number in a column leaves it out. Lists
are curves for `panel`: they stay in the run's own file and are in no table. torch's generator has been set to the
seed before; the same seed must give the same numbers.

What each (arm, seed) gave is kept at once in runs/methods/<name>.json, and is not run again while the code of the bench
(`digest`) is the same. `publish` takes means and spreads from there into bench/results/methods/<name>.json and
docs/results.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import importlib.util
import json
import math
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any, NamedTuple

import torch

from bench.harness.report import cpu_model, git_hash
from warpup.apps._report import mean_sd

ROOT = Path(__file__).resolve().parents[2]
RUNS, RESULTS, PAGE = ROOT / "runs/methods", ROOT / "bench/results/methods", ROOT / "docs/results.md"
BENCHES = ("knights", "language", "continual", "shifted", "classifier", "control")
SHARED = ("nets.py", "stages.py")  # what several benches use: where one changes, all are run again
LEVEL = 0.95  # of the interval of a difference

Numbers = Mapping[str, Any]
Results = dict[str, list[dict]]  # arm -> what each seed gave: {"numbers": ..., "seconds": ...}


class Column(NamedTuple):
    factor: float = 1.0  # 100 for what is shown in percent
    digits: int = 1


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to do it. by: the column that it is judged by. against: the arm that it is compared with, seed by seed.
    needs: packages it imports that warpup's `test` extra does not install."""

    run: Callable[[int, Any], Numbers]
    by: str
    against: str = ""
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> list[str]:
        return [name for name in self.needs if importlib.util.find_spec(name) is None]


def names() -> list[str]:
    return [name for name in BENCHES if (Path(__file__).parent / f"{name}.py").exists()]


def load(name: str) -> ModuleType:
    return importlib.import_module(f"bench.methods.{name}")


# ---- run ------------------------------------------------------------------------------------------------------------


def file_of(name: str, quick: bool) -> Path:
    return RUNS / f"{name}{'-quick' if quick else ''}.json"


def run(name: str, seeds: int, *, quick: bool = False, pattern: str = "") -> list[str]:
    """Runs what is not yet kept; the arms that could not run for want of a package are returned, with the cure."""
    bench, path = load(name), file_of(name, quick)
    kept = json.loads(path.read_text()) if path.exists() else {}
    code, left_out = digest(bench), []
    for arm_name, arm in bench.ARMS.items():
        if not re.search(pattern, arm_name):
            continue
        if arm.missing:
            left_out.append(f"{arm_name}: pip install {' '.join(arm.missing)}")
            continue
        for seed in range(seeds):
            if kept.get(arm_name, {}).get(str(seed), {}).get("code") == code:
                continue
            found = measure(bench, arm_name, seed, quick)
            kept.setdefault(arm_name, {})[str(seed)] = found | {"code": code}
            write(path, kept)
            shown = ", ".join(f"{k} {v:.4g}" for k, v in found["numbers"].items() if not isinstance(v, list))
            print(f"{name}, {arm_name}, seed {seed}: {shown} ({found['seconds']:.1f} s)", file=sys.stderr, flush=True)
    return left_out


def measure(bench: ModuleType, arm: str, seed: int, quick: bool) -> dict:
    """What one arm gives with one seed, and what it costs. Raises ValueError on a number that is none."""
    torch.manual_seed(seed)
    begin = time.process_time()  # this process's own: what else runs on the machine does not count
    numbers = dict(bench.ARMS[arm].run(seed, bench.QUICK if quick else bench.SIZE))
    seconds = time.process_time() - begin
    for column, value in numbers.items():
        if not isinstance(value, list) and (column not in bench.COLUMNS or not math.isfinite(value)):
            raise ValueError(f"{arm}, seed {seed}: {column} is {value}; expected a finite number of {[*bench.COLUMNS]}")
    if bench.ARMS[arm].by not in numbers:
        raise ValueError(f"{arm}: no {bench.ARMS[arm].by}, by which it is judged")
    return {"numbers": numbers, "seconds": round(seconds, 3), "git": git_hash()}


def digest(bench: ModuleType) -> str:
    """Of the code that the numbers come from: the bench's file, `<name>_*.py` beside it, and what benches share."""
    file = Path(str(bench.__file__))
    files = [file, *sorted(file.parent.glob(f"{file.stem}_*.py")), *map(Path(__file__).with_name, SHARED)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


def write(path: Path, record: Any) -> None:
    """At once or not at all, so that a run that is stopped leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(record, indent=1) + "\n")
    os.replace(part, path)


def results(name: str, quick: bool = False) -> Results:
    """What is kept of a bench's arms, in their order; what its code gave before it changed is no part of it."""
    bench, path = load(name), file_of(name, quick)
    kept, code = json.loads(path.read_text()) if path.exists() else {}, digest(bench)
    found = {arm: [seeds[i] for i in sorted(seeds, key=int) if seeds[i]["code"] == code] for arm, seeds in kept.items()}
    return {arm: found[arm] for arm in bench.ARMS if found.get(arm)}


# ---- sum up ---------------------------------------------------------------------------------------------------------


def summary(name: str, found: Results, quick: bool = False) -> dict:
    """Means and standard deviations over the seeds, and of each arm the difference to the one it is compared with."""
    bench, arms = load(name), {}
    for arm_name, seeds in found.items():
        arm = bench.ARMS[arm_name]
        columns = [column for column in bench.COLUMNS if column in seeds[0]["numbers"]]
        row: dict[str, Any] = {
            "numbers": {c: [*mean_sd(s["numbers"][c] for s in seeds)] for c in columns},
            "seconds": fmean(s["seconds"] for s in seeds),
            "seeds": len(seeds),
            "by": arm.by,
        }
        if arm.against in found:
            pairs = zip(seeds, found[arm.against], strict=False)  # the same seed: the same data and first weights
            row |= {"against": arm.against, "difference": interval([a["numbers"][arm.by] - b["numbers"][arm.by]
                                                                   for a, b in pairs])}  # fmt: skip
        arms[arm_name] = row
    return {
        "bench": name,
        "size": dataclasses.asdict(bench.QUICK if quick else bench.SIZE),
        "git": sorted({s["git"] for seeds in found.values() for s in seeds}),
        "cpu": cpu_model(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "columns": {column: list(bench.COLUMNS[column]) for column in bench.COLUMNS},
        "arms": arms,
    }


def interval(differences: list[float]) -> list[float]:
    """[mean, low, high]: the interval of Student's t that holds the true mean with probability LEVEL, if differences
    are normal. Of one seed there is none: it is open on both sides, and shown so."""
    from scipy.stats import t

    mean, sd = mean_sd(differences)
    if len(differences) < 2:
        return [mean, -math.inf, math.inf]
    half = float(t.ppf(0.5 + LEVEL / 2, len(differences) - 1)) * sd / math.sqrt(len(differences))
    return [mean, mean - half, mean + half]


def table(record: dict) -> list[list[str]]:
    """The heading and a row an arm, as texts."""
    columns = {c: Column(*form) for c, form in record["columns"].items()}
    rows = [["arm", *columns, "difference", "CPU s"]]
    for arm, row in record["arms"].items():
        cells = []
        for column, (factor, digits) in columns.items():
            mean, sd = (factor * x for x in row["numbers"].get(column, (math.nan, math.nan)))
            cells.append("" if math.isnan(mean) else f"{mean:.{digits}f} ± {sd:.{digits}f}")
        rows.append([arm, *cells, difference(row, columns[row["by"]]), f"{row['seconds']:.1f}"])
    return rows


def difference(row: dict, column: Column) -> str:
    """`+3.1 (1.0 to 5.2) over plain`, or that there is none to be seen: the interval has 0 in it."""
    if "difference" not in row:
        return ""
    mean, low, high = (column.factor * x for x in row["difference"])
    digits = column.digits
    null = "**null** " if low <= 0 <= high else ""
    return f"{null}{mean:+.{digits}f} ({low:.{digits}f} to {high:.{digits}f}) over {row['against']}"


def markdown(rows: list[list[str]]) -> str:
    rows = [rows[0], ["---", *["---:"] * (len(rows[0]) - 3), "---", "---:"], *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


# ---- publish --------------------------------------------------------------------------------------------------------


def marks(name: str) -> tuple[str, str]:
    return f"<!-- `python -m bench.methods {name} --publish` writes what follows -->", f"<!-- end of {name} -->"


def publish(name: str) -> None:
    """Writes the committed record, the picture and the bench's part of the page; of whole results alone."""
    from bench.methods.picture import draw

    found, bench = results(name), load(name)
    if lacking := [arm for arm in bench.ARMS if arm not in found]:
        raise ValueError(f"{name}: no results of {', '.join(lacking)}; run them first")
    if len(counts := {len(seeds) for seeds in found.values()}) > 1 or min(counts) < 3:
        raise ValueError(f"{name}: arms have {sorted(counts)} seeds; run all with the same, 3 or more")
    write(RESULTS / f"{name}.json", rounded(summary(name, found)))
    draw(bench, found, ROOT / f"docs/images/methods-{name}.png")
    PAGE.write_text(page(PAGE.read_text()))


def rounded(record: Any) -> Any:
    """Four digits of each number, so that a diff can be read."""
    return json.loads(json.dumps(record), parse_float=lambda x: float(f"{float(x):.4g}"))


def page(text: str) -> str:
    """docs/results.md with the parts of all benches that have a record."""
    for name in BENCHES:
        begin, end = marks(name)
        path = RESULTS / f"{name}.json"
        if begin in text and path.exists():
            before, rest = text.split(begin)
            text = f"{before}{begin}\n\n{part(json.loads(path.read_text()))}\n\n{end}{rest.split(end)[1]}"
    return text


def part(record: dict) -> str:
    """A bench's table, its picture, and what it was run on."""
    name, arms = record["bench"], record["arms"].values()
    cost = sum(row["seconds"] * row["seeds"] for row in arms)
    size = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in record["size"].items())
    return "\n\n".join(
        [
            markdown(table(record)),
            f"![{name}: each arm's number with its spread](images/methods-{name}.png)",
            f"{max(row['seeds'] for row in arms)} seeds, {cost:.0f} s of one core in all; {record['cpu']}, torch "
            f"{record['torch']}, commit {', '.join(record['git'])}. Settings: {size}.",
        ]
    )
