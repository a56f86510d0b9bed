"""The benchmarks without pytest: `python -m bench --device cuda -k token_logprob --json results.json`."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

import warpup._native as native
from bench.harness import modules
from bench.harness.measure import measure
from bench.harness.report import environment, record, summary, table, write


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if native.has_cuda() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does every benchmark still run?")
    parser.add_argument("-k", dest="pattern", default="", help="only cases whose name this regular expression finds")
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--show", type=Path, help="only print a summary of such a file")
    parser.add_argument("--budget", type=float, default=4.0, help="seconds of timing a case")
    parser.add_argument("--new-memory", action="store_true", help="CPU: time with glibc's default, page faults and all")
    parser.add_argument("--stop-after", type=float, default=float("inf"), help="start no case after so many seconds")
    arguments = parser.parse_args()
    if arguments.show:
        print(summary(json.loads(arguments.show.read_text())))
        return 0

    size = "quick" if arguments.quick else arguments.device
    rounds = {"budget": 0.0, "rounds": (2, 2)} if arguments.quick else {"budget": arguments.budget}
    cases = [case for module in modules() for case in module.cases(arguments.device, size)]
    environment(arguments.device)
    results, left_out = [], []
    begin = time.monotonic()
    for case in cases:
        if not re.search(arguments.pattern, case.name):
            continue
        if time.monotonic() - begin > arguments.stop_after:
            left_out.append(case.name)
            continue
        print(f"... {case.name}", file=sys.stderr, flush=True)
        results.append(measure(case, arguments.device, new_memory=arguments.new_memory, **rounds))
        if arguments.json:  # after each case: a run that is cut short still leaves its numbers
            write({"new_memory": arguments.new_memory, **record(results, arguments.device)}, arguments.json)
    print(table(results, arguments.device, color=sys.stdout.isatty()))
    if left_out:
        print("Left out for lack of time: " + ", ".join(left_out))
    return 1 if any(result.failures for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
