"""`warpup init`: what it writes runs as it stands, and has every setting with its default."""

import dataclasses
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.command import call, error
from warpup.rewards import check
from warpup.train import RLVR, Warmup
from warpup.train.config import TrainConfig
from warpup.train.config_file import fill
from warpup.train.init import CHOSEN, config_text, field_docs

pytestmark = pytest.mark.usefixtures("one_thread")


def test_every_setting_is_there_with_its_default():
    text = config_text(CHOSEN | {"model": "model"})
    expected = TrainConfig(model="model")
    for name, value in CHOSEN.items():
        part = dataclasses.replace(getattr(expected, name), **value) if isinstance(value, dict) else value
        expected = dataclasses.replace(expected, **{name: part})
    assert fill(TrainConfig, tomllib.loads(text), "") == expected
    # The lines that are commented out, taken in, change nothing: they are the defaults.
    whole = tomllib.loads(re.sub(r"^# (?=\w+ = )", "", text, flags=re.MULTILINE))
    assert fill(TrainConfig, whole, "") == expected
    for part in ("lora", "warmup", "rlvr", "held_out"):
        assert set(whole[part]) == {field.name for field in dataclasses.fields(getattr(expected, part))}
    assert "# seed = 0                        # Seed of data order, sampling and everything else.\n" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_a_field_without_a_docstring_is_told():
    assert field_docs(Warmup)["steps"] == "Optimizer steps."
    assert field_docs(RLVR)["schedule"].endswith("names it; the loss replays it.")
    with pytest.raises(KeyError, match="bare"):
        field_docs(Bare)


@dataclasses.dataclass
class Bare:
    told: int = 1
    """It has one."""
    bare: int = 2


@pytest.mark.parametrize("kind", [str, list])
def test_the_folder_runs_as_it_stands(project, capsys, monkeypatch, kind):
    if kind is list:  # prompts are messages where the model takes them
        (project / "start" / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    code, out, _ = call(capsys, "init", "new/run", "--model", "start")
    assert code == 0
    assert "cd new/run\n  warpup doctor --config train.toml\n  warpup train train.toml" in out
    monkeypatch.chdir("new/run")
    rows = [json.loads(line) for name in ("train", "test") for line in Path(f"{name}.jsonl").read_text().splitlines()]
    assert {type(row["prompt"]) for row in rows} == {kind}
    assert len({json.dumps(row["prompt"]) for row in rows}) == len(rows) == 60  # none is trained on and held out
    done = subprocess.run([sys.executable, "reward.py"], capture_output=True, text=True)
    assert "the reward does what it should" in done.stdout
    assert all(case.case.right for case in check("reward.py:score"))  # nothing wrong is paid
    flags = ("--warmup.steps", 2, "--rlvr.steps", 1, "--held-out.points", 1, "--threads", 1)
    said = error(capsys, "train", "train.toml", *flags)  # both stages ran; of an untrained model no sum is right
    assert "nothing was learned: 2-rlvr 0 of 1 steps (skipped 1)" in said
    assert json.loads((project / "new/run/run/train.json").read_text())["rlvr"]["reward"] == "reward.py:score"


def test_nothing_is_overwritten(project, capsys):
    text = (project / "train.jsonl").read_text()
    assert ". has train.jsonl and test.jsonl already" in error(capsys, "init", status=2)
    assert "nowhere is not a saved model" in error(capsys, "init", "new", "--model", "nowhere", status=2)
    assert "run.toml is a file: give a folder" in error(capsys, "init", "run.toml", status=2)
    assert (project / "train.jsonl").read_text() == text
    assert not (project / "train.toml").exists()
    assert not (project / "new").exists()
