"""The command `warpup`. Each subcommand imports what it needs when it runs, so that help and errors are instant."""

import os
import sys

COMMANDS = {
    "demo": "train four arms on Knights & Knaves puzzles, print their table, write report.html",
    "train": "warm up and reinforce your own model on your own data",
    "sample": "print completions of a trained model",
    "eval": "measure a trained model on held-out examples",
    "certify": "train an image classifier whose answers are proven within eps, print its errors, write report.html",
    "continual": "learn tasks one after the other with interval weights, and certify that old ones stay learned",
    "info": "what this installation can do: versions, devices, operators",
}


def main(arguments: list[str] | None = None) -> int:
    """Run `warpup ARGUMENTS` (default: the process's) and return its exit code: 0, 1 on an error, 2 on a wrong
    call, 130 after Ctrl-C."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        print(f"warpup: no command {name!r}, expected one of: {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if name == "info":
        from warpup.info import main as info

        return info(rest) or 0
    return guarded(name, rest)


def usage() -> str:
    """The help text."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: warpup COMMAND ...", "", *lines, "", "`warpup COMMAND --help` tells its options."])


def guarded(name: str, rest: list[str]) -> int:
    """Run a subcommand; an error ends in one line on stderr (WARPUP_TRACEBACK=1 adds the stack trace)."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils import logging

    from warpup.train import Interrupted, TrainError, UsageError, commands

    logging.disable_progress_bar()
    try:
        return getattr(commands, name)(rest) or 0
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


if __name__ == "__main__":
    sys.exit(main())
