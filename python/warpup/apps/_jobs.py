"""Independent trainings side by side: one process and one CPU thread each, progress shown by the parent."""

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from typing import Any

import torch

from warpup.train.errors import Interrupted
from warpup.train.log import Report, quiet_transformers
from warpup.train.signals import Signals


def run_jobs(function: Callable, tasks: Sequence[tuple], jobs: int, report: Report) -> list[Any]:
    """`function(*task, report)` of each task, `jobs` at a time on one thread each; results in the order of the tasks.

    One job runs in this process, several run in processes of their own: then `function` and tasks must be importable
    and picklable. After Ctrl-C or an error in one of them all save and stop.
    """
    if jobs == 1:
        torch.set_num_threads(1)  # models this small gain little from more, and lose much where cores are shared
        return [function(*task, report) for task in tasks]
    return run_in_children(function, tasks, jobs, report)


def jobs_for(asked: int, tasks: int) -> int:
    """How many jobs `--jobs` means: 0 is one a core, and no more than there are tasks."""
    return min(asked or os.cpu_count() or 1, tasks)


def run_in_children(function: Callable, tasks: Sequence[tuple], jobs: int, report: Report) -> list[Any]:
    """`run_jobs` in processes of their own, also for one job."""
    context = multiprocessing.get_context("spawn")
    messages, stop = context.Queue(), context.Event()
    handlers = {n: signal.signal(n, lambda *_: stop.set()) for n in (signal.SIGINT, signal.SIGTERM)}
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    pool = ProcessPoolExecutor(jobs, context, initializer=begin_child, initargs=(messages, stop))
    try:
        futures = [pool.submit(run_in_child, function, task) for task in tasks]
        failed = running = None
        while failed is None and running != set():
            finished, running = wait(futures, timeout=0.2, return_when=FIRST_EXCEPTION)
            show(messages, report)
            failed = next((future.exception() for future in finished if future.exception()), None)
        if failed:
            stop.set()
            raise failed
        return [future.result() for future in futures]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        os.environ.pop("OMP_NUM_THREADS")
        if threads is not None:
            os.environ["OMP_NUM_THREADS"] = threads
        for number, handler in handlers.items():
            signal.signal(number, handler)


def show(messages, report: Report) -> None:
    """Report what the children said since the last call."""
    while True:
        try:
            report(*messages.get_nowait())
        except queue.Empty:
            return


_messages: Any = None  # in a child: where its progress goes
_stop: Any = None  # and whether it should stop


def begin_child(messages, stop) -> None:
    """Set up a child process."""
    global _messages, _stop
    _messages, _stop = messages, stop
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    threading.Thread(target=follow_parent, daemon=True).start()
    quiet_transformers()


def follow_parent(patience: float = 60.0) -> None:
    """Wait for the parent's end; then have the loop save and stop, and end this process after `patience` seconds."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a child
    parent.join()
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(patience)
    os._exit(1)


def run_in_child(function: Callable, task: tuple) -> Any:
    """Run one task in a child process."""
    reported, interrupted, parent = 0.0, False, multiprocessing.parent_process()
    if _stop.is_set() or parent is None or not parent.is_alive():
        raise Interrupted("stopped before it began; the same command resumes it")

    def report(stage: str, step: int, steps: int, numbers: dict[str, Any]) -> None:
        nonlocal reported, interrupted
        if not interrupted and _stop.is_set():
            interrupted = True
            if not Signals.noted():  # a Ctrl-C on a terminal came to this process too
                signal.raise_signal(signal.SIGINT)  # the loop saves, then stops
        if step == steps or time.monotonic() - reported > 0.5:
            reported = time.monotonic()
            _messages.put((stage, step, steps, {k: v for k, v in numbers.items() if not isinstance(v, dict)}))

    try:
        return function(*task, report)
    except KeyboardInterrupt:
        raise Interrupted("stopped; the same command resumes it") from None
