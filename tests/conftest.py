"""Fixtures of all tests. `backend` runs a test on each implementation of an op: the CPU kernel, the CUDA kernel on the
host executor (`tests/cpp/hostcuda`), the CUDA kernel on a GPU where there is one."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

# Workers of pytest-xdist share the cores, and a thread that waits for another takes one as well: each test runs on as
# many threads as its worker has cores. What is about threads sets their number (`threads`).
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import torch
from hypothesis import HealthCheck, settings

from warpup import _native, _op

ROOT = Path(__file__).resolve().parent.parent

# `backend` changes nothing between the examples of one test, and a first call may compile or load something.
settings.register_profile(
    "warpup",
    deadline=None,
    derandomize="CI" in os.environ,
    print_blob=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("warpup")


def build(target: str) -> Path:
    """Builds `target` of tests/cpp, gives its folder. Other processes (pytest-xdist) wait, then find nothing to do."""
    scripts = Path(sys.executable).parent
    search = os.pathsep.join([str(scripts), os.environ.get("PATH", "")])
    cmake, ninja = (shutil.which(tool, path=search) for tool in ("cmake", "ninja"))
    if not (os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")):
        pytest.skip("no C++ compiler: the host executor cannot be built")
    if not (cmake and ninja):
        pytest.fail("cmake and ninja are missing: pip install 'warpup[test]'", pytrace=False)
    folder = ROOT / "build" / f"hostcuda-{sys.implementation.cache_tag}-torch{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    configure = [
        cmake, "-S", ROOT / "tests/cpp", "-B", folder, "-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]  # fmt: skip
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for command in (configure, [cmake, "--build", folder, "--target", target]):
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            if done.returncode != 0:
                pytest.fail(f"{' '.join(map(str, command))}\n{done.stdout[-6000:]}", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def hostcuda_ops():
    """`torch.ops.warpup_hostcuda`: the ops of `torch.ops.warpup`, CUDA kernels on CPU tensors."""
    torch.ops.load_library(build("warpup_hostcuda_ops") / "libwarpup_hostcuda_ops.so")
    return torch.ops.warpup_hostcuda


class HostOps:
    """The ops of the host executor; those that exist as compositions or on the CPU alone are the package's own, of what
    C++ composes on a CPU that of the GPU."""

    def __init__(self, ops):
        self.ops = ops

    def __getattr__(self, name):
        found = _op.composed.get(name) or getattr(self.ops if hasattr(self.ops, name) else torch.ops.warpup, name)
        setattr(self, name, found)
        return found


@dataclass(frozen=True)
class Backend:
    name: str
    device: str


# Where there is no GPU, tests of it are not even collected: they would be a third of all.
DEVICES = ["cpu", *(["cuda"] if _native.has_cuda() else [])]
BACKENDS = ["cpu", "hostcuda", *DEVICES[1:]]


def pytest_terminal_summary(terminalreporter) -> None:
    if "cuda" not in DEVICES:
        terminalreporter.write_line("no GPU: CUDA kernels ran on the host executor only")


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch) -> Backend:
    """Public functions called in the test run on this backend, on tensors of `backend.device`."""
    if request.param == "hostcuda":
        ops = request.getfixturevalue("hostcuda_ops")
        monkeypatch.setattr(_op, "ops", HostOps(ops))
    return Backend(request.param, "cuda" if request.param == "cuda" else "cpu")


@pytest.fixture(params=DEVICES)
def device(request) -> str:
    """For what the host executor has no part in: registrations, compilation, the pybind11 module."""
    return request.param


@pytest.fixture
def threads():
    """`torch.set_num_threads`, undone after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def one_thread(threads):
    """Models this small only lose by threads; what the test changes is put back."""
    threads(1)
