"""The command `warpup transfer`: make or reuse every arm, print the table, write the report."""

import json
import math
import time
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

from warpup._command_line import at_least, parse
from warpup.train.errors import TrainError, UsageError
from warpup.train.files import locked, read_table, write_text

from ..fetch import SOURCES, fetched
from .settings import MAY_BE_0, SIZES, TASKS, Size, TransferArguments


def transfer(arguments: list[str]) -> None:
    """warpup transfer."""
    run_transfer(parse(TransferArguments, arguments, "warpup transfer"))


def run_transfer(given: TransferArguments) -> None:
    """Measure the candidates for the target (`choose`), or train or reuse every arm, print the table and write
    table.md, transfer.png and report.html."""
    began = time.perf_counter()
    at_least(given, seeds=1, choose=0)
    size = sized(given)
    if given.model not in SOURCES and not (Path(given.model) / "config.json").is_file():
        raise UsageError(
            f"--model: {given.model} is no folder of a saved model (it has no config.json); or take one of PyPI: "
            + ", ".join(SOURCES)
        )
    if given.target not in TASKS:
        raise UsageError(f"--target: expected one of {', '.join(TASKS)}, got {given.target}")
    if missing := [name for name in ("reasoning_gym", "peft") if find_spec(name) is None]:
        raise TrainError(f"this needs {' and '.join(missing)}: pip install 'warpup[transfer]'")

    # Imported here, so that help and wrong calls do not wait for torch.
    import torch
    from transformers import AutoTokenizer

    from .arms import Run, choose, make_arms
    from .report import show

    out = Path(given.out)
    with locked(out):
        if not given.choose:
            remember(out, {"model": given.model, "target": given.target, "control": given.control, **asdict(size)})
        model = str(fetched(given.model, out / "model")) if given.model in SOURCES else given.model
        device = given.device if given.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        chat = bool(AutoTokenizer.from_pretrained(model).chat_template)
        run = Run(model, out, size, given.target, given.control, device, chat)
        if given.choose:
            choose(run, given.choose)
            return
        make_arms(run, given.seeds)
        show(out, run.domains(), size, given.control, given.seeds)
    print(f"report: {out / 'report.html'}   ({time.perf_counter() - began:.0f} s)")


def sized(given: TransferArguments) -> Size:
    """The size that was asked for, with the numbers of `--set` in place of its own."""
    if given.quick and given.size != "cpu":
        raise UsageError(f"--quick is --size quick: expected one of both, got --size {given.size}, too")
    size = SIZES["quick" if given.quick else given.size]
    numbers = {name: value for name, value in asdict(size).items() if isinstance(value, int | float)}
    for text in given.set:
        name, _, value = text.partition("=")
        try:
            number = type(numbers[name])(value)
        except (KeyError, ValueError):
            raise UsageError(f"--set: expected numbers by name, of {', '.join(numbers)}; got {text}") from None
        zero = name in MAY_BE_0
        if not (number >= 0 if zero else number > 0) or number == math.inf:
            raise UsageError(f"--set: {name} must be {'at least' if zero else 'above'} 0 and finite; got {text}")
        size = replace(size, **{name: number})
    if size.slips > 1:
        raise UsageError(f"--set: slips is a chance, at most 1; got {size.slips}")
    return size


def remember(out: Path, run: dict) -> None:
    """Write what the run is, or raise TrainError where the folder holds another one."""
    path, run = out / "transfer.json", json.loads(json.dumps(run))
    there = read_table(path) if path.exists() else run
    if other := [f"{key}: {there.get(key)} there, {run[key]} now" for key in run if there.get(key) != run[key]]:
        raise TrainError(f"{out} holds another run ({'; '.join(other)}): choose another --out")
    write_text(path, json.dumps(run, indent=2) + "\n")
