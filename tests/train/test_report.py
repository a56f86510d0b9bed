"""report.html of a run has its curves, samples, events and settings, whatever the run was."""

import json
import re

import pytest

from tests.support.command import call, error
from warpup.train.report import chart, duration, flat, heading, spoken, tiles, write_report

pytestmark = pytest.mark.usefixtures("one_thread")
CHAT = [{"role": "user", "content": "1 < 2?"}]


def make_run(folder, steps=3, **files):
    """A run's log: warm-up with a held-out measure before it, then RLVR with a sample at each step."""
    folder.mkdir()
    lines = [{"stage": "1-warmup", "step": 0, "held_out_greedy": 0.125}]
    lines += [{"stage": "1-warmup", "step": i, "loss": 4.0 - i, "seconds": 30, "tokens": 500} for i in (1, 2, 3)]
    lines.append({"stage": "2-rlvr", "step": 1, "event": "reward_errors", "message": "ValueError: <oh>"})
    for i in range(1, steps + 1):
        sample = {"prompt": CHAT if i > 1 else "How?", "completion": f"<b>answer {i}</b>", "reward": i / 2}
        numbers = {"loss": 0.0, "reward": i, "accuracy": None, "new_number": i * i, "lr": 1e-6, "sample": sample}
        lines.append({"stage": "2-rlvr", "step": i, **numbers})
    lines[-1]["held_out_greedy"] = 0.75
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_a_page_tells_what_happened(tmp_path, capsys):
    run = make_run(tmp_path / "mine", train={"model": "start", "seed": 3, "rlvr": {"lr": 1e-6, "limit": None}})
    code, out, _ = call(capsys, "report", run)
    assert (code, out) == (0, f"report: {run / 'report.html'}\n")
    page = (run / "report.html").read_text()
    assert page.startswith("<!doctype html>")
    assert "<title>mine - warpup</title>" in page
    assert re.findall("<h2>(.*?)</h2>", page) == ["1-warmup: 3 steps", "2-rlvr: 3 steps", "Events", "Settings"]
    titles = re.findall('aria-label="(.*?)"', page)
    assert titles == ["Loss", "Held-out accuracy (greedy), %", "Loss", "Reward while training",
                      "Held-out accuracy (greedy), %", "new number"]  # fmt: skip
    assert "The same at every step: seconds 30, tokens 500" in page
    assert "<b>12.5 → 75.0</b>" in page
    # Texts of a model are shown as they are, and are no HTML.
    assert [page.count(f"&lt;b&gt;answer {i}&lt;/b&gt;") for i in (1, 2, 3)] == [1, 1, 1]
    assert "step 3 · reward 1.5" in page
    assert "user: 1 &lt; 2?" in page
    assert "ValueError: &lt;oh&gt;" in page
    # What differs from the defaults stands first, all of it is folded away.
    changed, everything = page[page.index("<h2>Settings") :].split("<details>")
    assert re.findall("<tr><td>(.*?)</td><td>(.*?)</td></tr>", changed) == [("model", "start"), ("seed", "3")]
    assert "<td>rlvr.lr</td><td>1e-06</td>" in everything
    assert "http" not in page  # one file, nothing to load


def test_a_run_from_python_or_at_work_has_a_page(tmp_path):
    run = make_run(tmp_path / "mine", config={"seed": 0, "model": {"kind": "GPT2", "parameters": 12345}})
    (run / "2-rlvr").mkdir()
    (run / "2-rlvr" / "stage.json").write_text(json.dumps({"kind": "RLVR", "steps": 50}))
    page = write_report(run).read_text()
    assert "RLVR: 3 of 50 steps" in page
    assert "GPT2 · 12,345 parameters" in page
    assert "<td>2-rlvr.steps</td><td>50</td>" in page


def test_steps_are_counted_in_words(tmp_path):
    (tmp_path / "1-warmup").mkdir()
    for planned, lines, text in ((1, [{"step": 1}], "Warmup: 1 step"), (2, [], "Warmup: 0 of 2 steps")):
        (tmp_path / "1-warmup" / "stage.json").write_text(json.dumps({"kind": "Warmup", "steps": planned}))
        assert heading(tmp_path, "1-warmup", lines) == text


def test_few_points_are_joined_and_many_are_smoothed():
    lines = [{"stage": "s", "step": i, "reward": float(i % 2)} for i in range(100)]
    [axes] = chart(lines[:30], "s", "reward").axes
    assert [len(line.get_xdata()) for line in axes.lines] == [30]
    [axes] = chart(lines, "s", "reward").axes
    raw, smooth = axes.lines
    assert (raw.get_alpha(), smooth.get_alpha()) == (0.3, None)
    assert set(raw.get_ydata()) == {0, 1}
    assert set(smooth.get_ydata()[10:]) == {0.4, 0.6}  # a running mean of five
    [axes] = chart([{"stage": "s", "step": 1, "accuracy": 0.5}], "s", "accuracy").axes
    assert axes.lines[0].get_ydata() == [50]  # percent
    assert axes.get_ylim() == (0, 100)


def test_figures_in_words():
    assert [duration(s) for s in (4, 200, 7500)] == ["4 s", "3 min 20 s", "2 h 05 min"]
    assert flat({"a": {"b": None, "c": {"d": [1]}}, "e": "x"}) == {"a.b": "null", "a.c.d": "[1]", "e": "x"}
    assert spoken([{"role": "system", "content": "Be kind."}, *CHAT]) == "system: Be kind.\nuser: 1 < 2?"
    rewards = [{"stage": "2-rlvr", "step": i, "reward": float(i), "loss": 9.0} for i in range(20)]
    text = tiles(rewards)
    assert "<b>0.50 → 18.50</b><span>reward</span>" in text  # means of the first and of the last tenth
    assert "loss" not in text  # that of a policy says nothing
    text = tiles([{"stage": "1-warmup", "step": i, "held_out_reward": i / 4, "seconds": 1} for i in (0, 1)])
    assert "<b>0.00 → 0.25</b><span>held-out reward</span>" in text
    losses = [{"stage": "1-warmup", "step": 1, "loss": 4.0}, {"stage": "1-warmup", "step": 2, "loss": 1.0}]
    text = tiles([*losses, {"stage": "2-preference", "step": 1, "loss": 0.7}, *rewards])
    assert "<b>4.00 → 1.00</b><span>loss of 1-warmup</span>" in text


def test_no_run_is_told(tmp_path, capsys):
    assert "holds no run with a finished step" in error(capsys, "report", tmp_path)
    assert "warpup report" in error(capsys, "report", status=2)
