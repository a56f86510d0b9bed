"""The two binaries: what they link, what they carry, which ABI they stand on; and what the sources may include."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, build
from warpup import _native

CORE = Path(_native.arrays.__file__)


def output_of(*command) -> str:
    search = f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin"
    tool = shutil.which(command[0]) or shutil.which(command[0], path=search)
    if tool is None:
        pytest.skip(f"{command[0]} is not installed")
    done = subprocess.run([tool, *map(str, command[1:])], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    return done.stdout


def needed(library: Path) -> set[str]:
    return set(re.findall(r"\(NEEDED\).*\[(.*)\]", output_of("readelf", "-d", library)))


def test_ops_library_is_on_the_stable_abi():
    report = output_of("torch-abi-audit", "--check", "torch", "--verbose", _native.OPS_LIBRARY)
    assert "STABLE" in report
    assert "2.10" in report, report


def test_ops_library_is_python_agnostic_and_needs_no_cudart():
    libraries = needed(_native.OPS_LIBRARY)
    assert "libtorch.so" in libraries, "without it the stream of a CUDA torch is not found"
    assert not [
        name for name in libraries if re.match(r"libpython|libcudart|libcuda\.|libtorch_python|libc10_cuda", name)
    ]


def test_core_does_not_link_torch():
    assert not [name for name in needed(CORE) if re.match(r"libtorch|libc10|libcudart|libcuda\.", name)]


@pytest.mark.parametrize("library", [_native.OPS_LIBRARY, CORE], ids=["ops", "core"])
def test_no_build_paths(library):
    """Error messages of torch's headers carry __FILE__."""
    carried = {path for path in (str(ROOT), str(Path.home()), sys.prefix) if len(path) > 5}
    text = library.read_bytes()
    assert not [path for path in carried if path.encode() in text]


def test_version():
    assert _native.arrays.build_info()["version"] == importlib.metadata.version("warpup")


def test_torch_and_pybind11_are_included_in_bind_only():
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert len(sources) > 20
    framework = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|pybind11|dlpack|Python\.h)')
    guilty = [p for p in sources if p.parent.name != "bind" and framework.search(p.read_text())]
    assert not guilty
    entries = [p for p in (ROOT / "csrc/bind").glob("*.h") if p.stem in {d.name for d in (ROOT / "csrc").iterdir()}]
    assert entries, "bind/<family>.h: the entries, which serve any framework"
    assert not [p for p in entries if framework.search(p.read_text())]


def test_host_executor():
    """The CUDA stand-in that the `hostcuda` twins run on passes its own tests."""
    folder = build("hostcuda_selftest")
    done = subprocess.run([folder / "hostcuda_selftest"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert re.search(r"[1-9]\d* passed, 0 failed", done.stdout)
