"""`warpup continual`: what it shows, its reuse, its errors in one line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tests.support.command import call
from tests.support.continual import SHORT
from warpup.apps.continual import learners
from warpup.apps.continual.command import run_continual
from warpup.apps.continual.settings import METHODS, ContinualArguments
from warpup.train import TrainError

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_command_shows_writes_and_reuses(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("warpup.apps.continual.command.Settings", lambda scenario: replace(SHORT, scenario=scenario))
    out = tmp_path / "out"
    for method, (_, folder) in runs.items():  # already learned
        shutil.copytree(folder, out / "seed-0" / method)
    code, text, _ = call(capsys, "continual", "--out", out, "--jobs", 1)
    assert code == 0
    for word in (*METHODS, "when learned", "certified", "after the last", "mean", "every later network"):
        assert word in text, text
    assert max(map(len, text.splitlines()[:-1])) <= 80
    found = json.loads((out / "continual.json").read_text())
    assert [run["method"] for run in found] == list(METHODS)
    value = 100 * found[0]["certified"][-1][0]
    assert any(line.split()[-1:] == [f"{value:.1f}"] for line in text.splitlines() if "0 / 1" in line)
    assert (out / "continual.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(learners.Finetune, "learn", None)  # a second call must not train
    monkeypatch.setattr(learners.InterContiNet, "learn", None)
    monkeypatch.setattr(learners.Hyper, "learn", None)
    assert call(capsys, "continual", "--out", out, "--jobs", 1)[1] == text
    code, _, error = call(capsys, "continual", "--out", out, "--scenario", "domain", "--jobs", 1)
    assert code == 1
    assert "holds another run (scenario: there task, now domain)" in error

    monkeypatch.setattr("warpup.apps.continual.run.broken", lambda found: ["a lie"])
    code, _, error = call(capsys, "continual", "--out", out, "--jobs", 1)
    assert (code, error.strip().splitlines()[-1]) == (
        1,
        "warpup continual: a certificate was broken: a lie; a lie; a lie",
    )


def test_wrong_calls_end_in_one_line(tmp_path, capsys, monkeypatch):
    def error(*arguments, status=2):
        code, _, text = call(capsys, "continual", "--out", tmp_path / "out", *arguments)
        assert code == status
        assert (tmp_path / "out").exists() == (status == 1)
        return text

    assert "--seeds: expected at least 1, got 0" in error("--seeds", 0)
    assert "--jobs: expected at least 0, got -2" in error("--jobs", -2)
    assert "invalid choice 'ewc' for argument '--methods'" in error("--methods", "ewc")
    assert "Unrecognized options: digits; an option takes one value" in error("--seeds", 1, "digits")
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # not installed
    assert "the digits need scikit-learn: pip install 'scikit-learn>=1.3'" in error("--jobs", 1, status=1)


def test_ctrl_c_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("warpup.apps.continual.run.measure", interrupt)
    monkeypatch.setattr("warpup.apps.continual.command.Settings", lambda scenario: replace(SHORT, scenario=scenario))
    code, _, error = call(capsys, "continual", "--out", tmp_path, "--methods", "finetune", "--jobs", 1)
    assert code == 130
    assert "the same command goes on after the last finished task" in error


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_finishes_the_task_and_the_same_command_goes_on(runs, tmp_path, jobs):
    """As on a terminal: every process of the group gets the signal."""
    program = (
        "import sys; from warpup import cli; from warpup.apps.continual import command, settings\n"
        f"command.Settings = lambda scenario: settings.{SHORT!r}\n"
        "if __name__ == '__main__': sys.exit(cli.main(sys.argv[1:]))\n"
    )
    (tmp_path / "short.py").write_text(program)
    command = [sys.executable, "short.py", "continual", "--out", "out", "--jobs", str(jobs)]
    command += ["--methods", *("intercontinet", "hyperinterval")[:jobs]]
    run = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    # Every process is in its loop once it has saved a task; one that is still starting just ends.
    while run.poll() is None and len({step.parent for step in tmp_path.glob("out/seed-0/*/step-*")}) < jobs:
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGINT)
    text = run.communicate(timeout=120)[1]
    assert run.returncode == 130, text
    assert "Traceback" not in text
    found = re.search(r"(\w+), seed 0: stopped and saved after task (\d) of 5; the same command goes on from", text)
    assert found, text
    assert (tmp_path / f"out/seed-0/{found[1]}/step-0000000{found[2]}").exists()
    if jobs > 1:
        return
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    for result in json.loads((tmp_path / "out/continual.json").read_text()):  # as if it had not been stopped
        assert {**result, "seconds": 0} == {**runs[result["method"]][0], "seconds": 0}


def test_no_methods_is_an_error(tmp_path):
    with pytest.raises(TrainError, match="--methods: expected some of intercontinet"):
        run_continual(ContinualArguments(str(tmp_path), methods=()))
