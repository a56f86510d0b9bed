"""What was measured, on what: the table that a person reads and the record that a program reads."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import torch
from rich.console import Console, Group
from rich.markup import escape
from rich.table import Table

import warpup._native as native
from bench.harness import roofline
from bench.harness.measure import Result, Row

HERE = Path(__file__).parent


def _output(*command: str) -> str | None:
    try:
        return subprocess.check_output(command, text=True, cwd=HERE, timeout=20, stderr=subprocess.DEVNULL).strip()
    except (OSError, subprocess.SubprocessError):
        return None


def cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def git_hash() -> str:
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    if commit is None:  # a copy of the tree without its history
        return os.environ.get("GIT_HASH", "unknown")
    return commit + ("-dirty" if _output("git", "status", "--porcelain", "--untracked-files=no") else "")


@cache
def environment(device: str) -> dict:
    """Everything that a number in the results depends on, as far as software can tell."""
    facts = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "git": git_hash(),
        "warpup": native.arrays.build_info(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": device,
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
    }
    if device == "cuda":
        gpu = torch.cuda.get_device_properties(0)
        driver = _output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        facts |= {"gpu": gpu.name, "gpu_memory": gpu.total_memory, "cuda": torch.version.cuda, "driver": driver}
    facts["bandwidths"] = roofline.bandwidths(device)
    return facts


def headline(device: str) -> str:
    e = environment(device)
    where = f"{e['gpu']}, driver {e['driver']}" if device == "cuda" else f"{e['cpu']} ({e['warpup']['cpu']})"
    rates = ", ".join(f"{name} {rate / 1e9:,.1f} GB/s" for name, rate in e["bandwidths"].items())
    lines = [
        f"{where}; {e['threads']} threads on {e['cores']} cores, load {e['load']:.1f}",
        f"torch {e['torch']}, warpup {e['warpup']['version']} at {e['git']}; at the start: {rates}",
        "us: median (IQR: its spread); % copy: of the copy timed in the same rounds; MB: peak beyond the inputs;",
        "x: a candidate's time over the first one's. On a CPU freed memory is kept unless --new-memory is given.",
    ]
    if device == "cpu" and e["load"] > e["cores"] / 2:
        lines.append(
            "[yellow]Other work runs on this machine: threads that wait for each other stall, which slows what is "
            "parallel most. Measure again when it is quiet before quoting a ratio.[/]"
        )
    return "\n".join(lines)


def _ratio(result: Result, row: Row) -> str:
    ratio = result.ratio(row)
    if ratio is None:
        return ""
    text = f"{ratio:.3g}x" if ratio < 1000 else f"{ratio:.0f}x"
    if row is result.rows[0]:
        return "1"
    if ratio < 1 and not row.ours and result.rows[0].ours:
        text = f"[red]{text}: faster than ours[/]"
    goal = result.case.goals.get(row.candidate)
    if goal is None:
        return text
    return f"{text} [{'green' if ratio >= goal else 'red'}](goal {goal:g}x {'met' if ratio >= goal else 'missed'})[/]"


def _cells(result: Result, row: Row) -> list[str]:
    if row.failure:
        return ["", "", "", "", "", f"[red]{row.failure}[/]"]
    if not row.samples:
        return ["", "", "", "", "", "not timed"]
    seconds = row.samples.median
    rate = result.bytes / seconds
    digits = 2 if seconds < 1e-4 else 0
    return [
        f"{seconds * 1e6:,.{digits}f}",
        f"{row.samples.iqr * 1e6:,.{digits}f}",
        f"{rate / 1e9:,.1f}" if result.copy_bandwidth else "",
        f"{100 * rate / result.copy_bandwidth:.0f}" if result.copy_bandwidth else "",
        f"{row.peak_bytes / 1e6:,.1f}" if row.peak_bytes is not None else "",
        _ratio(result, row),
    ]


COLUMNS = (("", 31, "left"), ("us", 11, "right"), ("IQR", 9, "right"), ("GB/s", 7, "right"), ("% copy", 7, "right"),
           ("MB", 8, "right"), ("x", None, "left"))  # fmt: skip


def _block(result: Result, header: bool) -> Table:
    block = Table(box=None, pad_edge=False, show_header=header, header_style="bold")
    for name, width, justify in COLUMNS:
        block.add_column(name, width=width, justify=justify, overflow="fold")
    for row in result.rows:
        block.add_row(f"  {row.candidate}", *_cells(result, row))
    return block


def _title(result: Result) -> str:
    title = f"[bold]{escape(result.case.name)}[/]"
    if result.copy_bandwidth:
        title += f"  {result.bytes / 1e6:,.1f} MB to move"
    if result.gemm_rate and result.rows[0].samples:
        rate = result.flops / result.rows[0].samples.median
        title += f", {rate / 1e12:.3g} TFLOP/s = {100 * rate / result.gemm_rate:.0f}% of a large product"
    return title


def table(results: list[Result], device: str, width: int | None = None, color: bool = False) -> str:
    console = Console(width=max(width or 0, 110), force_terminal=color, no_color=not color, highlight=False)
    with console.capture() as captured:
        console.print(headline(device))
        for index, result in enumerate(results):
            console.print(Group("", _title(result), _block(result, header=index % 8 == 0)))
    return "\n".join(line.rstrip() for line in captured.get().splitlines())


def record(results: list[Result], device: str) -> dict:
    where = environment(device)
    return {"environment": where, "results": [{**r.as_dict(), "git": where["git"]} for r in results]}


def write(record: dict, path: Path) -> None:
    """As JSON with a line for each candidate and four digits of each measured number, so that a diff can be read."""
    rounded = json.loads(json.dumps(record["results"]), parse_float=lambda x: float(f"{float(x):.4g}"))
    cases = []
    for case in rounded:
        rows = ",\n   ".join(json.dumps(row) for row in case.pop("rows"))
        cases.append(f'{json.dumps(case)[:-1]}, "rows": [\n   {rows}]}}')
    facts = {k: v for k, v in record.items() if k != "results"}
    path.write_text(json.dumps(facts)[:-1] + ', "results": [\n  ' + ",\n  ".join(cases) + "\n]}\n")


def summary(record: dict) -> str:
    """A line a case, from the record: for the end of a log."""
    lines = [f"{'case':52} {'us':>10} {'GB/s':>8} {'% copy':>6}  x"]
    for result in record["results"]:
        first, *others = result["rows"]
        if wrong := [f"{r['candidate']}: {r['failure']}" for r in result["rows"] if r["failure"]]:
            lines.append(f"{result['case']:52} " + "; ".join(wrong)[:160])
        if "median_us" not in first:
            continue
        ratios = ", ".join(f"{r['candidate']} {r['ratio']:.2f}" for r in others if r.get("ratio"))
        share = f"{100 * first['share_of_copy']:.0f}" if first["share_of_copy"] else ""
        rate = f"{first['bytes_per_second'] / 1e9:,.1f}" if share else ""
        lines.append(f"{result['case']:52} {first['median_us']:10,.1f} {rate:>8} {share:>6}  {ratios}")
    rates = ", ".join(f"{name} {rate / 1e9:,.1f} GB/s" for name, rate in record["environment"]["bandwidths"].items())
    return "\n".join([*lines, f"measured at the start: {rates}; us, GB/s: the first candidate"])
