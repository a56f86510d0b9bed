"""Trackers get the numbers of every step, and no failure of theirs ends a training."""

import json
import math
import os
import sqlite3
import subprocess
import sys

import pytest

from tests.support.command import call, error
from warpup.train import TrainError
from warpup.train.log import quiet, together
from warpup.train.trackers import PATIENCE, SINKS, Tracker, run_name, tracking

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def written(monkeypatch):
    """What the tracker `json` (a package that is there) was given."""
    lines = []

    def sink(out, settings):
        lines.append(("open", settings))
        return lambda *given: lines.append(given), lambda: lines.append("close")

    monkeypatch.setitem(SINKS, "json", sink)
    return lines


def test_a_tracker_gets_finite_numbers_and_is_opened_once(tmp_path, written, capsys):
    with Tracker("json", tmp_path, {"seed": 3}) as tracker:
        assert written == []  # nothing is opened for a run that does not begin
        numbers = {"loss": 1.5, "groups": 2, "accuracy": math.nan, "sample": {"prompt": "a"}, "kind": "text"}
        tracker("1-warmup", 1, 9, numbers)
        tracker("2-rlvr", 1, 9, {"reward": 0.5})
    assert written == [("open", {"seed": 3}), ("1-warmup", 1, {"loss": 1.5, "groups": 2.0}),
                       ("2-rlvr", 1, {"reward": 0.5}), "close"]  # fmt: skip
    assert capsys.readouterr().err == ""


def test_failures_are_counted_and_told(tmp_path, monkeypatch, capsys):
    calls = []

    def sink(out, settings):
        def write(stage, step, numbers):
            calls.append(step)
            if step != 3:
                raise ConnectionError("no\n server")

        return write, lambda: 1 / 0

    monkeypatch.setitem(SINKS, "json", sink)
    with Tracker("json", tmp_path, {}) as tracker:
        for step in range(1, 31):
            tracker("one", step, 30, {})
    assert calls == list(range(1, 3 + PATIENCE + 1))  # after ten failures in a row it is left alone
    text = capsys.readouterr().err
    assert text == "json: 30 failures in 30 steps; first: ConnectionError: no server\n"  # 29 steps, and closing


def test_one_that_cannot_be_opened_is_no_end(tmp_path, monkeypatch, capsys):
    def sink(out, settings):
        raise OSError("no key")

    monkeypatch.setitem(SINKS, "json", sink)
    with Tracker("json", tmp_path, {}) as tracker:
        tracker("one", 1, 1, {})
    assert capsys.readouterr().err == "json: 1 failures in 1 steps; first: OSError: no key\n"


def test_a_package_that_is_missing_is_told_before_anything_runs(project, capsys, monkeypatch):
    monkeypatch.syspath_prepend(project)
    (project / "folder").mkdir()
    for name in ("nowhere", "folder"):  # a folder of a tracker's name, as wandb makes one, is no package
        with pytest.raises(TrainError, match=f"the tracker {name} is not installed: pip install {name}"):
            Tracker(name, project, {})
    monkeypatch.setattr("warpup.train.trackers.find_spec", lambda name: None)
    assert "track: the tracker wandb is not installed: pip install wandb" in error(
        capsys, "train", "run.toml", "--track", "wandb"
    )
    assert not (project / "run").exists()
    assert "track: expected 'trackio' or 'wandb' or 'tensorboard' or \"none\", got 'mlflow'" in error(
        capsys, "train", with_track(project, "mlflow")
    )


def with_track(project, kind):
    (project / "tracked.toml").write_text(f'track = "{kind}"\n' + (project / "run.toml").read_text())
    return "tracked.toml"


def test_no_tracker_is_none(tmp_path):
    with tracking(None, tmp_path, {}) as track:
        assert track is quiet
    seen = []
    together(lambda *given: seen.append(given), lambda *given: seen.append(given[0]))("one", 1, 2, {"a": 1})
    assert seen == [("one", 1, 2, {"a": 1}), "one"]


def test_a_folder_keeps_its_runs_name(tmp_path):
    name = run_name(tmp_path)
    assert name.startswith(tmp_path.name + "-")
    assert run_name(tmp_path) == name


def test_tensorboard_has_the_curves_of_a_run(project, capsys):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert call(capsys, "train", "run.toml", "--track", "tensorboard")[0] == 0
    events = EventAccumulator(str(project / "run" / "tensorboard"))
    events.Reload()
    log = [json.loads(line) for line in (project / "run" / "metrics.jsonl").read_text().splitlines()]
    for stage, name in (("1-warmup", "loss"), ("2-rlvr", "reward")):
        want = [(line["step"], line[name]) for line in log if line["stage"] == stage and name in line]
        got = [(event.step, event.value) for event in events.Scalars(f"{stage}/{name}")]
        assert [step for step, _ in got] == [step for step, _ in want]
        assert [value for _, value in got] == pytest.approx([value for _, value in want], rel=1e-6)


@pytest.mark.parametrize("kind", ["wandb", "trackio"])
def test_real_trackers_take_what_they_are_given(tmp_path, kind):
    """In a process of its own, since both keep threads and global state; two opens of one folder are one run."""
    pytest.importorskip(kind)
    program = f"""
from warpup.train.trackers import Tracker
for first in (1, 3):
    with Tracker({kind!r}, {str(tmp_path / "run")!r}, {{"lr": 1e-3}}) as tracker:
        for step in (first, first + 1):
            tracker("1-warmup", step, 4, {{"loss": 1.0 / step}})
            tracker("2-rlvr", 1, 4, {{"reward": 0.5}})
    print(tracker.calls, tracker.failures, tracker.first_failure)
"""
    (tmp_path / "run").mkdir()
    apart = {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(tmp_path / "db"),
        "HOME": str(tmp_path),
    }
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=os.environ | apart, capture_output=True, text=True, timeout=300)
    assert [line for line in done.stdout.splitlines() if line[:1].isdigit()] == ["4 0 ", "4 0 "], done.stderr[-2000:]
    if kind == "trackio":
        [database] = (tmp_path / "db").glob("*.db")
        query = "select run_name, step, metrics from metrics order by rowid"
        rows = [(name, step, json.loads(text)) for name, step, text in sqlite3.connect(database).execute(query)]
        assert {name for name, _, _ in rows} == {(tmp_path / "run" / "tracker-id").read_text()}
        losses = [(step, found["1-warmup/loss"]) for _, step, found in rows if "1-warmup/loss" in found]
        assert losses == [(step, 1.0 / step) for step in (1, 2, 3, 4)]
