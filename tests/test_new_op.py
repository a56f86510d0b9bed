"""tools/new_op.py makes every place of an operator. That the skeleton builds and keeps the contract was tried by hand:
it takes a whole build (see CONTRIBUTING.md)."""

import shutil
import subprocess
import sys

import pytest

from tests.conftest import ROOT

ENDINGS = (".h", "_cpu.cpp", "_cuda.cu", "_check.h", "_check.cpp", "_torch.cpp", "_arrays.cpp")
PLACES = [f"csrc/moe/moe_permute{ending}" for ending in ENDINGS]
PLACES += ["python/warpup/moe/moe_permute.py", "python/warpup/__init__.pyi", "tests/moe/spec_moe_permute.py"]
PLACES += ["tests/cpp/fuzz_moe_permute.cpp", "docs/operators.md"]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A copy of the sources."""
    folder = tmp_path_factory.mktemp("tree")
    for room in ("csrc", "python", "tests", "bench", "docs", "tools"):
        shutil.copytree(ROOT / room, folder / room, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    return folder


def new_op(tree, *arguments) -> tuple[int, str, str]:
    command = [sys.executable, tree / "tools/new_op.py", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_it_makes_ten_places(tree):
    code, out, error = new_op(tree, "moe", "moe_permute")
    assert code == 0, error
    assert {line for line in out.splitlines() if "/" in line and " " not in line} == set(PLACES)
    for place in PLACES:
        text = (tree / place).read_text()
        assert "moe_permute" in text
        assert not {"new_op", "NewOp", "new_family"} & set(text.replace("(", " ").replace("/", " ").split())
        if place.endswith(".py"):
            compile(text, place, "exec")
    assert "MoePermuteArgs" in (tree / "csrc/moe/moe_permute.h").read_text()
    row = next(line for line in (tree / "docs/operators.md").read_text().splitlines() if "`moe_permute`" in line)
    assert "CPU kernel, CUDA kernel" in row
    assert "spec_moe_permute.py" in row


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "python tools/new_op.py FAMILY NAME"),
        (("moe", "Permute"), "python tools/new_op.py FAMILY NAME"),
        (("core", "permute"), "no family 'core'"),
        (("moe", "moe_gather"), "exists already"),
    ],
)
def test_wrong_calls_change_nothing(tree, arguments, message):
    code, _, error = new_op(tree, *arguments)
    assert code == 2
    assert message in error
