"""Trainings side by side."""

import queue
import signal
import threading

import pytest

from warpup.apps import _jobs
from warpup.train.run import Signals

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_child_that_was_stopped_is_not_told_again(monkeypatch):
    """Ctrl-C on a terminal reaches the child as well as its parent, which tells it a second time, maybe much later."""
    monkeypatch.setattr(_jobs, "_stop", threading.Event())
    monkeypatch.setattr(_jobs, "_messages", queue.Queue())
    monkeypatch.setattr(_jobs.multiprocessing, "parent_process", threading.main_thread)

    def work(report):
        with Signals() as signals:
            signal.raise_signal(signal.SIGINT)
            signals.received -= 60
            _jobs._stop.set()
            report("stage", 1, 2, {})
            return "saved"

    assert _jobs.run_in_child(work, ()) == "saved"
