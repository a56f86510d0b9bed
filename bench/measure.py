"""A case: the same work done by several candidates, each checked against float64 before any of them is timed.

A family's `bench_<family>.py` gives its cases as `cases(device, size)`; `conftest.py` runs them under pytest and `run.py`
without it. Both call `measure` and print `report.table`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

import roofline
from timing import Candidate, HostClock, Samples, interleave

# Of the result's norm: for peers, and for us where no eager peer sets a tighter limit.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}
CHUNK = 1 << 22  # elements compared at once, so that a check needs little memory beside the tensors themselves


@dataclass
class Work:
    candidates: dict[str, Candidate]  # the others are compared with the first
    bytes: int  # the fewest that it must move: each input read once, each output written once
    reference: Callable[[], Sequence[Tensor]] | None = None  # the results in float64
    flops: int = 0
    dtype: torch.dtype = torch.float32  # of the matrix products that `flops` counts


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], Work]
    goals: dict[str, float] = field(default_factory=dict)  # candidate: how many times slower than the first it should be
    host_clock: bool = False  # time the host, not the device (call overhead)


@dataclass
class Row:
    candidate: str
    samples: Samples | None = None
    peak_bytes: int | None = None
    failure: str | None = None


@dataclass
class Result:
    case: Case
    rows: list[Row]
    bytes: int
    flops: int = 0
    copy_bandwidth: float = 0.0  # bytes/s, median of the same rounds
    gemm_rate: float | None = None  # FLOP/s, same run

    @property
    def failures(self) -> list[str]:
        """Why the case fails: a candidate is wrong, or ours does not run. A peer that does not run is only reported."""
        return [f"{r.candidate}: {r.failure}" for r in self.rows if r.failure and (is_ours(r) or "wrong" in r.failure)]

    def ratio(self, row: Row) -> float | None:
        first = self.rows[0]
        if self.failures or not row.samples or not first.samples:
            return None
        return row.samples.median / first.samples.median

    def as_dict(self) -> dict:
        rows = []
        for row in self.rows:
            entry = {"candidate": row.candidate, "failure": row.failure, "peak_bytes": row.peak_bytes}
            if row.samples:
                seconds = row.samples.median
                entry |= {
                    "median_us": seconds * 1e6,
                    "iqr_us": row.samples.iqr * 1e6,
                    "samples_us": [s * 1e6 for s in row.samples.seconds],
                    "bytes_per_second": self.bytes / seconds,
                    "share_of_copy": self.bytes / seconds / self.copy_bandwidth if self.copy_bandwidth else None,
                    "share_of_gemm": self.flops / seconds / self.gemm_rate if self.gemm_rate else None,
                    "ratio": self.ratio(row),
                    "goal": self.case.goals.get(row.candidate),
                }
            rows.append(entry)
        facts = {"bytes": self.bytes, "flops": self.flops, "copy_bandwidth": self.copy_bandwidth}
        return {"case": self.case.name, **facts, "gemm_rate": self.gemm_rate, "rows": rows}


def is_ours(row: Row) -> bool:
    return row.candidate.startswith("warpup")


# ---- Correctness ----------------------------------------------------------------------------------------------------


def compare(output: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """The largest error, the error's share of the reference's norm, and how far rounding `reference` to the output's
    precision once (adding .3 and taking it off again) moves it: the slack that the tests grant as well."""
    if output.shape != reference.shape:
        return float("inf"), float("inf"), 0.0
    worst = squares = norm = slack = 0.0
    for out, ref in zip(output.flatten().split(CHUNK), reference.flatten().split(CHUNK), strict=True):
        error = (out.double() - ref).abs()
        rounded = ref.to(out.dtype)
        worst = max(worst, error.max().nan_to_num(torch.inf).item())
        slack = max(slack, (rounded + 0.3 - 0.3 - rounded).abs().max().item())
        squares += error.square().sum().item()
        norm += ref.square().sum().item()
    return worst, (squares / norm) ** 0.5 if norm else squares**0.5, 2 * slack


def errors(candidate: Candidate, reference: Sequence[Tensor]) -> list[tuple[float, float, float, torch.dtype]]:
    results = candidate.result(candidate.run(*candidate.arguments()))
    return [(*compare(out.detach(), ref), out.dtype) for out, ref in zip(results, reference, strict=True)]


def check(row: Row, found: list, naive: list | None) -> None:
    """Ours: the largest error is at most twice the eager peer's, plus the slack. Others: the share of the norm is small."""
    for index, (worst, share, slack, dtype) in enumerate(found):
        strict = naive is not None and is_ours(row)
        error, limit = (worst, 2 * naive[index][0] + slack) if strict else (share, TOLERANCE[dtype])
        if not error <= limit:
            kind = "largest" if strict else "relative"
            row.failure = f"wrong: {kind} error {error:.2g} in result {index}, at most {limit:.2g} allowed"


