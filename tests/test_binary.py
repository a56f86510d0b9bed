"""The four libraries: what they link, what they carry, which ABI they stand on; and what the sources may include."""

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, build
from warpup import _cpu, _native

ARRAYS = Path(_native.arrays.__file__)
KERNELS = ARRAYS.with_name("libwarpup_kernels.so")
CPU = [ARRAYS.with_name("libwarpup_cpu.so"), *sorted(ARRAYS.parent.glob("glibc-hwcaps/*/libwarpup_cpu.so"))]


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


def exported(library: Path) -> list[str]:
    """What a library offers to others: the kind of symbol and the demangled name."""
    return [line.split(" ", 1)[1] for line in output_of("nm", "-DC", "--defined-only", library).splitlines()]


def in_python_without_torch(code: str) -> str:
    """Runs `code` where an import of torch fails; `arrays` is loaded by its path, without the package."""
    load = (
        "import sys, importlib.util as u; sys.modules['torch'] = None; "
        f"spec = u.spec_from_file_location('arrays', {str(ARRAYS)!r}); arrays = u.module_from_spec(spec); "
        "spec.loader.exec_module(arrays); "
    )
    return output_of(sys.executable, "-c", load + code)


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


@pytest.mark.parametrize("library", [ARRAYS, KERNELS, *CPU], ids=lambda path: path.name)
def test_only_the_ops_library_links_torch(library):
    assert not [name for name in needed(library) if re.match(r"libtorch|libc10|libcudart|libcuda\.|libpython", name)]


@pytest.mark.parametrize("library", [_native.OPS_LIBRARY, ARRAYS], ids=["ops", "arrays"])
def test_kernels_are_linked_once(library):
    assert KERNELS.name in needed(library)
    assert "$ORIGIN" in output_of("readelf", "-d", library)
    assert library.stat().st_size < KERNELS.stat().st_size / 2


@pytest.mark.parametrize("library", [KERNELS, *CPU], ids=lambda path: path.name)
def test_kernels_export_nothing_but_warpup(library):
    names = exported(library)
    assert names
    assert not [name for name in names if "warpup::" not in name]


@pytest.mark.parametrize("library", [_native.OPS_LIBRARY, ARRAYS, KERNELS, *CPU], ids=lambda path: path.name)
def test_no_build_paths(library):
    """Error messages of torch's headers carry __FILE__."""
    carried = {path for path in (str(ROOT), str(Path.home()), sys.prefix) if len(path) > 5}
    text = library.read_bytes()
    assert not [path for path in carried if path.encode() in text]


def test_instruction_sets():
    """Each library is compiled for its own, and exports what the others do."""
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("one for all on this machine")
    assert [path.parent.name for path in CPU[1:]] == ["x86-64-v3", "x86-64-v4"]
    functions = [{name for name in exported(path) if re.match(r"T warpup::\w+_cpu\(", name)} for path in CPU]
    assert functions[0]
    assert functions[0] == functions[1] == functions[2]
    zmm, ymm = ({path for path in CPU if register in output_of("objdump", "-d", path)} for register in ("zmm", "ymm"))
    assert ymm >= set(CPU[1:])  # files for one instruction set alone choose at run time, in each of the libraries
    assert CPU[2] in zmm


def under_level(level: str, code: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "WARPUP_CPU": level}
    return subprocess.run([sys.executable, "-c", code], env=environment, text=True, capture_output=True)


def test_a_level_is_forced():
    """WARPUP_CPU chooses the library; what it may not be is said with what it may."""
    say = "from warpup import arrays; print(arrays.build_info()['cpu'])"
    levels = _cpu.levels()
    for level in levels:
        assert under_level(level, say).stdout.startswith(level), level
    refused = under_level("pentium", say)
    assert refused.returncode != 0
    assert "WARPUP_CPU=pentium" in refused.stderr
    assert all(level in refused.stderr for level in levels)


def test_the_loader_takes_the_best_level():
    levels = _cpu.levels()
    if not levels:
        pytest.skip("one for all on this machine")
    if "WARPUP_CPU" in os.environ:
        pytest.skip("one is forced")
    assert _native.arrays.build_info()["cpu"].startswith(list(levels)[-1])


