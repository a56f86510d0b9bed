"""`warpup doctor`."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Annotated

import tyro

from warpup._command_line import parse

from ..errors import TrainError, UsageError
from ..examples import RewardName

COLORS = {"fine": "green", "note": "cyan", "fault": "bold red", "unknown": "yellow"}


@dataclass
class DoctorArguments:
    """Try a model, its tokenizer, data, reward and settings before a run is paid for. Exit status: 0; 1 where something
    would spoil the run; 2 where something could not be tried."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="[MODEL]")] = ""
    """Folder of a model or of a run; default: the model of --config."""
    data: str = ""
    """Examples to look at, beside those of the config."""
    config: str = ""
    """Config of `warpup train`: its stages' data, rewards and settings."""
    reward: RewardName = ""
    """Reward for --data: `module:function` or `file.py:function`, or several."""
    json: bool = False
    """Print JSON in place of a table."""


def doctor(arguments: list[str]) -> int:
    """warpup doctor [MODEL]; returns the exit status."""
    given = parse(DoctorArguments, arguments, "warpup doctor")
    if not given.model and not given.config:
        raise UsageError("nothing to look at: give the folder of a model, or --config train.toml")
    if given.model.endswith((".toml", ".yaml", ".yml")):
        raise UsageError(f"{given.model}: expected the folder of a model; a config is given as --config {given.model}")
    if given.reward and not given.data:
        raise UsageError("--reward: it is tried on --data, which is not given; a config names its own")
    from .findings import Finding, examine, status

    began = time.perf_counter()
    try:
        patient = _patient(given)
    except UsageError:
        raise
    except TrainError as error:  # of the model, the data or the reward: what they are refused for
        findings = [Finding("reading", "fault", "reading model, tokenizer, data and rewards", str(error), "as it says")]
    else:
        findings = list(examine(patient))
    code = status(findings)
    if given.json:
        print(json.dumps({"status": code, "findings": [finding._asdict() for finding in findings]}, indent=2))
    else:
        _show(findings, time.perf_counter() - began)
    return code


def _patient(given: DoctorArguments):
    from transformers.utils import logging

    from ..config import TrainConfig
    from ..config_file import load_config
    from ..examples import examples_of
    from ..log import quiet_transformers
    from ..model.load_model import device_of, load_model, newest_model
    from ..model.lora import is_adapted, merged
    from ..rewards.reward_set import RewardSet
    from .data import place_of
    from .findings import Patient

    try:
        config = load_config(given.config) if given.config else TrainConfig()
        folder = newest_model(given.model or config.model)
    except TrainError as error:
        raise UsageError(str(error)) from error
    quiet_transformers()
    logging.set_verbosity_error()  # a warning of its own about what a check tries would stand beside the finding
    model, tokenizer = load_model(folder, device=device_of(config.device), attention=config.attention)
    if is_adapted(model):
        print("the adapters are merged into a copy of the model, which is looked at", file=sys.stderr)
        model = merged(model)
    parts = {place_of(stage): stage for stage in config.all_stages()}
    if config.held_out.data:
        parts["held_out"] = config.held_out
    data = {place: examples_of(part) for place, part in parts.items()}
    rewards = {
        place: RewardSet(part.reward, getattr(part, "reward_weights", None))
        for place, part in parts.items()
        if getattr(part, "reward", "") and not getattr(part, "environment", "")
    }
    if given.data:
        data["data"] = _rows(given.data)
        if given.reward:
            rewards["data"] = RewardSet(given.reward)
    return Patient(model.eval(), tokenizer, config, data, rewards)


def _rows(source: str):
    """The rows of --data, with completions and answers where it has them."""
    from warpup.data import load_examples

    error: Exception | None = None
    for completion, answer in (("completion", "answer"), ("completion", None), (None, "answer"), (None, None)):
        try:
            return load_examples(source, completion=completion, answer=answer)
        except ValueError as problem:
            error = error or problem
        except (OSError, ImportError) as problem:
            raise UsageError(f"--data: {problem}") from problem
    raise TrainError(f"--data: {str(error).removeprefix('source: ')}")


def _show(findings, seconds: float) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table("", "check", "what was tried, what came out, what to change", box=None, padding=(0, 2, 1, 0))
    table.columns[1].no_wrap = True
    table.columns[2].overflow = "fold"
    shown = ""
    for finding in findings:
        lines = [escape(finding.found)]
        if finding.check != shown:
            lines.insert(0, f"[dim]{escape(finding.tried)}[/]")
        if finding.change:
            lines.append(f"[bold]to do:[/] {escape(finding.change)}")
        name = finding.check if finding.check != shown else ""
        table.add_row(f"[{COLORS[finding.verdict]}]{finding.verdict}[/]", name, "\n".join(lines))
        shown = finding.check
    counts = Counter(finding.verdict for finding in findings)
    console = Console()
    console.print(table)
    console.print(", ".join(f"{counts[v]} {v}" for v in COLORS if counts[v]) + f"; {seconds:.0f} s", highlight=False)
