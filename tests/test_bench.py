"""Every benchmark runs and its candidates are right, at tiny sizes; and a wrong candidate is found."""

import gc
import json
import os
import re
import signal
import time

import pytest
import torch

from bench.__main__ import main
from bench.harness import column, measure, modules, report, timing, worker
from tests.conftest import ROOT

MODULES = modules()


@pytest.fixture(autouse=True)
def quick(monkeypatch, one_thread):
    """Without what takes long: compilation (test_contract.py holds every op to it), and garbage collections of all that
    was imported before."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    gc.freeze()
    yield
    gc.unfreeze()
    measure.compiled.cache_clear()


@pytest.mark.parametrize(
    "case", [case for module in MODULES for case in module.cases("cpu", "quick")], ids=lambda case: case.name
)
def test_runs(case):
    result = measure.measure(case, "cpu", budget=0.0, rounds=(1, 1))
    assert not result.failures
    assert all(row.samples for row in result.rows), [row.failure for row in result.rows]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.bool])
def test_a_wrong_candidate_is_found(dtype):
    want = torch.tensor([1, 0, 3, 0]).to(dtype)
    got = want.clone()
    got[1] = 1
    assert measure.verdict([measure.compare(want.clone(), want)], None) is None
    verdict = measure.verdict([measure.compare(got, want)], None)
    assert verdict.startswith("wrong: ")
    assert ("1 of 4 elements differ" in verdict) == (not dtype.is_floating_point)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-k", "nothing_such"], "-k: no case has a name in which 'nothing_such' is found"),
        (["--show", "nowhere.json"], "--show: no file nowhere.json"),
        (["--limit", "-3"], "--limit: expected seconds above 0, got -3.0"),
    ],
)
def test_wrong_calls_say_what_is_wrong(monkeypatch, capsys, arguments, message):
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert message in capsys.readouterr().err


def test_records_keep_medians_and_spread(tmp_path):
    """A candidate is a line, and its single times are not in it; so are the kept results."""
    case = next(case for module in MODULES for case in module.cases("cpu", "quick"))
    result = measure.measure(case, "cpu", budget=0.0, rounds=(2, 2))
    report.write({"environment": {"device": "cpu"}, "results": [result.as_dict()]}, tmp_path / "results.json")
    text = (tmp_path / "results.json").read_text()
    [kept] = json.loads(text)["results"]
    assert [(row["candidate"], row["rounds"]) for row in kept["rows"]] == [(row.candidate, 2) for row in result.rows]
    assert kept["rows"][0]["median_us"] == pytest.approx(1e6 * result.rows[0].samples.median, rel=1e-3)
    assert text.count("\n") == 2 + 1 + len(result.rows)
    for path in (ROOT / "bench/results").glob("*.json"):
        assert "samples" not in path.read_text()
        assert report.summary(json.loads(path.read_text()))


# ---- Limits ---------------------------------------------------------------------------------------------------------


def small_case():
    return next(case for module in MODULES for case in module.cases("cpu", "quick") if case.name.startswith("moe_plan"))


def test_what_is_left_out_has_a_row_that_says_so():
    full = measure.measure(small_case(), "cpu", budget=0.0, rounds=(1, 1))
    ours, other, *_ = [row.candidate for row in full.rows]
    result = measure.measure(small_case(), "cpu", without={other: "too slow"}, budget=0.0, rounds=(1, 1))
    assert {row.candidate: row.failure for row in result.rows}[other] == "too slow"
    assert result.rows[0].samples
    assert not result.failures
    assert measure.measure(small_case(), "cpu", without={ours: "too slow"}, budget=0.0, rounds=(1, 1)).failures


def test_a_slow_candidate_is_timed_once(monkeypatch):
    monkeypatch.setattr(timing, "SLOW", 0.01)
    candidates = {"slow": timing.Candidate(lambda: time.sleep(0.02)), "fast": timing.Candidate(lambda: None)}
    samples = timing.interleave(candidates, timing.HostClock("cpu"), budget=0.0, rounds=(3, 3))
    assert [len(samples[name].seconds) for name in candidates] == [1, 3]


def test_a_case_goes_on_without_the_candidate_that_was_stopped(monkeypatch):
    class Stopping:
        """In place of the other process: stops for each candidate of `slow`, once it is asked to run it."""

        def __init__(self, *_):
            pass

        def measure(self, name, limit, options):
            for candidate in slow:
                if candidate not in options["without"]:
                    return candidate, f"stopped: not done after {limit:g} s"
            return measure.measure(small_case(), "cpu", budget=0.0, rounds=(1, 1), **options)

    monkeypatch.setattr(worker, "Worker", Stopping)
    names = [row.candidate for row in measure.measure(small_case(), "cpu", budget=0.0, rounds=(1, 1)).rows]
    slow = names[1:2]
    [result] = worker.measure_each([small_case()], "cpu", "quick", 60)
    assert {row.candidate: row.failure for row in result.rows}[slow[0]] == "stopped: not done after 60 s"
    assert result.rows[0].samples
    slow = [worker.TIMING]
    [result] = worker.measure_each([small_case()], "cpu", "quick", 60)
    assert result.failures == ["warpup: timing: stopped: not done after 60 s"]


def test_a_process_that_measures_is_stopped():
    process = worker.Worker("cpu", "quick")
    overhead = next(case for module in MODULES for case in module.cases("cpu", "quick") if "overhead glu" in case.name)
    for case in (small_case(), overhead):  # the latter is made of functions that cannot be sent
        result = process.measure(case.name, 60, {"budget": 0.0, "rounds": (1, 1)})
        assert not result.failures
        assert result.rows[0].samples
    os.kill(process.process.pid, signal.SIGSTOP)  # as one that does not get on
    assert process.measure(small_case().name, 0, {}) == (worker.INPUTS, "stopped: not done after 0 s")
    assert not process.process.is_alive()


# ---- The table of the documentation ---------------------------------------------------------------------------------


def test_every_pattern_of_a_column_finds_a_case():
    names = [case.name for module in MODULES for case in module.cases("cpu", "cpu")]
    assert len(set(names)) == len(names)
    assert [p for p in column.CASES if not any(re.search(p, name) for name in names)] == []
    assert column.ordered(names)[0].startswith("call overhead")


def test_a_file_is_named_for_its_processor():
    cpu = {"cpu": "Intel(R) Xeon(R) Platinum 8481C CPU @ 2.70GHz"}
    assert column.path_of(cpu).name == "intel-xeon-platinum-8481c.json"
    assert column.path_of({"cpu": "AMD EPYC 7B13 64-Core Processor"}).name == "amd-epyc-7b13.json"
    assert column.path_of({**cpu, "gpu": "NVIDIA H200"}).name == "nvidia-h200.json"


def test_the_table_has_a_column_for_each_machine():
    def record(cpu, *results):
        facts = {"cpu": cpu, "threads": 2, "torch": "2.13", "git": "abc", "time": "2026-11-29T10:00:00"}
        facts |= {"warpup": {"cpu": "x86-64-v3"}, "bandwidths": {"copy": 15e9, "copy to new memory": 4e9}}
        return {"environment": facts, "results": results}

    def result(case, *rows):
        return {"case": case, "rows": [dict.fromkeys(("ratio", "failure")) | row for row in rows]}

    ours = {"candidate": "warpup", "median_us": 1234.5, "iqr_us": 123.45, "share_of_copy": 0.5, "ratio": 1.0}
    a = result("a", ours, {"candidate": "eager", "ratio": 2.0, "median_us": 2469.0}, {"candidate": "X", "ratio": 0.7})
    b = result("b", {"candidate": "warpup", "failure": "wrong: 1"}, {"candidate": "eager"})
    c = result("c", ours | {"candidate": "torch.add"}, {"candidate": "raw op", "ratio": 0.9, "median_us": 1111.0})
    lines = column.page_table([record("P", a), record("Q", b, c)]).splitlines()
    assert lines[0].startswith(
        "| case | P (x86-64-v3), 2 threads; copy 15 GB/s, to new memory 4; torch 2.13; abc, 2026-11-29 | Q ("
    )
    assert lines[2] == "| a | 1.23 ms ± 5 %, 50 % of copy; eager 2; X **0.7** |  |"
    assert lines[3] == "| b |  | warpup: wrong: 1 |"
    assert lines[4] == "| c |  | 1.23 ms ± 5 %, 50 % of copy; raw op 0.9 |"


def test_the_page_has_the_table_of_the_results():
    text = column.PAGE.read_text()
    assert column.page(text) == text, "run `python -m bench --table`"
