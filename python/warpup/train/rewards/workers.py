"""Processes that call reward functions, so that a call which hangs or crashes can be stopped and counted.

A worker is a fresh Python (`python -m warpup.train.rewards.workers`) at the other end of a socket: it imports the
reward functions, then answers one call after another. A thread waits at each worker. Unlike with `multiprocessing` the
script that runs is not imported again, and a call over its time limit is killed together with everything it started.
"""

import contextlib
import os
import pickle
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection

from ..errors import TrainError
from .calls import Call, Outcome, Signature, attempt, failed, name_of
from .loading import load_reward


class Workers:
    """`count` processes with the given reward functions, started at the first call and again after a time-out."""

    def __init__(self, rewards: Sequence[str | Callable], count: int):
        """TrainError if a function cannot be sent to another process."""
        self.workers = [Worker(rewards) for _ in range(count)]
        self.idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for worker in self.workers:
            self.idle.put(worker)
        self.threads = ThreadPoolExecutor(count)

    def map(self, reward: int, calls: Sequence[Call], timeout: float | None) -> list[list[Outcome]]:
        """The outcomes of each call of the reward of that number; `timeout` seconds each."""

        def run(call: Call) -> list[Outcome]:
            worker = self.idle.get()
            try:
                return worker.run(reward, call, timeout)
            except TrainError:
                raise
            except Exception as error:  # what is pickled may raise anything
                return failed(call, error)
            finally:
                self.idle.put(worker)

        try:
            return list(self.threads.map(run, calls))
        except BaseException:  # on Ctrl-C no thread is left to wait for a call that hangs
            for worker in self.workers:
                worker.kill()
            raise


class Worker:
    """One process with the given reward functions; `run` starts it if there is none."""

    def __init__(self, rewards: Sequence[str | Callable]):
        """TrainError if a function cannot be sent to another process."""
        self.start = pickle.dumps((sys.path, [_portable(reward) for reward in rewards]))
        self.process: subprocess.Popen | None = None

    def run(self, reward: int, call: Call, timeout: float | None) -> list[Outcome]:
        """The outcomes of a call of the reward of that number. TimeoutError if it takes more than `timeout` seconds,
        ChildProcessError if the process dies of it."""
        message = pickle.dumps((reward, call))
        if self.process is None or self.process.poll() is not None:  # none yet, or it died between two calls
            self._launch()
        try:
            self.pipe.send_bytes(message)
            if self.pipe.poll(timeout):
                return self.pipe.recv()
        except (EOFError, OSError):
            assert self.process is not None
            raise ChildProcessError(f"the worker process died, exit status {self.process.wait()}") from None
        self._stop()
        raise TimeoutError(f"no answer within {timeout} s, the worker was stopped")

    def _launch(self) -> None:
        """Start the process and wait until it has imported the rewards; TrainError if it cannot."""
        self._stop()
        here, there = socket.socketpair()
        with there:
            # Workers stand beside each other on the same cores, so each takes one thread. A session of its own keeps
            # Ctrl-C from it, and is what is killed.
            self.process = subprocess.Popen(
                [sys.executable, "-c", f"import sys; sys.path = {sys.path!r}; from {__name__} import serve; serve()",
                 str(there.fileno()), str(os.getpid())],
                pass_fds=[there.fileno()], start_new_session=True, env={"OMP_NUM_THREADS": "1", **os.environ},
            )  # fmt: skip
        self.pipe = Connection(here.detach())
        self.end = weakref.finalize(self, _kill, self.process)
        self.pipe.send_bytes(self.start)
        try:
            answer = self.pipe.recv()
        except (EOFError, OSError):
            answer = "it died while it imported the reward"
        if answer is not None:
            self._stop()
            raise TrainError(f"reward: a worker process cannot start: {answer}")

    def kill(self) -> None:
        """End the process, whoever waits for it."""
        if self.process is not None:
            _kill(self.process)

    def _stop(self) -> None:
        if self.process is not None:
            self.end()
        self.process = None


def _kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _portable(reward: str | Callable) -> str | bytes:
    """What another process can load the reward from: its name, or the pickled function."""
    if isinstance(reward, str):
        return reward
    try:
        made = pickle.dumps(reward)
        if b"__main__" in made:
            raise TrainError("it is defined in the script that runs")
        return made
    except Exception as error:
        raise TrainError(
            f"reward_workers: {name_of(reward)} cannot be sent to worker processes ({error}): write it as a function "
            "of a file and name it `file.py:function`, or set reward_workers = 0"
        ) from error


def serve() -> None:
    """The worker's side: reads what to load, then answers calls until the socket closes."""
    pipe, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
    threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    try:
        sys.path, rewards = pickle.loads(pipe.recv_bytes())
        functions = [load_reward(reward if isinstance(reward, str) else pickle.loads(reward)) for reward in rewards]
        signatures = [Signature.of(function) for function in functions]
    except BaseException as error:  # a file may do anything when it is imported
        pipe.send(f"{type(error).__name__}: {error}")
        raise
    pipe.send(None)
    while True:
        try:
            number, call = pipe.recv()
        except EOFError:
            return
        pipe.send(attempt(functions[number], signatures[number], call))


def _end_with(parent: int) -> None:
    """A call that hangs reads no socket, so a thread looks whether the parent is still there."""
    while os.getppid() == parent:
        time.sleep(1)
    os.killpg(0, signal.SIGKILL)
