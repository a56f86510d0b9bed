"""The command line: train, sample and eval on a model of one's own, the demo, and one-line errors."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from warpup import cli
from warpup.data import example, knights_and_knaves, word_tokenizer
from warpup.train import demo, load_model, parallel
from warpup.train.parallel import run_aside
from warpup.train.plot import Line, bar_chart, inline_svg, line_chart
from warpup.train.run import Signals

pytestmark = pytest.mark.usefixtures("one_thread")


CONFIG = """
model = "start"
out = "run"
threads = 1
[warmup]
data = "train.jsonl"
steps = 3
batch_size = 4
lr = 1e-2
[rlvr]
data = "train.jsonl"
reward = "mine.py:score"
steps = 2
prompts = 2
samples = 4
max_new_tokens = 8
lr = 1
[held_out]
data = "test.jsonl"
reward = "mine.py:score"
points = 1
max_new_tokens = 8
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a model, data, a reward function and a config; the working folder is there."""
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "eos", "bos")}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **tokens)).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    rows = [json.dumps(example(puzzle)) for puzzle in knights_and_knaves(12)]
    (tmp_path / "train.jsonl").write_text("\n".join(rows[:8]))
    (tmp_path / "test.jsonl").write_text("\n".join(rows[8:]))
    (tmp_path / "mine.py").write_text(
        "def score(completion, example):\n    return float(len(set(completion.split())))\n"
    )
    (tmp_path / "run.toml").write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(capsys, *arguments):
    """(exit code, stdout, stderr) of a command."""
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def error(capsys, *arguments, status=1):
    """The one line that a command which must fail ends with."""
    code, _, text = call(capsys, *arguments)
    assert code == status
    assert "Traceback" not in text
    *progress, last = text.splitlines()
    assert all(line[0].isdigit() for line in progress), text
    return last


def test_train_sample_eval(project, capsys):
    code, out, _ = call(capsys, "train", "run.toml", "--rlvr.lr", "0.001")
    assert code == 0
    assert "run/model" in out
    log = [json.loads(line) for line in (project / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["stage"], line["step"]) for line in log] == [
        *(("1-warmup", step) for step in range(4)),
        *(("2-rlvr", step) for step in range(3)),
    ]
    assert {line["lr"] for line in log if line["stage"] == "2-rlvr" and "lr" in line} == {0.001}  # the flag won
    assert log[3]["held_out_reward"] > 0

    code, out, _ = call(capsys, "sample", "run", "--prompt", "A says B knave . ?", "--n", 3, "--max-new-tokens", 5)
    assert code == 0
    assert out.count("A says B knave . ?\n  -> ") == 3
    code, out, _ = call(capsys, "sample", "run", "--data", "test.jsonl", "--n", 2, "--max-new-tokens", 5)
    assert out.count("  -> ") == 2

    code, out, _ = call(capsys, "eval", "run", "--samples", 2, "--max-new-tokens", 8, "--json")
    numbers = json.loads(out)
    assert (numbers["examples"], numbers["samples"]) == (4, 2)
    assert numbers["reward"] > 0  # the run's own held-out data and reward
    code, out, _ = call(capsys, "eval", "start", "--data", "test.jsonl", "--samples", 1, "--max-new-tokens", 8)
    assert "reward" in out
    assert "-2" in out  # the verifier's: an untrained model has no format


def test_eval_compares_decodings(project, capsys):
    names = ("s1", "cyclic:amplitude=4,period=6,phase=any")
    flags = ("--data", "test.jsonl", "--samples", 2, "--seeds", 2, "--max-new-tokens", 8, "--words", "wait,back")
    code, out, _ = call(capsys, "eval", "start", *flags, "--schedule", *names)
    assert code == 0
    assert all(name in out for name in ("plain", "s1", "cyclic:amplitude=4", "best beside plain"))
    rows = json.loads((project / "start" / "schedules.json").read_text())
    assert [row["decoding"] for row in rows] == ["plain", *names]
    assert all(row["length"][0] > 0 for row in rows)
    assert (project / "start" / "schedules.png").read_bytes().startswith(b"\x89PNG")

    code, out, _ = call(capsys, "eval", "start", *flags, "--schedule", "compare", "--json")
    compared = json.loads(out[out.index("[") :])
    assert (code, len(compared)) == (0, 12)  # plain, TIP, s1, nine waves
    assert "expected plain, cyclic" in error(capsys, "eval", "start", *flags, "--schedule", "zigzag")
    assert "expected --samples and --seeds" in error(
        capsys, "eval", "start", "--data", "test.jsonl", "--samples", 0, "--schedule", "plain", status=2
    )


def test_train_from_flags_and_yaml(project, capsys):
    (project / "run.yaml").write_text(
        "model: start\nout: other\nwarmup: {data: train.jsonl, steps: 1, betas: [0.8, 0.9]}\n"
    )
    assert call(capsys, "train", "run.yaml", "--seed", 3)[0] == 0
    config = json.loads((project / "other" / "config.json").read_text())
    assert (config["seed"], config["stages"][0]["betas"], len(config["stages"])) == (3, [0.8, 0.9], 1)
    flags = ["--model", "start", "--out", "third", "--warmup.data", "train.jsonl", "--warmup.steps", "1"]
    assert call(capsys, "train", *flags)[0] == 0
    assert load_model(project / "third" / "model")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("steps = 3", "stepz = 3"), "run.toml: warmup.unknown key 'stepz': did you mean 'steps'?"),
        (("steps = 3", "steps = 'three'"), "run.toml: warmup.steps: expected a whole number, got 'three'"),
        (("steps = 3", "steps = 0"), "warmup.steps: expected more than 0, got 0"),
        (("samples = 4", "samples = 1"), "rlvr.samples: a group needs at least 2 completions, got 1"),
        (("[rlvr]", "[rlvrr]"), "run.toml: unknown key 'rlvrr': did you mean 'rlvr'?"),
        (("threads = 1", "threads = "), "run.toml: "),
        (('model = "start"', ""), "model: nothing given; set it in the config file or with --model"),
        (('model = "start"', 'model = "nowhere"'), "nowhere is not a saved model: it has no config.json"),
        (('data = "train.jsonl"', 'data = "nowhere.jsonl"'), "warmup.data: "),
        (('data = "train.jsonl"', 'data = ""'), "no stage has data"),
        (("mine.py:score", "mine.py:nothing"), "reward: mine.py has no function nothing"),
        (("[warmup]", '[warmup]\nprompt = "question"'), "no column 'question'"),
    ],
)
def test_wrong_configs_end_in_one_line(project, capsys, change, message):
    (project / "run.toml").write_text(CONFIG.replace(*change))
    assert message in error(capsys, "train", "run.toml")
    assert not (project / "run" / "model").exists()


WRONG_CALLS = [
    (("trian",), "warpup: no command 'trian', expected one of: demo, train"),
    (("info", "all", "ops"), "warpup info: expected at most one name, got all ops"),
    (("info", "group_mm"), "warpup info: no operator 'group_mm'; near: grouped_mm"),
    (("sample", "start"), "give either --prompt or --data"),
    (("sample",), "warpup sample: "),
    (("eval", "start"), "nothing to measure on: give --data"),
    (("demo", "--seeds", 0), "--seeds: expected at least 1, got 0"),
    (("demo", "--jobs", -1), "--jobs: expected at least 0, got -1"),
    (("demo", "--seedz", 0), "--seedz, 0 (perhaps --seeds is meant); `warpup demo --help` tells the options"),
    (("demo", "--seeds", 1, 2), "Unrecognized options: 2; an option takes one value; `warpup demo --help`"),
    (("demo", "--seeds", "two"), "Error parsing --seeds: invalid literal for int() with base 10: 'two'; `warpup"),
    (("demo", "--model", "mow"), "invalid choice 'mow' for argument '--model'. Expected one of ('dense', 'moe'); `w"),
    (("train", "--seed", "1", "run.toml"), "an option takes one value, and CONFIG comes before the options; `warpup "),
]


@pytest.mark.parametrize("width", ["40", "200"])
@pytest.mark.parametrize(("arguments", "message"), WRONG_CALLS, ids=[message[:30] for _, message in WRONG_CALLS])
def test_wrong_calls_end_in_one_line(project, capsys, monkeypatch, arguments, message, width):
    monkeypatch.setenv("COLUMNS", width)
    code, _, text = call(capsys, *arguments)
    assert (code, text.count("\n")) == (2, 1), text
    assert message in text
    assert not list(project.glob("run*/"))


def test_what_is_not_there_is_named(project, capsys):
    assert "no config file nowhere.toml" in error(capsys, "train", "nowhere.toml")
    assert "no folder nowhere" in error(capsys, "sample", "nowhere", "--prompt", "A")


def test_another_runs_folder_and_a_broken_reward_end_in_one_line(project, capsys):
    assert call(capsys, "train", "run.toml")[0] == 0
    assert "run holds another run (seed: there 0, now 5)" in error(capsys, "train", "run.toml", "--seed", "5")
    (project / "mine.py").write_text("def score(completion, example):\n    raise ZeroDivisionError('oh')\n")
    text = error(capsys, "train", "run.toml", "--out", "new", "--held-out.data", "")
    assert "failed on all 8 completions of a step; first: ZeroDivisionError: oh" in text
    assert (project / "new" / "1-warmup" / "step-00000003" / "model.safetensors").exists()  # nothing trained is lost


def test_help_is_instant_and_lists_every_command(capsys):
    code, out, _ = call(capsys, "--help")
    assert code == 0
    assert all(name in out for name in ("demo", "train", "sample", "eval", "info"))
    # No subcommand's machinery is imported for it.
    program = "import sys; from warpup import cli; cli.main(['--help']); sys.exit('warpup.train' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_saves_and_the_same_command_resumes(project):
    command = [sys.executable, "-m", "warpup.cli", "train", "run.toml", "--warmup.steps", "400", "--held-out.data", ""]
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    metrics = project / "run" / "metrics.jsonl"
    while run.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > 3):
        time.sleep(0.1)
    run.send_signal(signal.SIGINT)
    text = run.communicate(timeout=60)[1]
    assert run.returncode == 130
    assert "stopped and saved at step" in text
    assert "the same command resumes it" in text
    assert "Traceback" not in text
    [saved] = (project / "run" / "1-warmup").glob("step-*")
    assert int(saved.name[5:]) == metrics.read_text().count("\n")


TINY = demo.Size(
    held_out=8, puzzles=6, chains=40, base_steps=2, warm_steps=3, rl_steps=2, hidden=32, layers=1, heads=2, batch=4,
    prompts=2, samples=4, max_new_tokens=24, points=1, curve=4, pool=60,
)  # fmt: skip


def test_demo_reports_and_reuses(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(demo, "QUICK", TINY)
    out = tmp_path / "demo"
    code, text, _ = call(capsys, "demo", "--quick", "--seeds", "2", "--jobs", "1", "--out", out)
    assert code == 0
    for arm in ("base", "base + RLVR", "warm-up", "warm-up + RLVR"):
        assert any(line.split("  ")[0].strip() == arm for line in text.splitlines()), text
    assert "warm-up + RLVR against base + RLVR" in text
    assert f"report: {out / 'report.html'}" in text
    assert "sampled at T=.7 (avg@4) and greedy, 2 seeds\n" in text  # on one line

    page = (out / "report.html").read_text()
    results = json.loads((out / "seed-1" / "warm" / "results.json").read_text())
    other = json.loads((out / "seed-0" / "warm" / "results.json").read_text())
    mean = (results["warm-up + RLVR"]["length"] + other["warm-up + RLVR"]["length"]) / 2
    assert f"<td>{mean:.1f} ±" in page
    assert page.count("<svg") == 6
    assert "http" not in page  # self-contained
    assert "before and after" in page

    monkeypatch.setattr(demo.Recipe, "run", None)  # a second call must not train
    again = call(capsys, "demo", "--quick", "--seeds", "2", "--jobs", "1", "--out", out)
    assert again[0] == 0
    assert again[1].split("report:")[0] == text.split("report:")[0]
    assert "holds a demo of another size" in error(capsys, "demo", "--out", out)


def test_demo_of_a_mixture_shows_the_experts_load(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "QUICK", TINY)
    out = tmp_path / "demo"
    code, *_ = call(capsys, "demo", "--quick", "--model", "moe", "--jobs", "1", "--out", out)
    assert code == 0
    page = (out / "report.html").read_text()
    assert page.count("<svg") > 6  # RLVR may have found no group to learn from
    assert "most loaded expert" in page
    assert "routed experts" in page
    assert "holds a demo of another size" in error(capsys, "demo", "--quick", "--out", out)


def test_demo_splits_by_abstract_puzzle():
    held_out, kept = demo.puzzles_of(TINY)
    assert not {puzzle.canonical_key() for puzzle in held_out} & {puzzle.canonical_key() for puzzle in kept}
    one, other = demo.puzzle_sets(TINY, 0), demo.puzzle_sets(TINY, 1)
    assert one["held_out"] == other["held_out"]
    assert one["rl"] != other["rl"]
    shape = {row["prompt"].translate(str.maketrans("ABCDEFG", "       ")) for row in one["rl"]}
    assert len(one["rl"]) == 60
    assert len(shape) <= 6  # ten renamings of six puzzles


def test_demo_children_train_as_this_process_does(tmp_path):
    size = replace(TINY, chains=20)
    seen = []
    [aside] = run_aside(demo.run_chain, [("base", 1, size, tmp_path / "aside")], 1, lambda *report: seen.append(report))
    here = demo.run_chain("base", 1, size, tmp_path / "here", lambda *report: None)
    assert aside["base + RLVR"] == here["base + RLVR"]
    assert {stage for stage, *_ in seen} >= {"seed 1 base 1-warmup", "seed 1 base 2-rlvr"}


def test_a_child_that_was_stopped_is_not_told_again(monkeypatch):
    """Ctrl-C on a terminal reaches the child as well as its parent, which tells it a second time, maybe much later."""
    monkeypatch.setattr(parallel, "_stop", threading.Event())
    monkeypatch.setattr(parallel, "_messages", queue.Queue())
    monkeypatch.setattr(parallel.multiprocessing, "parent_process", threading.main_thread)

    def work(report):
        with Signals() as signals:
            signal.raise_signal(signal.SIGINT)
            signals.received -= 60
            parallel._stop.set()
            report("stage", 1, 2, {})
            return "saved"

    assert parallel.run_in_child(work, ()) == "saved"


def test_charts_draw_what_they_are_given():
    points = [(0, 1.0, 0.0), (10, 2.0, 0.5)]
    lines = [Line("one", "#123456", points), Line("none", "#000000", [])]
    [axes] = line_chart("step", lines, (0, None)).axes
    [drawn], [band] = axes.lines, axes.collections
    assert drawn.get_xydata().tolist() == [[0, 1], [10, 2]]
    assert {(10.0, 1.5), (10.0, 2.5)} <= set(map(tuple, band.get_paths()[0].vertices.tolist()))
    assert axes.get_ylim()[0] == 0
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one"]
    svg, again = (inline_svg(line_chart("step", lines), "<title>") for _ in range(2))
    assert 'aria-label="&lt;title&gt;"' in svg
    assert "&lt;title&gt;</text>" in svg
    assert "var(--ink)" in svg
    assert "#123456" in svg
    assert "<style" not in svg  # nothing that would reach the rest of the page
    assert svg == again
    assert line_chart("step", [Line("none", "#000000", [])]) is None

    [axes] = bar_chart([("a", "#123456", [(30.0, 2.0, 1), (20.0, 0.0, 0.5)])]).axes
    assert [bar.get_height() for bar in axes.patches] == [30, 20]
    assert [text.get_text() for text in axes.texts] == ["30", "20"]
