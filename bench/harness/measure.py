"""A comparison: the same work done by several candidates, each checked against float64 before any of them is timed.

`bench_<op>.py` gives its comparisons as `cases(device, size)`; `conftest.py` runs them under pytest and `__main__.py`
without it. Both call `measure` and print `report.table`. Inputs, references and bytes are those of `tests/support`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache

import torch
from torch import Tensor

from bench.harness import roofline
from bench.harness.memory import kept_memory, peak_memory
from bench.harness.timing import Candidate, HostClock, Samples, interleave
from tests.support.cases import Case, Inputs, gradients_of, leaves, upcast

# Of the result's norm: for peers, and for us where no eager peer sets a tighter limit.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
CHUNK = 1 << 22  # elements compared at once, so that a check needs little memory beside the tensors themselves


@dataclass
class Work:
    candidates: dict[str, Candidate]  # the others are compared with the first
    bytes: int  # the fewest that it must move: each input read once, each output written once
    reference: Callable[[], Sequence[Tensor]] | None = None  # the results in float64
    flops: int = 0
    dtype: torch.dtype = torch.float32  # of the matrix products that `flops` counts
    tolerance: float = 0.0  # of the norm, where the inputs' last digits decide more than TOLERANCE
    left_out: dict[str, str] = field(default_factory=dict)  # other candidates, and why they do not run here


@dataclass(frozen=True)
class Comparison:
    name: str
    build: Callable[[], Work]
    goals: dict[str, float] = field(default_factory=dict)  # candidate: its time over the first one's, at least
    host_clock: bool = False  # time the host, on one thread, not the device (call overhead)


@dataclass
class Row:
    candidate: str
    samples: Samples | None = None
    peak_bytes: int | None = None
    failure: str | None = None

    @property
    def ours(self) -> bool:
        return self.candidate.startswith("warpup")


@dataclass
class Result:
    case: Comparison
    rows: list[Row]
    bytes: int
    flops: int = 0
    copy_bandwidth: float = 0.0  # bytes/s, median of the same rounds
    gemm_rate: float | None = None  # FLOP/s, same run

    @property
    def failures(self) -> list[str]:
        """Why the case fails: a candidate is wrong, or ours does not run. A peer that does not run is only reported."""
        return [f"{r.candidate}: {r.failure}" for r in self.rows if r.failure and (r.ours or "wrong" in r.failure)]

    def ratio(self, row: Row) -> float | None:
        first = self.rows[0]
        if self.failures or not row.samples or not first.samples:
            return None
        return row.samples.median / first.samples.median

    def as_dict(self) -> dict:
        """What is kept of it: medians and spread, not the single times."""
        rows = []
        for row in self.rows:
            entry = {"candidate": row.candidate, "failure": row.failure, "peak_bytes": row.peak_bytes}
            if row.samples:
                seconds = row.samples.median
                entry |= {
                    "median_us": seconds * 1e6,
                    "iqr_us": row.samples.iqr * 1e6,
                    "rounds": len(row.samples.seconds),
                    "bytes_per_second": self.bytes / seconds,
                    "share_of_copy": self.bytes / seconds / self.copy_bandwidth if self.copy_bandwidth else None,
                    "share_of_gemm": self.flops / seconds / self.gemm_rate if self.gemm_rate else None,
                    "ratio": self.ratio(row),
                    "goal": self.case.goals.get(row.candidate),
                }
            rows.append(entry)
        facts = {"bytes": self.bytes, "flops": self.flops, "copy_bandwidth": self.copy_bandwidth}
        return {"case": self.case.name, **facts, "gemm_rate": self.gemm_rate, "rows": rows}


TIMING = "timing"


def measure(
    case: Comparison,
    device: str,
    *,
    new_memory: bool = False,
    without: dict[str, str] | None = None,
    tell: Callable[[str], object] = lambda stage: None,
    **rounds,
) -> Result:
    """Checks every candidate; only if all are right, times them in turn, with the copy among them.

    Args:
        new_memory: what they allocate on a CPU is new to the process each time.
        without: candidates that are not run, and why.
        tell: hears which candidate is about to be checked, and when timing begins (TIMING).
    """
    try:
        work = case.build()
    except Exception as error:
        return Result(case, [Row("warpup", failure=f"cannot be set up: {brief(error)}")], 0)
    rows = {name: Row(name) for name in work.candidates}
    without = work.left_out | (without or {})
    rows |= {name: Row(name, failure=reason) for name, reason in without.items()}
    reference = work.reference() if work.reference else None
    found = {}
    for name, candidate in work.candidates.items():
        if name in without:
            continue
        tell(name)
        try:
            found[name] = errors(candidate, reference)
        except Exception as error:
            rows[name].failure = f"does not run: {brief(error)}"
    del reference
    for name in found:
        naive = found.get("eager") if rows[name].ours else None
        rows[name].failure = verdict(found[name], naive, work.tolerance, work.dtype)
    result = Result(case, list(rows.values()), work.bytes, work.flops)
    if result.failures:
        return result
    timed = {name: c for name, c in work.candidates.items() if not rows[name].failure}
    tell(TIMING)
    if case.host_clock:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # the cost of a call, not of waking threads
        samples = interleave(timed, HostClock(device), **rounds)
        torch.set_num_threads(threads)
    else:
        for name, candidate in timed.items():
            rows[name].peak_bytes = peak_memory(candidate, device)
        copy, moved = roofline.copy(device)
        # Twice what one call takes at most, since what a call leaves free may lie in pieces.
        touched = 2 * max((rows[name].peak_bytes or 0 for name in timed), default=0)
        with nullcontext() if new_memory else kept_memory(touched):
            samples = interleave(timed | {roofline.COPY: copy}, roofline.clock(device), **rounds)
        result.copy_bandwidth = moved / samples.pop(roofline.COPY).median
    for name in samples:
        rows[name].samples = samples[name]
    if work.flops:
        result.gemm_rate = roofline.gemm_rate(device, work.dtype)
    return result


def brief(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0][:120]}"


# ---- Correctness ----------------------------------------------------------------------------------------------------


@dataclass
class Errors:
    worst: float  # largest error of an element; of what is no floating number, the number of elements that differ
    share: float  # the error's norm over the reference's
    slack: float  # two roundings of the largest element, the slack of the tests
    dtype: torch.dtype
    elements: int


def compare(output: Tensor, reference: Tensor) -> Errors:
    if output.shape != reference.shape:
        raise ValueError(f"shape {tuple(output.shape)}, expected {tuple(reference.shape)}")
    if not output.is_floating_point():
        return Errors(float((output != reference).sum()), 0.0, 0.0, output.dtype, output.numel())
    worst = squares = norm = largest = 0.0
    for out, ref in zip(output.flatten().split(CHUNK), reference.flatten().split(CHUNK), strict=True):
        error = (out.double() - ref).abs().masked_fill(out == ref, 0.0).nan_to_num(torch.inf)  # NaN never passes
        ref = ref.masked_fill(ref.isinf(), 0.0)
        worst = max(worst, error.max().item())
        largest = max(largest, ref.abs().max().item())
        squares += error.square().sum().item()
        norm += ref.square().sum().item()
    slack = largest * torch.finfo(output.dtype).eps
    return Errors(worst, (squares / (norm or 1.0)) ** 0.5, slack, output.dtype, output.numel())


def errors(candidate: Candidate, reference: Sequence[Tensor] | None) -> list[Errors]:
    output = candidate.run(*candidate.arguments())
    if reference is None or candidate.result is None:
        return []
    return [compare(out.detach(), ref) for out, ref in zip(candidate.result(output), reference, strict=True)]


def verdict(
    found: list[Errors], naive: list[Errors] | None, tolerance: float = 0.0, products: torch.dtype = torch.float32
) -> str | None:
    """Beside an eager peer, the rule of the tests: at most twice its largest error, plus the slack. A float32 or
    float64 result that misses it (an element whose last digit decides between two formulas is off in one and not in the
    other) may still be within a share of the norm: its dtype's, or `tolerance`. That share alone counts without such a
    peer, where it is that of intermediate `products` if larger, and for a single number, of which the peer may hit
    every digit by luck. Whole numbers and truth values must be the same."""
    for index, e in enumerate(found):
        if not e.dtype.is_floating_point:
            if e.worst:
                return f"wrong: {e.worst:.0f} of {e.elements} elements differ in result {index}"
            continue
        limit = max(TOLERANCE[e.dtype], tolerance)
        beside = naive and e.elements > 1
        kind, error = "relative", e.share
        if beside and (e.dtype.itemsize == 2 or not error <= limit):
            kind, error, limit = "largest", e.worst, 2 * naive[index].worst + e.slack
        elif not beside:
            limit = max(limit, TOLERANCE[products])
            if e.worst <= 8 * torch.finfo(e.dtype).eps:  # all that is left of a mean of what cancels, as approx_kl
                continue
        if not error <= limit:
            return f"wrong: {kind} error {error:.2g} in result {index}, at most {limit:.2g} allowed"
    return None


# ---- Candidates from differentiable functions -----------------------------------------------------------------------

DIRECTIONS = ("forward", "backward", "forward+backward")


def differentiable(
    function: Callable, inputs: Inputs, wrt: Sequence[str], direction: str, *, consumes: bool = False
) -> Candidate:
    """`function(**inputs)` one way or both, random gradients of its results going in and those of `inputs[wrt]` coming
    out. "backward" runs a fresh forward before the clock starts. `consumes`: the backward overwrites `inputs[wrt]`, so
    each run gets its own copy, made before the clock starts as well."""

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return leaves(function(**inputs))

    def fresh() -> tuple[Inputs]:
        mine = {k: inputs[k].clone() if consumes else inputs[k].detach() for k in wrt}
        return ({**inputs, **{k: v.requires_grad_() for k, v in mine.items()}},)

    cotangents: list[Tensor] = []  # made in the first run, which is not timed

    def pull(outputs: tuple[Tensor, ...], sources: list[Tensor]) -> tuple[Tensor, ...]:
        outputs = tuple(o for o in outputs if o.requires_grad)
        if not cotangents:
            cotangents.extend(gradients_of(outputs))
        return torch.autograd.grad(outputs, sources, cotangents)

    def both(mine: Inputs) -> tuple[Tensor, ...]:
        outputs = leaves(function(**mine))
        return (*outputs, *pull(outputs, [mine[k] for k in wrt]))

    def forwarded() -> tuple:
        (mine,) = fresh()
        return leaves(function(**mine)), [mine[k] for k in wrt]

    if direction == "forward":
        return Candidate(forward)
    return Candidate(pull, setup=forwarded) if direction == "backward" else Candidate(both, setup=fresh)


@cache
def compiled(function: Callable) -> Callable:
    return torch.compile(function, fullgraph=True, dynamic=False)


def beside_reference(op: Case, inputs: Inputs, direction: str, **peers: Callable) -> Work:
    """Our op, its reference as the eager peer and compiled, and `peers` that give the same results."""
    functions = {"warpup": op.call, "eager": op.reference, "torch.compile": compiled(op.reference), **peers}
    return Work(
        {name: differentiable(f, inputs, op.differentiable, direction) for name, f in functions.items()},
        bytes=moved(direction, op.bytes(inputs)),
        reference=lambda: expected(direction, op.run(upcast(inputs), op.reference), len(op.differentiable)),
    )


def moved(direction: str, bytes_each_way: tuple[int, int]) -> int:
    return sum(n for n, way in zip(bytes_each_way, ("forward", "backward"), strict=True) if way in direction)


def expected(direction: str, results: Sequence[Tensor], gradients: int) -> Sequence[Tensor]:
    """Which of (*outputs, *gradients) a candidate made by `differentiable` returns."""
    split = len(results) - gradients
    return {"forward": results[:split], "backward": results[split:]}.get(direction, results)
