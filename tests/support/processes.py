"""Several processes that run the same checks together, for the tests of ranks."""

import math
import multiprocessing
import os
import socket
import time
import traceback
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.tiny import log_of
from warpup.train.ranks import data_parallel

OWN = ("seconds", "tokens_per_s", "sampling_seconds", "padding")  # numbers of how the work was done


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def spawned(target, folder, names, patience, world=2):
    """Exit codes of `world` processes that call target(rank, world, port, folder, names)."""
    context, port = multiprocessing.get_context("spawn"), free_port()
    processes = [context.Process(target=target, args=(r, world, port, str(folder), names)) for r in range(world)]
    for process in processes:
        process.start()
    began = time.monotonic()
    for process in processes:
        process.join(max(0, began + patience - time.monotonic()))
    for process in processes:
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode for process in processes]


def become(number, world, port):
    """This process is one of them."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)


def run_checks(checks, number, world, port, folder):
    """Calls each check with the folder; `folder/{name}.{rank}` says how it went, and the first that fails ends all."""
    become(number, world, port)
    with data_parallel():
        for name, check in checks.items():
            outcome = "passed"
            try:
                check(Path(folder))
            except BaseException:
                outcome = traceback.format_exc()
            Path(folder, f"{name}.{number}").write_text(outcome)
            if outcome != "passed":
                os._exit(1)


def assert_passed(folder, name, world=2):
    for rank in range(world):
        outcome = folder / f"{name}.{rank}"
        assert outcome.exists(), f"rank {rank} did not come to it"
        assert outcome.read_text() == "passed", f"rank {rank}:\n{outcome.read_text()}"


def assert_same_run(one, other, *, rel, abs, weights="model.safetensors"):
    """Two runs' folders have the same numbers in their logs and the same weights, but for rounding."""
    logs = [log_of(folder) for folder in (one, other)]
    assert [line.keys() for line in logs[0]] == [line.keys() for line in logs[1]]
    for want, got in zip(*logs, strict=True):
        for key in want.keys() - {*OWN}:
            if isinstance(want[key], float) and not math.isnan(want[key]):
                assert got[key] == pytest.approx(want[key], rel=rel, abs=abs), (want["stage"], want["step"], key)
            elif key == "sample":
                assert got[key]["completion"] == want[key]["completion"]
            else:
                assert got[key] == want[key], key
    files = [load_file(folder / "model" / weights) for folder in (one, other)]
    assert files[0].keys() == files[1].keys()
    for key in files[0]:
        torch.testing.assert_close(files[1][key], files[0][key], rtol=rel, atol=abs, msg=key)
