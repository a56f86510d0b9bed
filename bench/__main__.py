"""The benchmarks without pytest: `python -m bench --device cuda -k token_logprob --json results.json`."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from pathlib import Path

import warpup._native as native
from bench.harness import column, modules
from bench.harness.report import environment, record, summary, table, write
from bench.harness.worker import measure_each

COLUMN = {"budget": 1.5, "rounds": (3, 40), "stop_after": 1080.0}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if native.has_cuda() else "cpu")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does every benchmark still run?")
    parser.add_argument("-k", dest="pattern", default="", help="only cases whose name this regular expression finds")
    parser.add_argument("--json", type=Path, help="write the results there, after each case")
    parser.add_argument("--show", type=Path, help="only print a summary of such a file")
    parser.add_argument("--budget", type=float, help="seconds of timing a case (4)")
    parser.add_argument("--limit", type=float, default=60.0, help="seconds for a candidate's first call, or it is out")
    parser.add_argument("--new-memory", action="store_true", help="CPU: time with glibc's default, page faults and all")
    parser.add_argument("--stop-after", type=float, help="start no case after so many seconds")
    column_help = (
        "write this machine's column of the table in docs/benchmarks.md to bench/results, for about 20 minutes; again: "
        "go on with the cases that are missing there"
    )
    parser.add_argument("--column", action="store_true", help=column_help)
    parser.add_argument("--table", action="store_true", help="only write that table anew, from bench/results")
    arguments = parser.parse_args()
    if arguments.show and not arguments.show.is_file():
        parser.error(f"--show: no file {arguments.show}")
    for name in ("limit", "budget", "stop_after"):
        if (seconds := getattr(arguments, name)) is not None and not seconds > 0:
            parser.error(f"--{name.replace('_', '-')}: expected seconds above 0, got {seconds}")
    if arguments.show:
        print(summary(json.loads(arguments.show.read_text())))
        return 0
    if arguments.table:
        column.PAGE.write_text(column.page(column.PAGE.read_text()))
        return 0

    if arguments.column and (arguments.quick or arguments.pattern):
        parser.error("--column is of all its cases at full size: leave out --quick and -k")

    size = "quick" if arguments.quick else arguments.device
    where = environment(arguments.device)
    options = {"budget": 4.0, "rounds": (5, 60), "stop_after": float("inf")} | (COLUMN if arguments.column else {})
    options |= {"budget": 0.0, "rounds": (2, 2)} if arguments.quick else {}
    options |= {k: v for k in ("budget", "stop_after") if (v := getattr(arguments, k)) is not None}
    stop_after = options.pop("stop_after")
    file = arguments.json or (column.path_of(where) if arguments.column else None)
    cases = {case.name: case for module in modules() for case in module.cases(arguments.device, size)}
    names = column.ordered(list(cases))
    if not arguments.column:
        names = list(dict.fromkeys([*names, *cases]))
    names = [name for name in names if re.search(arguments.pattern, name)]
    if not names:
        parser.error(f"-k: no case has a name in which {arguments.pattern!r} is found; --quick names all of them")
    facts = {"new_memory": arguments.new_memory, "column": arguments.column}
    held = column.held(file, where) if arguments.column else []
    names = [name for name in names if name not in {result["case"] for result in held}]

    results, begin = [], time.monotonic()
    left_out = []

    def wanted():
        for name in names:
            if time.monotonic() - begin > stop_after:
                left_out.append(name)
                continue
            print(f"... {time.monotonic() - begin:5.0f} s  {name}", file=sys.stderr, flush=True)
            yield cases[name]

    options |= {"new_memory": arguments.new_memory}
    for result in measure_each(wanted(), arguments.device, size, arguments.limit, **options):
        results.append(result)
        if file:  # after each case: a run that is cut short still leaves its numbers
            new = record(results, arguments.device)
            write(facts | new | {"results": held + new["results"]}, file)
    print(table(results, arguments.device, color=sys.stdout.isatty()))
    if left_out:
        print("Left out for lack of time: " + ", ".join(left_out))
    return 1 if any(result.failures for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
