"""The command `warpup demo`: train or reuse every chain, print the table, write the report."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

from warpup._command_line import at_least, parse
from warpup.train.errors import TrainError, UsageError
from warpup.train.files import read_table, write_text

from ..fetch import SOURCES
from ..transfer.command import run_transfer
from ..transfer.settings import TransferArguments
from .settings import ARMS, FULL, QUICK, DemoArguments, Size


def demo(arguments: list[str]) -> None:
    """warpup demo."""
    given = parse(DemoArguments, arguments, "warpup demo")
    at_least(given, seeds=1, jobs=0)
    if given.model in SOURCES:
        if given.jobs:
            raise UsageError(f"--jobs: the arms of a pretrained model ({given.model}) are trained one after the other")
        out = given.out or TransferArguments.out
        run_transfer(TransferArguments(given.model, out, given.quick, seeds=given.seeds))
        return

    # Imported here, so that help and wrong calls do not wait for torch.
    from warpup.data import verify
    from warpup.train.files import locked
    from warpup.train.log import ProgressBar

    from .._jobs import jobs_for, run_jobs
    from .chain import run_chain
    from .puzzles import puzzle_sets
    from .report import print_table, write_report

    out, size = Path(given.out or "runs/demo"), QUICK if given.quick else FULL
    size = replace(size, experts=12) if given.model == "moe" else size
    began = time.perf_counter()
    with locked(out):
        check_size(out / "demo.json", size)
        # The longer chain of a seed first, so that both cores are busy to the end.
        tasks = [
            (chain, seed, size, out / f"seed-{seed}" / chain) for seed in range(given.seeds) for chain in reversed(ARMS)
        ]
        with ProgressBar() as bar:
            results = run_jobs(run_chain, tasks, jobs_for(given.jobs, len(tasks)), bar)
        sets = puzzle_sets(replace(size, chains=1000), 0)
        write_text(out / "held_out.jsonl", "".join(json.dumps(row) + "\n" for row in sets["held_out"]))
        teacher = fmean(verify(row["completion"], row).correct for row in sets["warm"])
        print_table(results)
        path = write_report(out, size, teacher, results)
    print(f"report: {path}   ({time.perf_counter() - began:.0f} s)")


def check_size(path: Path, size: Size) -> None:
    """Write the demo's size, or raise TrainError if the folder holds a demo of another size."""
    wanted = json.loads(json.dumps(asdict(size)))
    if path.exists() and read_table(path) != wanted:
        raise TrainError(
            f"{path.parent} holds a demo of another size (--quick, --model, or other settings): choose another --out"
        )
    write_text(path, json.dumps(wanted) + "\n")
