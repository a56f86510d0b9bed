"""The command line: help at once, and a wrong call is one line."""

import subprocess
import sys

import pytest

from tests.support.command import call
from warpup import arrays
from warpup.cli import COMMANDS, main

pytestmark = pytest.mark.usefixtures("one_thread")


WRONG_CALLS = [
    (("trian",), "warpup: no command 'trian', expected one of: demo, transfer, fetch, init, doctor"),
    (("info", "all", "ops"), "warpup info: expected at most one name, got all ops"),
    (("info", "group_mm"), "warpup info: no operator 'group_mm'; near: grouped_mm"),
    (("sample", "start"), "give one of --prompt, --data and --chat"),
    (("sample", "start", "--prompt", "A", "--chat"), "give one of --prompt, --data and --chat"),
    (("sample", "start", "--chat", "--n", 2), "--n: a chat has one answer at a time; leave it out"),
    (("sample", "start", "--data", "x.jsonl", "--raw"), "--raw: it is about --prompt, which is not given"),
    (("sample",), "warpup sample: "),
    (("demo", "--seeds", 0), "--seeds: expected at least 1, got 0"),
    (("demo", "--jobs", -1), "--jobs: expected at least 0, got -1"),
    (("demo", "--seedz", 0), "--seedz, 0 (perhaps --seeds is meant); `warpup demo --help` lists the options"),
    (("demo", "--seeds", 1, 2), "Unrecognized options: 2; an option takes one value; `warpup demo --help`"),
    (("demo", "--seeds", "two"), "Error parsing --seeds: invalid literal for int() with base 10: 'two'; `warpup"),
    (
        ("demo", "--model", "mow"),
        "invalid choice 'mow' for argument '--model'. Expected one of ('dense', 'moe', 'smollm2',",
    ),
    (("sample", "run", "--prompt", "A", "--temperature", 0, "--n", 3), "--n: at temperature 0 all 3 completions of a"),
    (("sample", "run", "--prompt", "A", "--temperature", 0, "--seed", 1), "--seed: nothing is drawn at temperature 0"),
    (("eval", "run", "--samples", 0, "--temperature", 1), "--temperature: it is that of the sampled completions, of w"),
    (("eval", "run", "--samples", 0, "--top-p", 0.9), "--top-p: it is that of the sampled completions, of which --sa"),
    (("eval", "run", "--samples", 0, "--seed", 3), "--seed: it is that of the sampled completions, of which --samples"),
    (("eval", "run", "--limit", 0), "--limit: expected at least 1, got 0"),
    (("eval", "run", "--seeds", 3), "--seeds: only --schedule samples with several seeds; give --schedule, or --seed"),
    (
        ("eval", "run", "--thinking-budget", "long"),
        'expected none or JSON such as 512 or {"tokens": 512}, got long; `w',
    ),
    (("train", "--seed", "1", "run.toml"), "an option takes one value, and CONFIG comes before the options; `warpup "),
]


@pytest.mark.parametrize("width", ["40", "200"])
@pytest.mark.parametrize(("arguments", "message"), WRONG_CALLS, ids=[message[:30] for _, message in WRONG_CALLS])
def test_wrong_calls_end_in_one_line(tmp_path, capsys, monkeypatch, arguments, message, width):
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.chdir(tmp_path)
    code, _, text = call(capsys, *arguments)
    assert (code, text.count("\n")) == (2, 1), text
    assert message in text
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_help_is_instant_and_lists_every_command(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert all(name in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(capsys, name):
    try:
        code = main([name, "--help"])
    except SystemExit as end:  # of a command with options
        code = end.code or 0
    assert code == 0
    assert capsys.readouterr().out.startswith(f"usage: warpup {name}")


def test_version(capsys):
    code, out, _ = call(capsys, "--version")
    assert (code, out) == (0, f"warpup {arrays.build_info()['version']}\n")


QUICK_CALLS = [
    ("--help",),
    ("--version",),
    ("trian",),
    ("info", "--help"),
    ("demo", "--help"),
    ("demo", "--model", "smollm2", "--jobs", "2"),
    ("transfer", "--target", "nothing"),
    ("fetch", "smollm2", "."),
    ("demo", "--seedz", "0"),
    ("continual", "--jobs", "-1"),
    ("sample", "run"),
    ("init", "--modle", "x"),
    ("report", "--help"),
    ("eval", "run", "--seeds", "3"),
    ("eval", "."),
    ("train", "--help"),
    ("train", "--model", "x"),
]


def test_help_and_wrong_calls_do_not_wait_for_torch():
    program = f"""
import sys
from warpup import cli
for call in {QUICK_CALLS!r}:
    try:
        cli.main(list(call))
    except SystemExit as end:  # --help of a subcommand
        assert not end.code
    heavy = {{"torch", "transformers", "matplotlib"}} & sys.modules.keys()
    assert not heavy, (call, heavy)
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
