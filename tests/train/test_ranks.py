"""Two processes that share a run: numbers and weights of one, resumes, and what happens when one of them ends."""

import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.support.processes import assert_passed, assert_same_run, free_port, spawned
from tests.support.tiny import log_of
from tests.train import rank_checks
from warpup.train import ranks
from warpup.train.errors import TrainError

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes ran all checks."""
    folder = tmp_path_factory.mktemp("two")
    spawned(rank_checks.main, folder, rank_checks.CHECKS, 240)
    return folder


@pytest.mark.parametrize("name", rank_checks.CHECKS)
def test_in_two_processes(two, name):
    assert_passed(two, name)


@pytest.mark.parametrize("name", rank_checks.recipes())
def test_numbers_and_weights_are_those_of_one(two, tmp_path, name):
    rank_checks.trained(name, tmp_path)
    near = {"rel": 2e-3, "abs": 2e-4} if name in rank_checks.SAMPLED else {"rel": 1e-5, "abs": 1e-7}
    folder = name.replace(" ", "-")
    assert_same_run(tmp_path / folder, two / "two" / folder, **near)


def test_one_process_goes_on_where_two_stopped(two):
    """To the weights of two that were not stopped, and the log says what has changed."""
    resumed = rank_checks.trained("warmup", two / "stopped")
    log = log_of(two / "stopped" / "warmup")
    assert [line["message"] for line in log if line.get("event") == "rank_changes"] == [
        "processes: 2 before, 1 now: not exact"
    ]
    steps = [line["step"] for line in log if "loss" in line]
    assert steps == list(range(1, 9))
    whole = load_file(two / "two" / "warmup" / "model" / "model.safetensors")
    for key, value in whole.items():
        torch.testing.assert_close(resumed[key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_where_one_raises_all_end(tmp_path):
    began = time.monotonic()
    codes = spawned(rank_checks.one_raises, tmp_path, [], 120)
    assert codes == [1, 1]
    ended = [(tmp_path / f"raised.{rank}").stat().st_mtime for rank in range(2)]
    assert ended[0] - ended[1] < 10
    assert time.monotonic() - began < 110
    assert (tmp_path / "raised.1").read_text() == "ValueError: this one"
    told = (tmp_path / "raised.0").read_text()
    assert told.startswith("TrainError: rank 0: another process of this run has ended, its own message says why")


def test_under_torchrun(project):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port"]
    command = [*torchrun, str(free_port()), "-m", "warpup", "train", "run.toml", "--out", "two"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 1-warmup") == 1
    alone = subprocess.run([sys.executable, "-m", "warpup", "train", "run.toml"], capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    losses = [[line["loss"] for line in log_of(project / out) if "loss" in line] for out in ("run", "two")]
    assert len(losses[0]) >= 4  # of RLVR a step may have had nothing to learn from
    assert losses[1] == pytest.approx(losses[0], rel=1e-3, abs=1e-4)


def test_a_rank_that_cannot_be_is_refused_at_once(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(TrainError, match=r"RANK: expected 0 to 1 \(WORLD_SIZE - 1\), got 2"), ranks.data_parallel():
        pass


def test_without_a_launcher_there_is_one():
    with ranks.data_parallel():
        assert (ranks.rank(), ranks.size()) == (0, 1)
        assert ranks.share([1, 2]) == [1, 2]
        assert ranks.total(3, 0.5) == [3, 0.5]
