"""A public function's name leads to its kernel, tests and benchmark: docs/operators.md, and `warpup info NAME`."""

import inspect
import re
import shutil
import subprocess
import sys

import pytest

import warpup
from tests.conftest import ROOT
from tools import operators as index
from warpup import cli, info

FUNCTIONS = [name for name in warpup.__all__ if inspect.isroutine(getattr(warpup, name))]


def test_page_is_up_to_date():
    assert index.PAGE.read_text() == index.page(), "run `python tools/operators.py`"


def test_every_public_function_is_there():
    assert list(info.places()) == [o.name for o in index.operators()]
    assert sorted(info.places()) == sorted(FUNCTIONS)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_name_leads_to_its_files(name, capsys):
    place = info.places()[name]
    assert place.tests
    for path in (place.module, *place.kernel, *place.tests, *place.benchmark):
        assert (ROOT / path).is_file()
    assert (ROOT / place.module).read_text().splitlines()[place.line - 1].startswith(f"def {name}(")
    assert cli.main(["info", name]) == 0
    printed = capsys.readouterr().out
    assert f"{place.module}:{place.line}\n" in printed
    assert all(path in printed for path in place.kernel)


def test_every_kernel_has_a_caller():
    """A kernel that no public function reaches would be dead code; what is reached is a kernel or composed of some."""
    reached = {stem for o in index.operators() for stem in o.kernels}
    assert reached == set(index.kernels().values())
    ops = {op for o in index.operators() for op in o.reach.ops}
    assert ops <= index.registered().keys() | index.composites().keys()


def test_what_runs_it_is_in_words():
    """As torch has it: a function with a kernel of its own calls an op that is registered for the CPU."""
    rows = dict(info.kernels())
    assert all(rows.values())
    assert rows["divergence"].startswith("CPU kernel, CUDA kernel")
    assert rows["linear_divergence"] == info.places()["linear_divergence"].runs == "library products + fused epilogue"
    for name, place in info.places().items():
        if place.runs.startswith("CPU kernel, CUDA kernel") and "(" not in place.runs and name in rows:
            assert rows[name].startswith("CPU kernel, CUDA kernel")


def test_braces():
    assert info.expand("a/b{.h,_cpu.cpp}") == ["a/b.h", "a/b_cpu.cpp"]
    assert info.expand("a/b.h") == ["a/b.h"]
    for files in (["a/b.h", "a/b_cpu.cpp"], ["a/b.h"], ["a/b_torch.cpp", "a/b_check.h"]):
        assert info.expand(index.braces(files)) == files


@pytest.mark.parametrize("wrong", ["grouped_m", "warpup.grouped_m"])
def test_an_unknown_name_suggests_near_ones(wrong, capsys):
    assert cli.main(["info", wrong]) == 2
    assert re.search(r"no operator 'grouped_m'; near: grouped_mm\b", capsys.readouterr().err)


def test_installed_without_the_repository(tmp_path):
    """Only the package and the index beside it, and nothing that imports torch: an answer in no time."""
    shutil.copytree(ROOT / "python/warpup", tmp_path / "warpup", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(index.PAGE, tmp_path / "warpup")
    find = "import sys; from warpup.cli import main; sys.exit(main(['info', 'divergence']) or 'torch' in sys.modules)"
    command, path = [sys.executable, "-c", find], {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=tmp_path, env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "csrc/divergence/divergence_cpu.cpp" in done.stdout
