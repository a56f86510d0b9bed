"""Run the program of a completion against tests, in a process with limits."""

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from .answers import Grade

_BLOCK = re.compile(r"```(?:python|py|python3)?[ \t]*\n(.*?)```", re.DOTALL | re.IGNORECASE)


def code_execution(
    completion: str,
    example: Mapping[str, Any],
    *,
    tests: str = "tests",
    timeout: float = 5.0,
    memory_mb: int = 1024,
    file_mb: int = 16,
    partial: bool = False,
) -> Grade:
    """1 if the last Python code block of a completion passes all tests of `example["tests"]`, else 0.

    This is no security sandbox: the code runs as the user who trains, with the files and the network of that user. The
    limits stop accidents, not attacks. Where you would not run the model's code by hand, train inside a container.

    tests: the column. Its value is a text or a list; a text is Python that runs after the code and raises where it is
    wrong (`assert add(1, 2) == 3`), an object {"input": ..., "output": ...} is what the program reads from standard
    input and must print, white space at line ends and the end aside.
    timeout: seconds for each process: one for all tests of Python, one for each input. memory_mb, file_mb: MiB of
    address space, and of any file written, printed text included. partial: the reward is the share of tests that pass.
    The code runs in an empty folder that is deleted afterwards, without the environment's variables.
    Raises ValueError if the example has no tests.
    """
    given = example.get(tests)
    given = [given] if isinstance(given, str | Mapping) else given
    if not isinstance(given, Sequence) or not given:
        raise ValueError(f"{tests}: expected tests in the example's column {tests!r}, got {given!r}")
    blocks = _BLOCK.findall(completion)
    if not blocks:
        return Grade.of(False)
    limits = {"timeout": timeout, "memory": memory_mb << 20, "file": file_mb << 20}
    asserts = [test for test in given if isinstance(test, str)]
    passed = _asserts_passed(blocks[-1], asserts, limits) if asserts else 0
    for test in given:
        if not isinstance(test, str):
            passed += _prints(blocks[-1], str(test["input"]), str(test["output"]), limits)
    share = passed / len(given)
    return Grade(share if partial else float(share == 1), share == 1)


# What runs in the process: limits first, then the program, then the tests, each on its own. The outcome is written with
# a word that the program has not seen, so that one which prints "passed" and exits has passed nothing.
_RUNNER = """
import json, os, resource, sys

def main():
    with open(int(sys.argv[1])) as file:
        job = json.load(file)
    for name, value in job["limits"].items():
        resource.setrlimit(getattr(resource, name), (value, value))
    names, passed = {"__name__": "__main__"}, 0
    exec(compile(job["code"], "completion.py", "exec"), names)
    for test in job["tests"]:
        try:
            exec(compile(test, "test", "exec"), dict(names))
            passed += 1
        except BaseException:
            pass
    if job["tests"]:
        sys.stdout.flush()
        os.write(1, f"\\n{job['word']} {passed}".encode())

main()
"""


def _asserts_passed(code: str, tests: Sequence[str], limits: Mapping[str, Any]) -> int:
    word = secrets.token_hex(16)
    done, printed = _run(code, tests, word, "", limits)
    last = printed.rpartition(f"\n{word} ")[2].strip()
    return int(last) if done and word in printed else 0


def _prints(code: str, text: str, wanted: str, limits: Mapping[str, Any]) -> bool:
    done, printed = _run(code, (), "", text, limits)
    return done and _lines(printed) == _lines(wanted)


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def _run(code: str, tests: Sequence[str], word: str, text: str, limits: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether the process ended by itself with status 0, and what it printed."""
    seconds = int(limits["timeout"]) + 1
    names = {"RLIMIT_CPU": seconds, "RLIMIT_AS": limits["memory"], "RLIMIT_FSIZE": limits["file"], "RLIMIT_CORE": 0}
    job = {"code": code, "tests": list(tests), "word": word, "limits": names}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile() as printed:
        with tempfile.TemporaryFile() as asked, tempfile.TemporaryFile() as given:
            for file, content in ((asked, json.dumps(job)), (given, text)):
                file.write(content.encode())
                file.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-I", "-c", _RUNNER, str(asked.fileno())], pass_fds=[asked.fileno()],
                stdin=given, stdout=printed, stderr=subprocess.DEVNULL, cwd=folder, start_new_session=True,
                env={"PATH": os.defpath, "HOME": folder, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        try:
            status = process.wait(limits["timeout"])
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # with all that it started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        printed.seek(0)
        return status == 0, printed.read().decode(errors="replace")
