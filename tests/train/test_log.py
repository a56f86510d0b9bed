"""The metrics file, and the numbers on a line of progress."""

import json
import math

import pytest

from warpup.train import TrainError
from warpup.train.log import MetricsLog, short


def test_a_log_keeps_whole_lines_and_forgets_what_comes_after_a_step(tmp_path):
    log, nan = MetricsLog(tmp_path / "metrics.jsonl"), math.nan
    assert log.read() == []
    for stage, step in (("one", 1), ("one", 2), ("one", 3), ("two", 1)):
        log.write({"stage": stage, "step": step, "loss": nan, "sample": {"reward": nan}, "each": [-math.inf, 1]})
    with log.path.open("a") as file:
        file.write('{"stage": "two", "st')  # a kill
    line = json.loads(log.path.read_text().splitlines()[0])
    assert (line["loss"], line["sample"], line["each"]) == (None, {"reward": None}, [None, 1])
    log.rewind("one", 2)
    assert [(line["stage"], line["step"]) for line in log.read()] == [("one", 1), ("one", 2), ("two", 1)]
    log.rewind("two", -1)
    assert [line["stage"] for line in log.read()] == ["one", "one"]


def test_a_line_after_a_torn_one_is_whole(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"stage": "one", "step": 1})
    with log.path.open("ab") as file:
        file.write(b'{"stage": "one", "st')  # a full disk, or a kill
    log.write({"stage": "one", "step": 2})
    assert [line["step"] for line in log.read()] == [1, 2]
    assert log.path.read_bytes().count(b"\n") == 2
    log.path.write_bytes(b'{"sta')  # nothing but half a line
    assert log.read() == []
    log.write({"stage": "one", "step": 3})
    assert [line["step"] for line in log.read()] == [3]


@pytest.mark.parametrize("line", [b"{}", b"[]", b'{"stage": "a", "step": "2"}', b'{"stage": "\xff", "step": 2}', b"{"])
def test_a_damaged_line_is_named(tmp_path, line):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"stage": "one", "step": 1})
    with log.path.open("ab") as file:
        file.write(line + b"\n")
    with pytest.raises(TrainError, match=r"metrics.jsonl, line 2, is damaged .*: delete the line"):
        log.read()


def test_a_line_of_progress_shows_the_numbers_that_matter():
    numbers = {"reward": 0.51234, "loss": float("nan"), "tokens_per_s": 12345.6, "skipped": 2, "sample": {}, "other": 1}
    assert short(numbers) == "reward 0.512  skipped 2  tokens_per_s 12346"
