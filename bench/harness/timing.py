"""How long candidates take side by side.

The candidates of one case are timed in turn, round after round, so that whatever else the machine does hits all of them
alike; what is reported is each one's median and interquartile range over the rounds. Comparisons hold within one run.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median, quantiles

import torch

SLOW = 10.0  # seconds


@dataclass(frozen=True)
class Candidate:
    """One way to do the work: `run(*setup())` is timed, `setup()` is not.

    `result` turns what `run` returned into the tensors that are compared with the reference; None for a yardstick that
    computes something else.
    """

    run: Callable
    setup: Callable[[], tuple] | None = None
    result: Callable | None = lambda output: output if isinstance(output, tuple) else (output,)

    def arguments(self) -> tuple:
        return self.setup() if self.setup else ()


@dataclass
class Samples:
    seconds: list[float]  # one a round, a single call's time

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def iqr(self) -> float:
        if len(self.seconds) < 2:
            return 0.0
        low, _, high = quantiles(self.seconds, n=4, method="inclusive")
        return high - low


class HostClock:
    """Wall-clock time, for CPU work and for the host's share of a launch. Short calls are repeated within a sample.

    A result is freed after the clock stops. What a candidate allocates is allocated on the clock, from memory that was
    freed before where `kept_memory` is open.
    """

    def __init__(self, device: str, shortest_sample: float = 200e-6):
        self.synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
        self.shortest_sample = shortest_sample

    def calls(self, candidate: Candidate, seconds: float) -> int:
        return 1 if candidate.setup else min(1000, max(1, math.ceil(self.shortest_sample / seconds)))

    def sample(self, candidate: Candidate, calls: int) -> Callable[[], float]:
        run, arguments = candidate.run, candidate.arguments()
        self.synchronize()
        output = None
        start = time.perf_counter_ns()
        for _ in range(calls):
            output = run(*arguments)
        stop = time.perf_counter_ns()
        self.synchronize()
        del output
        return lambda: (stop - start) / calls * 1e-9


class CudaClock:
    """Device time between two events. Before each sample the L2 is overwritten, and the stream is kept busy for as long
    as the host needs to queue the whole candidate, so that launch gaps do not count as device time."""

    def __init__(self, head_start_cycles: int = 1_000_000):
        l2 = torch.cuda.get_device_properties(0).L2_cache_size
        self.flush = torch.empty(max(2 * l2, 64 << 20), dtype=torch.uint8, device="cuda")
        self.head_start_cycles = head_start_cycles

    def calls(self, candidate: Candidate, seconds: float) -> int:
        return 1

    def sample(self, candidate: Candidate, calls: int) -> Callable[[], float]:
        arguments = candidate.arguments()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self.flush.zero_()
        torch.cuda._sleep(self.head_start_cycles)
        start.record()
        output = candidate.run(*arguments)
        stop.record()
        del output

        def seconds() -> float:
            stop.synchronize()
            return start.elapsed_time(stop) * 1e-3

        return seconds


def interleave(
    candidates: dict[str, Candidate],
    clock: HostClock | CudaClock,
    *,
    budget: float = 4.0,
    rounds: tuple[int, int] = (5, 60),
) -> dict[str, Samples]:
    """Times every candidate once a round, each round starting with another one, for `budget` seconds or so. One whose
    single call takes more than SLOW seconds keeps that call as its only sample."""
    first = {name: clock.sample(c, 1)() for name, c in candidates.items()}  # warms up, too
    calls = {name: clock.calls(c, first[name]) for name, c in candidates.items()}
    slow = [name for name in candidates if first[name] > SLOW]
    samples = {name: Samples([first[name]] if name in slow else []) for name in candidates}
    order = [name for name in candidates if name not in slow]
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        begin = time.perf_counter()
        for done in range(rounds[1] if order else 0):
            if done >= rounds[0] and time.perf_counter() - begin > budget:
                break
            turn = done % len(order)
            pending = {n: clock.sample(candidates[n], calls[n]) for n in order[turn:] + order[:turn]}
            for name, seconds in pending.items():
                samples[name].seconds.append(seconds())
    finally:
        if collecting:
            gc.enable()
    return samples
