"""Every benchmark runs and its candidates are right, at tiny sizes; and a wrong candidate is found."""

import gc
import json

import pytest
import torch

from bench.harness import measure, modules, report
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
