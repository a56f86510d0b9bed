"""Cases in a process of their own, so that a candidate that does not end can be ended.

A product in 16 bits takes a library minutes on a CPU without instructions for it, and no signal reaches into it. So the
process is killed, another one is started, and the case is measured without that candidate, whose row says so.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection

from bench.harness import modules
from bench.harness.measure import TIMING, Comparison, Result, Row, measure

START = 120  # seconds for the imports of a new process
INPUTS = "its inputs"
LIMITS = {INPUTS: 5, TIMING: 10}  # these may take as many: all inputs and float64 results; all rounds


def serve(pipe: Connection, device: str, size: str) -> None:
    """The other process: measures the cases that it is told the names of."""
    cases = {case.name: case for module in modules() for case in module.cases(device, size)}
    pipe.send(INPUTS)
    while True:
        try:
            name, options = pipe.recv()
        except EOFError:  # who asked has ended
            return
        pipe.send(INPUTS)
        result = measure(cases[name], device, tell=pipe.send, **options)
        pipe.send(replace(result, case=name))  # what builds a case cannot be sent


class Worker:
    def __init__(self, device: str, size: str):
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, device, size), daemon=True)
        self.process.start()
        theirs.close()
        if not self.pipe.poll(START):
            raise RuntimeError(f"the process that measures did not start within {START} s")
        self.pipe.recv()

    def measure(self, name: str, limit: float, options: dict) -> tuple[str, str] | Result:
        """The result; or what was running when the process ended or was killed, and why."""
        stage = INPUTS
        self.pipe.send((name, options))
        try:
            while self.pipe.poll(limit * LIMITS.get(stage, 1)):
                found = self.pipe.recv()
                if isinstance(found, Result):
                    return found
                stage = found
            why = f"stopped: not done after {limit * LIMITS.get(stage, 1):g} s"
        except EOFError:
            why = "its process was killed, most often for lack of memory"
        self.process.kill()
        self.process.join()
        return stage, why


def measure_each(cases: Iterable[Comparison], device: str, size: str, limit: float, **options) -> Iterator[Result]:
    """The result of each case; no candidate has more than `limit` seconds for its first call."""
    worker = None
    for case in cases:
        without: dict[str, str] = {}
        result = None
        while result is None:
            worker = worker or Worker(device, size)
            found = worker.measure(case.name, limit, {**options, "without": without})
            if isinstance(found, Result):
                result = replace(found, case=case)
                continue
            worker = None
            stage, why = found
            if stage in (INPUTS, TIMING) or stage in without:
                result = Result(case, [Row("warpup", failure=f"{stage}: {why}")], 0)
            without[stage] = why
        yield result
