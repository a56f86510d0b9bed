"""The command `warpup continual`: learn or reuse every run, print the tables, draw the picture."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from warpup._command_line import at_least, parse
from warpup.train.errors import Interrupted, TrainError, UsageError

from .settings import METHODS, ContinualArguments, Settings


def continual(arguments: list[str]) -> None:
    """warpup continual."""
    given = parse(ContinualArguments, arguments, "warpup continual")
    at_least(given, seeds=1, jobs=0)
    run_continual(given)


def run_continual(given: ContinualArguments) -> list[dict[str, Any]]:
    """Learn or reuse every run, print the tables, write continual.json and continual.png; returns the runs.

    Raises TrainError if a certificate was broken.
    """
    if not given.methods:
        raise UsageError(f"--methods: expected some of {', '.join(METHODS)}, got none")

    # Imported here, so that help and wrong calls do not wait for torch.
    from warpup.train.files import locked
    from warpup.train.log import ProgressBar
    from warpup.train.run_config import check_config

    from .._jobs import jobs_for, run_jobs
    from .report import show
    from .run import broken, run_method

    out, settings = Path(given.out), Settings(given.scenario)
    with locked(out):
        check_config(out / "config.json", asdict(settings))
        runs = [
            (method, seed, settings, out / f"seed-{seed}" / method)
            for seed in range(given.seeds)
            for method in dict.fromkeys(given.methods)
        ]
        try:
            with ProgressBar() as bar:
                found = run_jobs(run_method, runs, jobs_for(given.jobs, len(runs)), bar)
        except KeyboardInterrupt:
            raise Interrupted("stopped; the same command goes on after the last finished task") from None
        show(found, out)
    if failures := [line for run in found for line in broken(run)]:
        raise TrainError(f"a certificate was broken: {'; '.join(failures)}")
    return found
