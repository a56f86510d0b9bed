"""The lines that only run on a GPU, run with torch's CUDA played on the CPU: a typo must not cost the first minute.

What they measure means nothing here, and a graph that is played records nothing.
"""

import json
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch.overrides import TorchFunctionMode

from bench.gpu import gpu_checks, sanitize
from bench.harness import measure, modules, report, roofline
from tests.support.cases import CASES

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: bench/gpu.sh runs these lines on it")


def on_cpu(value):
    if isinstance(value, torch.device):
        value = value.type
    return "cpu" if isinstance(value, str) and value.startswith("cuda") else value


class OnCpu(TorchFunctionMode):
    """Whatever is asked for on "cuda" is on the CPU."""

    def __torch_function__(self, function, types, arguments=(), named=None):
        named = {k: on_cpu(v) if k == "device" else v for k, v in (named or {}).items()}
        return function(*(on_cpu(a) if isinstance(a, str) else a for a in arguments), **named)


class Played:
    """A stream, an event or a graph: does nothing, and says that it took a second."""

    def __init__(self, **options):
        assert set(options) <= {"enable_timing"}

    def record(self): ...
    def synchronize(self): ...
    def replay(self): ...
    def wait_stream(self, other): ...
    def elapsed_time(self, other):
        return 1000.0


@pytest.fixture(autouse=True)
def cuda(monkeypatch, one_thread):
    generator = torch.Generator
    properties = SimpleNamespace(name="NVIDIA Played", L2_cache_size=1 << 16, total_memory=1 << 30)
    for name, value in {
        "Event": Played,
        "Stream": Played,
        "CUDAGraph": Played,
        "stream": lambda stream: nullcontext(),
        "graph": lambda graph: nullcontext(),
        "current_stream": Played,
        "synchronize": lambda: None,
        "_sleep": lambda cycles: None,
        "get_device_properties": lambda index: properties,
        "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 5,
        "max_memory_allocated": lambda: 12,
    }.items():
        assert hasattr(torch.cuda, name)
        monkeypatch.setattr(torch.cuda, name, value)

    class Generator:
        def __new__(cls, device="cpu"):
            return generator("cpu")

    monkeypatch.setattr(torch, "Generator", Generator)
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    monkeypatch.setitem(roofline.SIZES, "cuda", (1 << 16, 16))
    cached = (report.environment, roofline.clock, roofline._buffers, roofline.bandwidths, roofline.gemm_rate)
    for function in (*cached, measure.compiled):
        function.cache_clear()
    with OnCpu():
        yield
    for function in (*cached, measure.compiled):
        function.cache_clear()


@pytest.mark.parametrize("module", modules(), ids=lambda module: module.__name__)
def test_the_first_and_the_last_case_of_each(module):
    cases = list(module.cases("cuda", "quick"))
    for case in {case.name: case for case in (cases[0], cases[-1])}.values():
        result = measure.measure(case, "cuda", budget=0.0, rounds=(1, 1))
        assert not result.failures
        assert result.rows[0].samples
        if not case.host_clock:
            assert result.rows[0].samples.seconds == [1.0]
            assert result.rows[0].peak_bytes == 7


def test_the_record_names_the_gpu(tmp_path):
    case = next(modules()[0].cases("cuda", "quick"))
    result = measure.measure(case, "cuda", budget=0.0, rounds=(1, 1))
    report.write(report.record([result], "cuda"), tmp_path / "results.json")
    record = json.loads((tmp_path / "results.json").read_text())
    assert record["environment"]["gpu"] == "NVIDIA Played"
    assert report.table([result], "cuda").startswith("NVIDIA Played, driver None;")
    assert result.case.name in report.summary(record)


def test_checks_of_streams_and_graphs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu_checks", "--json", str(tmp_path / "checks.json")])
    some = [case for case in CASES if case.op in ("token_logprob", "moe_plan", "glu")]
    monkeypatch.setattr(gpu_checks, "CASES", some)
    monkeypatch.setattr(gpu_checks, "SIZE", "small")
    assert gpu_checks.main() == 1  # no launches here
    rows = json.loads((tmp_path / "checks.json").read_text())["ops"]
    assert {row["op"] for row in rows} == {case.op for case in some}
    assert [row for row in rows if row["stream"] != "ok"] == []
    # Nothing was recorded, so nothing is replayed: a graph's results are those of the first inputs.
    assert [row for row in rows if row["graph"] != "ok" and "AssertionError" not in row["graph"]] == []
    assert "token_logprob: 0 launches, FAILED: 1 expected" in capsys.readouterr().out


def test_checks_for_the_sanitizer(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sanitize", "-k", "^(glu|sample_step)$", "--sizes", "grad"])
    assert sanitize.main() == 0
    assert "of 2 ops agree with float64" in capsys.readouterr().out
