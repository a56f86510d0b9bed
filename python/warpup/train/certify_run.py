"""`warpup certify`: one data set, several seeds, or the ablation of the short warm-up, each run resumable."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from warpup.interval import cnn7

from .arguments import as_usage, at_least, parse
from .certify import CertifiedTraining
from .certify_data import DIGITS, Images, load_images
from .errors import UsageError
from .log import ProgressBar, Report
from .parallel import run_aside, run_here
from .recipe import locked, seed_everything

# The settings of the paper for its data sets, and what suits 1437 digits.
PRESETS = {
    "digits": CertifiedTraining(),
    "mnist": CertifiedTraining(eps=0.4, batch_size=256, start=1, warmup=20, epochs=70, decay=(50 / 70, 60 / 70)),
    "cifar10": CertifiedTraining(eps=8 / 255, batch_size=128, start=2, warmup=80, epochs=160),
}


@dataclass(frozen=True)
class Net:
    """Size of CNN-7."""

    width: int = 64
    """Channels of the first convolution."""
    hidden: int = 512
    """Units of the linear layer before the last."""
    batch_norm: bool = True
    """Batch normalisation after every layer but the last."""


SMALL = Net(16, 128)


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
    net: Annotated[Net, tyro.conf.arg(name="")] = SMALL
    """Size of the net."""


@dataclass(frozen=True)
class Arm:
    """One row of a table: what is trained, on one seed after another."""

    name: str
    training: CertifiedTraining
    net: Net

    @property
    def folder(self) -> str:
        words = re.findall(r"\w+", self.name)
        return f"eps-{self.training.eps:.4g}/{'-'.join(words)}"


# name -> (batch normalisation, IBP initialisation, weight of the regularisers)
PARTS = {
    "default init, no BN": (False, False, 0.0),
    "+ BN": (True, False, 0.0),
    "+ BN + init": (True, True, 0.0),
    "+ BN + init + regularisers": (True, True, 0.5),
}
ABLATION = (
    CertifiedTraining(eps=0.05, epochs=120, warmup=30),
    CertifiedTraining(eps=0.1, epochs=160, warmup=40),
)
# eps -> arm -> clean error, verified error and its spread, %: three seeds of the first implementation of this ablation.
MEASURED = {
    0.05: dict(zip(PARTS, ((5.8, 18.4, 0.7), (11.6, 20.7, 2.3), (1.5, 6.8, 0.8), (1.9, 7.0, 0.5)), strict=True)),
    0.1: dict(zip(PARTS, ((7.4, 22.6, 0.7), (13.8, 28.3, 1.8), (2.6, 12.6, 0.5), (2.9, 10.9, 1.0)), strict=True)),
}


def ablation() -> list[Arm]:
    """The ablation's arms."""
    return [
        Arm(name, replace(training, init=init, regulariser=regulariser), replace(SMALL, batch_norm=batch_norm))
        for training in ABLATION
        for name, (batch_norm, init, regulariser) in PARTS.items()
    ]


def model_for(data: Images, net: Net, seed: int) -> torch.nn.Module:
    """Untrained CNN-7 for the images."""
    seed_everything(seed)
    channels, size = data.x_train.shape[1:3]
    return cnn7(channels, size, data.classes, width=net.width, hidden=net.hidden, batch_norm=net.batch_norm)


def run_arm(
    arm: Arm, source: str, seed: int, device: str, attack: bool, out: Path, report: Report
) -> dict[str, Any]:  # fmt: skip
    """Train and measure one arm on one seed."""
    data = load_images(source)
    model = model_for(data, arm.net, seed).to(device)

    def told(stage: str, step: int, steps: int, numbers: dict[str, Any]) -> None:
        report(f"{arm.name} eps {arm.training.eps:.3g} seed {seed}: {stage}", step, steps, numbers)

    found = arm.training.fit(model, data, out, seed=seed, attack=attack, report=told)
    return {"arm": arm.name, "seed": seed, "folder": str(out), **found}


def checked_device(given: str, source: str) -> str:
    """The device to train on; UsageError if torch has none of that name."""
    device = given or ("cuda" if torch.cuda.is_available() and source != DIGITS else "cpu")
    try:
        torch.empty(1, device=device).item()
    except Exception as error:  # each backend raises what it likes
        here = " or cuda" if torch.cuda.is_available() else ", there is no GPU here"
        raise UsageError(f"--device: expected cpu{here}, got {device!r}") from error
    return device


def run_certify(source: str, given: Runs) -> Path:
    """Train or reuse every run, print the table, write the report; returns its path.

    given: CertifyArguments, or with `ablation` any Runs.
    """
    from .certify_report import print_table, write_report

    at_least(given, seeds=1, jobs=0)
    if given.ablation and source != DIGITS:
        raise UsageError(f"--ablation: its settings are those of the digits, got the data {source}; leave one out")
    arms = ablation() if given.ablation else [Arm("short warm-up", given.training, given.net)]
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
        jobs = given.jobs or min(os.cpu_count() or 1, len(tasks))
        with ProgressBar() as bar:
            if jobs > 1:
                results = run_aside(run_arm, tasks, jobs, bar)
            elif source == DIGITS:
                results = run_here(run_arm, tasks, bar)
            else:
                results = [run_arm(*task, bar) for task in tasks]
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
