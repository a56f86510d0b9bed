"""What an import costs, in processes of its own: `python -m bench.imports`. Milliseconds of the processor."""

from __future__ import annotations

import statistics
import subprocess
import sys

STATEMENTS = ("import warpup", "from warpup import arrays", "from warpup import token_logprob", "import torch")


def milliseconds(statement: str, rounds: int = 7) -> list[float]:
    program = f"import time; begin = time.process_time(); {statement}; print(1e3 * (time.process_time() - begin))"
    command = [sys.executable, "-c", program]
    return [float(subprocess.run(command, capture_output=True, check=True).stdout) for _ in range(rounds)]


if __name__ == "__main__":
    for statement in STATEMENTS:
        times = milliseconds(statement)
        print(f"{statement:36} median {statistics.median(times):7.1f} ms, fastest {min(times):.1f}")
