"""Trainings side by side."""

import queue
import signal
import threading

import pytest

from warpup.apps import _jobs
from warpup.train.signals import Signals

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


def test_as_many_jobs_as_asked_for_but_not_more_than_tasks(monkeypatch):
    monkeypatch.setattr(_jobs.os, "cpu_count", lambda: 4)
    assert [_jobs.jobs_for(*given) for given in ((0, 2), (0, 9), (3, 9), (3, 2), (1, 9))] == [2, 4, 3, 2, 1]


def test_one_job_runs_here_on_one_thread(threads):
    import torch

    threads(2)
    seen = []
    found = _jobs.run_jobs(
        lambda x, report: (report(x), x * x, torch.get_num_threads())[1:], [(2,), (3,)], 1, seen.append
    )
    assert found == [(4, 1), (9, 1)]
    assert seen == [2, 3]