def test_a_loader_that_does_not_know_levels():
    """An older glibc looks into no folder of a level: then the best one is loaded first."""
    levels = _cpu.levels()
    if not levels or "WARPUP_CPU" in os.environ:
        pytest.skip("nothing to choose")
    code = "import os; os.confstr = lambda name: 'glibc 2.28'; import warpup; print(open('/proc/self/maps').read())"
    maps = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert str(list(levels.values())[-1]) in maps


def test_version():
    assert _native.arrays.build_info()["version"] == importlib.metadata.version("warpup")


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_one_thread_pool():
    """The kernels run on torch's threads, and no second OpenMP runtime came with them."""
    code = (  # in a process without the other packages of the tests, which bring their own
        "import os, re; from warpup import _native; print(_native.arrays.build_info()['threads'])\n"
        "paths = {line.split()[-1] for line in open('/proc/self/maps')}\n"
        "print(len({os.path.realpath(path) for path in paths if re.search('lib(gomp|omp|iomp)', path)}))"
    )
    pool, runtimes = subprocess.check_output([sys.executable, "-c", code], text=True).split()
    assert pool == "torch"
    assert int(runtimes) <= 1


@pytest.mark.parametrize("through", ["torch.ops.load_library", "ctypes.CDLL"])
def test_a_second_copy_of_the_ops_is_an_error_that_names_both(tmp_path, through):
    """Two that register the same names abort the process."""
    for library in KERNELS.parent.glob("lib*.so"):
        shutil.copy(library, tmp_path)
    copy = tmp_path / _native.OPS_LIBRARY.name
    code = (
        f"import ctypes, torch; {through}({str(copy)!r})\n"
        "try: import warpup._native\n"
        "except ImportError as error: print(error)"
    )
    text = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert f"{copy} is loaded, and {_native.OPS_LIBRARY} would register" in text


def test_arrays_without_torch():
    """They load, run on a pool of their own, and an error crosses the libraries with its message."""
    code = (
        "import numpy as np; assert arrays.build_info()['threads'] != 'torch'; x = np.ones((3, 4), np.float32)\n"
        "try: arrays.masked_moments(x, partials=x, moments=x)\n"
        "except ValueError as e: print(e)"
    )
    assert "masked_moments: " in in_python_without_torch(code)


def test_frameworks_are_included_in_the_bridges_only():
    sources = [p for p in (ROOT / "csrc").rglob("*") if p.suffix in {".h", ".cpp", ".cu", ".cuh"}]
    assert len(sources) > 20
    framework = re.compile(r'#\s*include\s*[<"](torch|ATen|c10|pybind11|dlpack|Python\.h|arrays/)')
    bridges = {p for p in sources if p.parent.name in {"torch", "arrays"} or p.stem.endswith(("_torch", "_arrays"))}
    guilty = [p for p in sources if p not in bridges and framework.search(p.read_text())]
    assert not guilty
    assert [p for p in bridges if framework.search(p.read_text())]


def test_every_entry_is_fuzzed():
    """The sanitizer driver calls each entry that the kernels' library exports; csrc/core has none."""
    folder = build("fuzzers") / "CMakeFiles/fuzzers.dir"
    called = set()
    for examples in folder.glob("fuzz*.o"):
        called |= set(re.findall(r" U warpup::(\w+)\(", output_of("nm", "-uC", examples)))
    core = "".join(path.read_text() for path in (ROOT / "csrc/core").iterdir())
    names = {m[1] for symbol in exported(KERNELS) if (m := re.match(r"T warpup::(\w+)\(", symbol))}
    arrays = "".join(path.read_text() for path in (ROOT / "csrc").glob("*/*_arrays.cpp"))  # which offers every entry
    entries = {n for n in names if re.search(rf"\b{n}\b", arrays) and not re.search(rf"\b{n}\(", core)}
    assert entries
    assert not sorted(entries - called)


def test_host_executor():
    """The CUDA stand-in that the `hostcuda` kernels run on passes its own tests."""
    folder = build("hostcuda_selftest")
    done = subprocess.run([folder / "hostcuda_selftest"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    assert re.search(r"[1-9]\d* passed, 0 failed", done.stdout)
