"""Every script in examples/ runs, and does what it says."""

import json
import os
import runpy
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from warpup import cli, data

EXAMPLES = ROOT / "examples"
TESTED = {
    "own_loop.py",
    "second_try.py",
    "trl_grpo.py",
    "certify_network.py",
    "numpy_arrays.py",
    "own_reward",
}

pytestmark = pytest.mark.usefixtures("one_thread")


def run(monkeypatch, name: str, *arguments):
    """What `main` of an example returns, as `python examples/NAME ARGUMENTS` runs it."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    return runpy.run_path(str(EXAMPLES / name))["main"]()


def test_all_are_tested():
    there = {p.name for p in EXAMPLES.iterdir() if p.name not in ("README.md", "__pycache__")}
    assert there == TESTED
    assert all(name in (EXAMPLES / "README.md").read_text() for name in TESTED)


def test_own_loop_learns(monkeypatch, capsys):
    assert run(monkeypatch, "own_loop.py", "--steps", 30) > 0.5  # by chance 5 / 26
    assert "reward" in capsys.readouterr().out


def test_second_try_plays_both_turns(tmp_path, monkeypatch, capsys):
    # After three steps no answer is right, and nothing would be learned: here every third length is.
    monkeypatch.setattr(data, "verify", lambda text, row: data.Verdict(1.0, True, True, len(text) % 3 == 1))
    sizes = ("--warm-steps", 3, "--steps", 1, "--held-out", 2)
    shares = run(monkeypatch, "second_try.py", *sizes, "--out", tmp_path / "run")
    assert all(0 <= share <= 1 for share in shares)
    line = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert "\n...\n" in line["sample"]["completion"]  # two turns


def test_certify_network_proves_most(monkeypatch):
    right, proven = run(monkeypatch, "certify_network.py", "--steps", 150)
    assert 0.4 < proven <= right


def test_numpy_arrays_needs_no_torch():
    command = [sys.executable, EXAMPLES / "numpy_arrays.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode == 0, done.stderr
    assert "torch was imported: False" in done.stdout
    assert float(done.stdout.split("NumPy:")[1].split()[0]) < 1e-5


@pytest.mark.filterwarnings("ignore::FutureWarning:transformers")
def test_trl_grpo(monkeypatch):
    pytest.importorskip("trl")
    pytest.importorskip("datasets")
    history = run(monkeypatch, "trl_grpo.py", "--steps", 1)
    assert "loss" in history[0]


def test_own_reward(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run(monkeypatch, "own_reward/prepare.py")
    for name in ("reward.py", "train.toml"):
        (tmp_path / name).write_text((EXAMPLES / "own_reward" / name).read_text())
    assert cli.main(["train", "train.toml", "--warmup.steps", "20", "--rlvr.steps", "2"]) == 0
    assert cli.main(["eval", "run", "--json", "--trust"]) == 0
    numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert numbers["reward"] > 0.1
    assert 0 <= numbers["greedy"] <= 1
