"""Every benchmark runs and its candidates are right, at tiny sizes; and a wrong candidate is told."""

import gc

import pytest
import torch

from bench.harness import measure, modules

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
def test_a_wrong_candidate_is_told(dtype):
    want = torch.tensor([1, 0, 3, 0]).to(dtype)
    got = want.clone()
    got[1] = 1
    assert measure.verdict([measure.compare(want.clone(), want)], None) is None
    told = measure.verdict([measure.compare(got, want)], None)
    assert told.startswith("wrong: ")
    assert ("1 of 4 elements differ" in told) == (not dtype.is_floating_point)
