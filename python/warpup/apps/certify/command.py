"""`warpup certify`: one data set, several seeds, or the ablation of the short warm-up, each run resumable."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import torch
import tyro

from warpup._command_line import as_usage, at_least, parse
from warpup.train.errors import UsageError
from warpup.train.files import locked
from warpup.train.log import ProgressBar

from .._jobs import jobs_for, run_jobs
from .arms import PRESETS, SMALL, Arm, Net, ablation, run_arm
from .images import DIGITS, load_images
from .report import print_table, write_report
from .training import CertifiedTraining


@dataclass
class Runs:
    """Train four arms of CNN-7 on the digits at two eps: what the parts of the short warm-up do. Print their errors,
    write report.html."""

    out: str = "runs/certify"
    """Folder of the results; what is done there already is reused."""
    seed: int = 0
    """Seed of the first run."""
    seeds: int = 1
    """Repeat with so many seeds and show mean and spread."""
    jobs: int = 0
    """Runs side by side, each on one CPU thread; 0: as many as there are cores (one, with all threads, for one run)."""
    device: str = ""
    """Where to train, such as cpu or cuda; default: the GPU if there is one, but the CPU for the digits."""
    attack: bool = False
    """Also attack the test set with PGD."""
    ablation: bool = False
    """On the digits: what the parts of the short warm-up do, four arms at two eps. It has settings of its own, and
    takes these options alone."""


@dataclass
class CertifyArguments(Runs):
    """Train CNN-7 with verified robustness on DATA ("digits" by default, or a directory), print its errors, write
    report.html."""

    training: Annotated[CertifiedTraining, tyro.conf.arg(name="")] = field(default_factory=CertifiedTraining)
    """Settings of the training; the defaults are those for the data set."""
    alphas: tuple[float, ...] = ()
    """Train with MTL-IBP once for each alpha, such as 0.01 0.1 0.5 1, and mark the rows that no other row beats in both
    clean and verified error."""
    net: Annotated[Net, tyro.conf.arg(name="")] = SMALL
    """Size of the net."""


def checked_device(given: str, source: str) -> str:
    """The device to train on; UsageError if torch has none of that name."""
    device = given or ("cuda" if torch.cuda.is_available() and source != DIGITS else "cpu")
    try:
        torch.empty(1, device=device).item()
    except Exception as error:  # each backend raises what it likes
        here = " or cuda" if torch.cuda.is_available() else ", there is no GPU here"
        raise UsageError(f"--device: expected cpu{here}, got {device!r}") from error
    return device


def arms_of(given: CertifyArguments) -> list[Arm]:
    """The one training that was asked for, or one for each alpha."""
    if not given.alphas:
        return [Arm("short warm-up", given.training, given.net)]
    if (given.training.bounds, given.training.alpha) != (CertifiedTraining.bounds, CertifiedTraining.alpha):
        raise UsageError("--alphas: they set --bounds mtl-ibp and --alpha; leave those out")
    return [
        Arm(f"MTL-IBP alpha {alpha:g}", replace(given.training, bounds="mtl-ibp", alpha=alpha), given.net)
        for alpha in dict.fromkeys(given.alphas)
    ]


def run_certify(source: str, given: Runs) -> Path:
    """Train or reuse every run, print the table, write the report; returns its path.

    given: CertifyArguments, or with `ablation` any Runs.
    """
    at_least(given, seeds=1, jobs=0)
    if given.ablation and source != DIGITS:
        raise UsageError(f"--ablation: its settings are those of the digits, got the data {source}; leave one out")
    arms = arms_of(given) if isinstance(given, CertifyArguments) and not given.ablation else ablation()
    with as_usage():
        for arm in arms:
            at_least(arm.net, width=1, hidden=1)
            arm.training.check_settings()
    device, out, began = checked_device(given.device, source), Path(given.out), time.perf_counter()
    with locked(out):
        tasks = [
            (arm, source, seed, device, given.attack, out / arm.folder / f"seed-{seed}")
            for seed in range(given.seed, given.seed + given.seeds)
            for arm in arms
        ]
        jobs = jobs_for(given.jobs, len(tasks))
        with ProgressBar() as bar:
            if jobs == 1 and source != DIGITS:  # images large enough to gain from all threads
                results = [run_arm(*task, bar) for task in tasks]
            else:
                results = run_jobs(run_arm, tasks, jobs, bar)
        print_table(results, attack=given.attack)
        path = write_report(out, source, results)
    print(f"report: {path}   ({time.perf_counter() - began:.0f} s)")
    return path


def certify(arguments: list[str]) -> None:
    """warpup certify [DATA] [--key value ...]: DATA is "digits" (the default), a directory or a .npz file."""
    source = DIGITS
    if arguments and not arguments[0].startswith("-"):
        source, *arguments = arguments
    if "--ablation" in arguments:
        try:
            rest = [argument for argument in arguments if argument != "--ablation"]
            given = replace(parse(Runs, rest, "warpup certify --ablation"), ablation=True)
        except UsageError as error:
            raise UsageError(f"--ablation has settings of its own: {error}") from None
        run_certify(source, given)
        return
    default = CertifyArguments()
    if source != DIGITS:
        with as_usage():
            data = load_images(source)
        kind = data.name if data.name in PRESETS else ("cifar10" if data.augment else "mnist")
        default = CertifyArguments(training=PRESETS[kind], net=Net())
    run_certify(source, parse(CertifyArguments, arguments, "warpup certify [DATA]", default))