# ---- Peak memory ----------------------------------------------------------------------------------------------------


def peak_memory(candidate: Candidate, device: str) -> int | None:
    """The most memory in use at once beyond what was there before the call, its results included.

    CUDA: the caching allocator's own peak. CPU: the kernel's high-water mark of resident memory (VmHWM), reset before
    the call by writing 5 to /proc/self/clear_refs. It sees what torch's allocator, a kernel's own scratch and NumPy
    take alike, in pages really touched; it is blind below the size of a page or so and where free memory of the heap is
    used again (large tensors never are: they are mapped and unmapped).
    """
    arguments = candidate.arguments()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        output = candidate.run(*arguments)
        peak = torch.cuda.max_memory_allocated() - before
        del output
        return peak
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS")
        output = candidate.run(*arguments)
        peak = _status("VmHWM") - before
        del output
    except (OSError, AttributeError):  # not Linux with glibc
        return None
    return max(0, peak)


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


# ---- The measurement ------------------------------------------------------------------------------------------------


def measure(case: Case, device: str, **rounds) -> Result:
    """Checks every candidate, then times those that are right in turn, with the copy among them."""
    work = case.build()
    rows = {name: Row(name) for name in work.candidates}
    found = {}
    reference = work.reference() if work.reference else None
    for name, candidate in work.candidates.items():
        try:
            if reference is not None and candidate.result:
                found[name] = errors(candidate, reference)
            else:
                candidate.run(*candidate.arguments())
        except Exception as error:
            rows[name].failure = f"does not run: {type(error).__name__}: {str(error).strip().splitlines()[0][:120]}"
    for name in found:
        check(rows[name], found[name], found.get("eager"))
    del reference
    result = Result(case, list(rows.values()), work.bytes, work.flops)
    if result.failures:
        return result
    right = {name: c for name, c in work.candidates.items() if not rows[name].failure}
    if not case.host_clock:
        for name, candidate in right.items():
            rows[name].peak_bytes = peak_memory(candidate, device)
    copy, moved = roofline.copy(device)
    clock = HostClock(device) if case.host_clock else roofline.clock(device)
    yardstick = {} if case.host_clock else {roofline.COPY: copy}
    for name, samples in interleave(right | yardstick, clock, **rounds).items():
        if name == roofline.COPY:
            result.copy_bandwidth = moved / samples.median
        else:
            rows[name].samples = samples
    if work.flops:
        result.gemm_rate = roofline.gemm_rate(device, work.dtype)
    return result


# ---- Candidates from differentiable functions -----------------------------------------------------------------------

DIRECTIONS = ("forward", "backward", "forward+backward")


def differentiable(
    function: Callable,
    inputs: Sequence[Tensor],
    direction: str,
    grads: Sequence[Tensor],
    *,
    wrt: Sequence[int] = (0,),
    consumes: bool = False,
) -> Candidate:
    """`function(*inputs)` in one direction, the results' gradients `grads` going in and those of `inputs[wrt]` coming
    out. "backward" runs a fresh forward before the clock starts. `consumes`: the backward overwrites `inputs[wrt]`, so
    each run gets its own copy, made before the clock starts."""

    def outputs(args):
        out = function(*args)
        return out if isinstance(out, tuple) else (out,)

    def leaves() -> tuple:
        args = [x.detach() if isinstance(x, Tensor) else x for x in inputs]
        for i in wrt:
            args[i] = (args[i].clone() if consumes else args[i]).requires_grad_()
        return tuple(args)

    def forward():
        with torch.no_grad():
            return outputs(inputs)

    def both(*args):
        out = outputs(args)
        return (*out, *torch.autograd.grad(out, [args[i] for i in wrt], grads))

    def forwarded() -> tuple:
        args = leaves()
        return outputs(args), [args[i] for i in wrt]

    if direction == "forward":
        return Candidate(forward)
    if direction == "backward":
        return Candidate(lambda out, sources: torch.autograd.grad(out, sources, grads), setup=forwarded)
    return Candidate(both, setup=leaves)


def expected(direction: str, outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Which of a reference's results a candidate made by `differentiable` returns."""
    return (*(outputs if "forward" in direction else ()), *(gradients if "backward" in direction else ()))
