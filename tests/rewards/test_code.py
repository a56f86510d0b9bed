"""Programs against tests: what passes, what fails, and what must not bring the trainer down."""

import time
from pathlib import Path

import pytest

from warpup.rewards import code_execution

ADD = ["assert add(1, 2) == 3", "assert add(-1, 1) == 0"]


def block(code):
    return f"<think>def add(a, b): ...</think> Here it is:\n```python\n{code}\n```\nDone."


@pytest.mark.parametrize(
    ("completion", "right"),
    [
        (block("def add(a, b):\n    return a + b"), True),
        (block("def add(a, b):\n    return a - b"), False),
        (block("def add(a, b):\n    return a") + block("def add(a, b):\n    return a + b"), True),
        (block("def add(a, b:"), False),
        (block("import sys\ndef add(a, b):\n    return a + b\nsys.exit(0)"), False),  # nothing was tested
        (block("import os\nprint(2, flush=True)\nos._exit(0)"), False),
        (block("import dataclasses as d\n@d.dataclass\nclass P:\n    x: 'int'\nadd = lambda a, b: P(a).x + b"), True),
        ("def add(a, b): return a + b", False),  # no block
        ("", False),
    ],
)  # fmt: skip
def test_asserts(completion, right):
    assert code_execution(completion, {"tests": ADD}, timeout=30) == (float(right), right)


def test_one_text_of_tests_and_shares():
    half = block("def add(a, b):\n    return 3")
    assert code_execution(half, {"tests": ADD}, partial=True, timeout=30) == (0.5, False)
    assert code_execution(half, {"tests": ADD}, timeout=30) == (0.0, False)
    tests = "def check(f):\n    assert f(1, 2) == 3\ncheck(add)"
    assert code_execution(half, {"check": tests}, tests="check", timeout=30) == (1.0, True)


def test_programs_that_read_and_print():
    tests = [{"input": "1 2\n", "output": "3"}, {"input": "5 5\n", "output": "10\n"}]
    for code in (
        "a, b = map(int, input().split())\nprint(a + b, '')",
        "import sys\na, b = sys.stdin.buffer.read().split()\nprint(int(a) + int(b))\nsys.exit()",
    ):
        assert code_execution(block(code), {"tests": tests}, timeout=30) == (1.0, True)
    assert code_execution(block("print(3)"), {"tests": tests}, partial=True, timeout=30) == (0.5, False)
    assert not code_execution(block("print(3)\nraise SystemExit(1)"), {"tests": tests[:1]}, timeout=30).correct


def test_limits(tmp_path):
    right = "\ndef add(a, b):\n    return a + b"
    for code in (
        "x = bytearray(900 << 20)",  # memory
        "open('big', 'wb').write(bytes(9 << 20))",  # a file
        "print('a' * (9 << 20), flush=True)",
        "import signal, os\nos.kill(os.getpid(), signal.SIGKILL)",
        "import sys\nsys.setrecursionlimit(10**9)\nf = lambda: f()\nf()",
    ):
        options = {"memory_mb": 512, "file_mb": 4, "timeout": 30}
        assert not code_execution(block(code + right), {"tests": ADD}, **options).correct, code
    child = tmp_path / "child"
    code = "import subprocess\nsleep = subprocess.Popen(['sleep', '600'])\n"
    code += f"open({str(child)!r}, 'w').write(str(sleep.pid))\nwhile True: pass"
    began = time.monotonic()
    assert not code_execution(block(code + right), {"tests": ADD}, timeout=5).correct
    assert time.monotonic() - began < 30
    time.sleep(0.1)
    stat = Path(f"/proc/{child.read_text()}/stat")
    assert not stat.exists() or " Z " in stat.read_text()


def test_where_it_runs(monkeypatch):
    monkeypatch.setenv("MY_SECRET", "1")
    code = "import os\nassert not os.listdir('.') and 'MY_SECRET' not in os.environ\nadd = lambda a, b: a + b"
    assert code_execution(block(code), {"tests": ADD}, timeout=30).correct


def test_examples_without_tests_are_named():
    for example in ({}, {"tests": []}, {"tests": None}):
        with pytest.raises(ValueError, match="tests: expected tests in the example's column 'tests'"):
            code_execution(block("x"), example)
