"""A model in shards over two processes: numbers and weights of one, checkpoints of any number of processes, and what
happens when one is killed."""

import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.support.processes import assert_passed, assert_same_run, free_port, spawned
from tests.support.tiny import Killed, killer, log_of
from tests.train import fsdp_checks
from warpup.train import checkpoint, ranks
from warpup.train.errors import TrainError
from warpup.train.model.load_model import load_model
from warpup.train.shard_files import tensors_in_shards

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The folder in which two processes ran all checks."""
    folder = tmp_path_factory.mktemp("two")
    with pytest.raises(Killed):
        fsdp_checks.trained("warmup", folder / "one", killer(4))  # for two to go on with
    spawned(fsdp_checks.main, folder, fsdp_checks.CHECKS, 240)
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The folder in which one process ran the warm-up."""
    folder = tmp_path_factory.mktemp("one")
    fsdp_checks.trained("warmup", folder)
    return folder


@pytest.mark.parametrize("name", fsdp_checks.CHECKS)
def test_in_two_processes(two, name):
    assert_passed(two, name)


@pytest.mark.parametrize("name", [name for name in fsdp_checks.recipes() if name != "warmup"])
def test_numbers_and_weights_are_those_of_one(two, tmp_path, name):
    fsdp_checks.trained(name, tmp_path)
    near = {"rel": 2e-3, "abs": 2e-4} if name in fsdp_checks.SAMPLED else {"rel": 1e-5, "abs": 1e-7}
    weights = "adapter_model.safetensors" if name == "adapters" else "model.safetensors"
    assert_same_run(tmp_path / name, two / "two" / name, weights=weights, **near)


def test_a_checkpoint_is_in_shards_and_no_model(two):
    newest = checkpoint.latest(two / "two" / "warmup" / "1-warmup")
    assert len(list(newest.glob("shards/*.safetensors"))) == 2
    held, model = tensors_in_shards(newest), fsdp_checks.small()
    for name, parameter in model.named_parameters():
        assert held[f"model.{name}"].shape == parameter.shape
        assert held[f"model.{name}"].dtype == torch.float64
    moments = [name for name in held if name.startswith("optimizer.")]
    assert len(moments) == 2 * len(list(model.parameters())), sorted(held)
    with pytest.raises(TrainError, match="holds the shards of a run with fsdp that is not finished"):
        load_model(newest)


def test_two_processes_go_on_where_one_stopped(two, one):
    """To the weights of one that was not stopped, and the log says what has changed."""
    log = log_of(two / "one" / "warmup")
    assert [line["message"] for line in log if line.get("event") == "rank_changes"] == [
        "processes: 1 before, 2 with fsdp now: not exact"
    ]
    assert_same_weights(one / "warmup", two / "one" / "warmup")


def test_a_killed_run_of_two_is_ended_by_one(tmp_path, one):
    """The rank that is left says within seconds what has happened; the curve is that of a run which was not killed."""
    began = time.monotonic()
    codes = spawned(fsdp_checks.one_is_killed, tmp_path, [], 120)
    assert codes == [1, -signal.SIGKILL]
    assert time.monotonic() - began < 110
    assert (tmp_path / "told").read_text().startswith("TrainError: rank 0: another process of this run has ended")
    assert checkpoint.latest(tmp_path / "warmup" / "1-warmup").name == "step-00000003"

    fsdp_checks.trained("warmup", tmp_path)
    losses = [[line["loss"] for line in log_of(run / "warmup") if "loss" in line] for run in (one, tmp_path)]
    assert len(losses[0]) == 8
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert_same_weights(one / "warmup", tmp_path / "warmup")


def assert_same_weights(run, other):
    files = [load_file(folder / "model" / "model.safetensors") for folder in (run, other)]
    for key in files[0]:
        torch.testing.assert_close(files[1][key], files[0][key], rtol=1e-5, atol=1e-7, msg=key)


def test_damaged_shards_are_named(two):
    newest = checkpoint.latest(two / "two" / "packed" / "1-warmup")
    shard = newest / "shards" / "shard-00002-model-00001-of-00001.safetensors"
    held = shard.read_bytes()
    shard.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    try:
        with pytest.raises(TrainError, match=rf"{shard.name} is damaged: its checksum is another one"):
            checkpoint.load_weights(fsdp_checks.llama(), newest)
    finally:
        shard.write_bytes(held)
    with pytest.raises(TrainError, match=r"is torch.float64 .* expected torch.float32"):
        checkpoint.load_weights(fsdp_checks.llama(), newest)


def test_under_accelerate(project):
    pytest.importorskip("accelerate")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--main_process_port", str(free_port()), "-m", "warpup", "train", "run.toml"]
    done = subprocess.run([*launch, "--out", "two", "--fsdp"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained 1-warmup") == 1
    assert list((project / "two").glob("1-warmup/step-*/shards/*.safetensors"))
    alone = subprocess.run([sys.executable, "-m", "warpup", "train", "run.toml"], capture_output=True, text=True)
    assert alone.returncode == 0, alone.stderr
    losses = [[line["loss"] for line in log_of(project / out) if "loss" in line] for out in ("run", "two")]
    assert len(losses[0]) >= 4  # of RLVR a step may have had nothing to learn from
    assert losses[1] == pytest.approx(losses[0], rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"ACCELERATE_USE_FSDP": "true"}, "ACCELERATE_USE_FSDP: got 'true' from accelerate.* and set fsdp = true"),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "ACCELERATE_MIXED_PRECISION: got 'bf16' .* and set dtype"),
        ({"ACCELERATE_MIXED_PRECISION": "no", "MASTER_PORT": "29500"}, "was asked for several processes, and on CPUs"),
    ],
)
def test_what_accelerate_is_told_and_would_not_be_done_is_refused(monkeypatch, variables, said):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(TrainError, match=said), ranks.data_parallel():
        pass
