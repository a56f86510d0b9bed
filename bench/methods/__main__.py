"""Benches of published methods, each arm with several seeds: `python -m bench.methods continual --seeds 3`."""

from __future__ import annotations

import argparse
import json
import re
import sys

import torch

from bench.methods import runner
from bench.methods.picture import draw


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.methods", description=__doc__)
    parser.add_argument("bench", choices=runner.names(), help="which one; bench/methods/NAME.py is it")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each arm (3), with seeds from 0 on")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does every arm still run?")
    parser.add_argument("-k", dest="pattern", default="", help="only arms whose name this regular expression finds")
    parser.add_argument("--show", action="store_true", help="run nothing, print what was found again")
    publish = "run nothing, write what was found to bench/results/methods, docs/images and docs/results.md"
    parser.add_argument("--publish", action="store_true", help=publish)
    given = parser.parse_args()
    if given.seeds < 1:
        parser.error(f"--seeds: expected at least 1, got {given.seeds}")
    if given.publish and (given.quick or given.pattern or given.show):
        parser.error("--publish is of all arms at full size: leave out --quick, -k and --show")
    arms = [arm for arm in runner.load(given.bench).ARMS if re.search(given.pattern, arm)]
    if not arms:
        parser.error(f"-k: {given.pattern!r} is in no arm of {', '.join(runner.load(given.bench).ARMS)}")

    if given.publish:
        try:
            runner.publish(given.bench)
        except ValueError as error:
            parser.error(f"--publish: {error}")
        return 0

    left_out = []
    if not given.show:
        torch.set_num_threads(1)  # nets this small gain nothing from more, and the same bits come out on any machine
        left_out = runner.run(given.bench, given.seeds, quick=given.quick, pattern=given.pattern)
    found = {arm: seeds for arm, seeds in runner.results(given.bench, given.quick).items() if arm in arms}
    if not found:
        kept = runner.file_of(given.bench, given.quick)
        parser.error(f"--show: nothing of this code in {kept} yet; leave it out" if given.show else left_out[0])
    show(runner.summary(given.bench, found, given.quick))
    picture = runner.file_of(given.bench, given.quick).with_suffix(".png")
    draw(runner.load(given.bench), found, picture)
    print(f"{picture} shows it.")
    for arm in left_out:
        print(f"Left out, as a package is missing: {arm}")
    return 1 if left_out else 0


def show(record: dict) -> None:
    """Prints the table as it is, however wide, so that a file or another program gets whole lines."""
    rows = [[cell.replace("**", "") for cell in row] for row in runner.table(record)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    left = {0, len(widths) - 2}  # the arm and its difference
    for row in rows:
        cells = zip(row, widths, strict=True)
        print("  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(cells)))
    print(f"mean ± standard deviation over seeds; {json.dumps(record['size'])}")


if __name__ == "__main__":
    sys.exit(main())
