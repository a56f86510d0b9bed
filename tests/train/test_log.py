"""The metrics file, and the numbers on a line of progress."""

import json

from warpup.train.log import MetricsLog, short


def test_a_log_keeps_whole_lines_and_forgets_what_comes_after_a_step(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    assert log.read() == []
    for stage, step in (("one", 1), ("one", 2), ("one", 3), ("two", 1)):
        log.write({"stage": stage, "step": step, "loss": float("nan"), "reward": 0.5})
    with log.path.open("a") as file:
        file.write('{"stage": "two", "st')  # a kill
    assert json.loads(log.path.read_text().splitlines()[0])["loss"] is None
    log.rewind("one", 2)
    assert [(line["stage"], line["step"]) for line in log.read()] == [("one", 1), ("one", 2), ("two", 1)]
    log.rewind("two", -1)
    assert [line["stage"] for line in log.read()] == ["one", "one"]


def test_a_line_of_progress_shows_the_numbers_that_matter():
    numbers = {"reward": 0.51234, "loss": float("nan"), "tokens_per_s": 12345.6, "skipped": 2, "sample": {}, "other": 1}
    assert short(numbers) == "reward 0.512  skipped 2  tokens_per_s 12346"
