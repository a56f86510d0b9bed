"""Calls that may hang or crash, one at a time, in a process of the function's own."""

import functools
import threading
from typing import Any

from warpup.train.rewards.calls import Call, Outcome
from warpup.train.rewards.workers import Worker


def call(function: str, first: Any, second: Any, timeout: float) -> Outcome | None:
    """What the function `module:function` says of two arguments; None if it took more than `timeout` seconds or died.

    The process starts at the first call, with the module's imports, which do not count for the time.
    """
    worker, lock = _worker(function)
    try:
        with lock:
            [outcome] = worker.run(0, Call([1], (first, second), {}), timeout)
    except (TimeoutError, ChildProcessError):
        return None
    return outcome


@functools.cache
def _worker(function: str) -> tuple[Worker, threading.Lock]:
    return Worker([function]), threading.Lock()
