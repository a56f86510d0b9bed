"""`pytest bench`: every case of every bench_<family>.py, checked, timed, in one table at the end.

`--benchmark-json FILE` (pytest-benchmark) keeps it all: each candidate in `extra_info`, the machine in `machine_info`.
"""

from __future__ import annotations

import pytest
import torch

import warpup._native as native
from bench.harness.measure import Result
from bench.harness.measure import measure as measure_case
from bench.harness.report import environment, table

RESULTS: list[Result] = []


def pytest_addoption(parser):
    group = parser.getgroup("warpup benchmarks")
    group.addoption("--bench-device", choices=["cpu", "cuda"], help="default: cuda where there is one")
    group.addoption("--bench-quick", action="store_true", help="tiny sizes: does every benchmark still run?")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    config.option.bench_device = config.option.bench_device or ("cuda" if native.has_cuda() else "cpu")
    if config.pluginmanager.hasplugin("benchmark"):
        config.option.benchmark_quiet = True  # our table takes the place of its own


def pytest_generate_tests(metafunc):
    option = metafunc.config.option
    size = "quick" if option.bench_quick else option.bench_device
    if "case" in metafunc.fixturenames:
        metafunc.parametrize("case", list(metafunc.module.cases(option.bench_device, size)), ids=lambda case: case.name)


class Replay:
    """The timer that pytest-benchmark is given: it reads out the samples of our first candidate, so that its statistics
    and its JSON show what was measured (beside the other candidates, or by the device's own clock)."""

    def __init__(self):
        self.ticks = []

    def load(self, seconds: list[float]) -> int:
        self.ticks = [tick for s in reversed(seconds) for tick in (s, 0.0)]
        return len(seconds)

    def __call__(self) -> float:
        return self.ticks.pop()


replay = Replay()


def pytest_collection_modifyitems(items):
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=replay, disable_gc=False))


@pytest.fixture
def measure(request):
    """Run a case; a wrong candidate fails it."""
    option = request.config.option
    rounds = {"budget": 0.0, "rounds": (2, 2)} if option.bench_quick else {}

    def run(case):
        result = measure_case(case, option.bench_device, **rounds)
        RESULTS.append(result)
        if request.config.pluginmanager.hasplugin("benchmark"):
            benchmark = request.getfixturevalue("benchmark")
            benchmark.extra_info.update(result.as_dict())
            if result.rows[0].samples:
                benchmark.pedantic(lambda: None, rounds=replay.load(result.rows[0].samples.seconds))
        assert not result.failures, "\n".join(result.failures)

    return run


def pytest_benchmark_update_machine_info(config, machine_info):
    machine_info["warpup"] = environment(config.option.bench_device)


def pytest_terminal_summary(terminalreporter, config):
    if RESULTS:
        terminalreporter.section("benchmarks")
        writer = terminalreporter._tw
        writer.line(table(RESULTS, config.option.bench_device, writer.fullwidth, writer.hasmarkup))


def pytest_report_header():
    return f"threads: {torch.get_num_threads()}"
