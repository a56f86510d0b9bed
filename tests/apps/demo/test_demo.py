"""`warpup demo`: its report, its reuse, its puzzles, its children."""

import json
from dataclasses import replace

import pytest

from tests.support.command import call, error
from warpup.apps._jobs import run_in_children
from warpup.apps.demo import command, puzzles
from warpup.apps.demo.chain import run_chain
from warpup.apps.demo.settings import Size
from warpup.train import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


TINY = Size(
    held_out=8, puzzles=6, chains=40, base_steps=2, warm_steps=3, rl_steps=2, hidden=32, layers=1, heads=2, batch=4,
    prompts=2, samples=4, max_new_tokens=24, points=1, curve=4, pool=60,
)  # fmt: skip


def test_demo_reports_and_reuses(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(command, "QUICK", TINY)
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

    monkeypatch.setattr(Recipe, "run", None)  # a second call must not train
    again = call(capsys, "demo", "--quick", "--seeds", "2", "--jobs", "1", "--out", out)
    assert again[0] == 0
    assert again[1].split("report:")[0] == text.split("report:")[0]
    assert "holds a demo of another size" in error(capsys, "demo", "--out", out)


def test_demo_of_a_mixture_shows_the_experts_load(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "QUICK", TINY)
    out = tmp_path / "demo"
    code, *_ = call(capsys, "demo", "--quick", "--model", "moe", "--jobs", "1", "--out", out)
    assert code == 0
    page = (out / "report.html").read_text()
    assert page.count("<svg") > 6  # RLVR may have found no group to learn from
    assert "most loaded expert" in page
    assert "routed experts" in page
    assert "holds a demo of another size" in error(capsys, "demo", "--quick", "--out", out)


def test_demo_splits_by_abstract_puzzle():
    held_out, kept = puzzles.puzzles_of(TINY)
    assert not {puzzle.canonical_key() for puzzle in held_out} & {puzzle.canonical_key() for puzzle in kept}
    one, other = puzzles.puzzle_sets(TINY, 0), puzzles.puzzle_sets(TINY, 1)
    assert one["held_out"] == other["held_out"]
    assert one["rl"] != other["rl"]
    shape = {row["prompt"].translate(str.maketrans("ABCDEFG", "       ")) for row in one["rl"]}
    assert len(one["rl"]) == 60
    assert len(shape) <= 6  # ten renamings of six puzzles


def test_demo_children_train_as_this_process_does(tmp_path):
    size = replace(TINY, chains=20)
    seen = []
    [aside] = run_in_children(
        run_chain, [("base", 1, size, tmp_path / "aside")], 1, lambda *report: seen.append(report)
    )
    here = run_chain("base", 1, size, tmp_path / "here", lambda *report: None)
    assert aside["base + RLVR"] == here["base + RLVR"]
    assert {stage for stage, *_ in seen} >= {"seed 1 base 1-warmup", "seed 1 base 2-rlvr"}
