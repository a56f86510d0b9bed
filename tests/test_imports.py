"""What imports cost: `import warpup` reads a list of names, and the arrays work where there is no torch."""

import inspect
import subprocess
import sys

import pytest

import warpup
from warpup import arrays

FUNCTIONS = [name for name in dir(arrays) if not name.startswith("_") and name != "build_info"]
FUNCTIONS = [name for name in FUNCTIONS if inspect.isroutine(getattr(arrays, name))]


def run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_imports_next_to_nothing():
    """What takes time is other packages, so: which ones come (how long it takes: `python -m bench.imports`)."""
    program = "import sys; before = set(sys.modules); import warpup; print(*set(sys.modules) - before)"
    loaded = set(run(program).split())
    assert {name.partition(".")[0] for name in loaded} - sys.stdlib_module_names == {"warpup", "lazy_loader"}
    assert {name for name in loaded if name.startswith("warpup")} == {"warpup", "warpup._cpu"}
    assert len(loaded) < 40  # 20 when this was written, all of them small


def test_names_come_when_they_are_used():
    run("import warpup; assert warpup.advantage.grpo; assert callable(warpup.token_logprob)")
    assert set(warpup.__all__) <= set(dir(warpup))
    with pytest.raises(AttributeError, match="token_logprop"):
        _ = warpup.token_logprop


def test_arrays_work_without_torch():
    out = run(
        "import sys; sys.modules['torch'] = None\n"  # an import of it is an error
        "import numpy as np\n"
        "from warpup import arrays\n"
        "x, out = np.array([1, 0, 0, 1], np.float32), np.empty(4, np.float32)\n"
        "arrays.group_advantage(x, group_size=4, advantages=out)\n"
        "print(out.tolist())"
    )
    assert [value > 0 for value in eval(out)] == [True, False, False, True]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arrays_describe_themselves(name):
    """A docstring, and a signature that editors and `inspect` can read."""
    function = getattr(arrays, name)
    assert len(inspect.getdoc(function).split()) >= 4
    parameters = inspect.signature(function).parameters
    assert len(parameters) >= 2
    assert "args" not in parameters
