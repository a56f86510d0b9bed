"""Every file of a run, damaged in eleven ways each: what comes out is right, or one error that names the file."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from tests.support.tiny import TOKENIZER, Killed, killer, llama, same, warmup, weights
from warpup.cli import main
from warpup.train import Recipe, TrainError, load_model
from warpup.train.config import HeldOutConfig, TrainConfig
from warpup.train.log import MetricsLog
from warpup.train.report import heading, settings, subtitle

pytestmark = pytest.mark.usefixtures("one_thread")


def flipped(data: bytes, place: float) -> bytes:
    """One bit of the byte at this share of the file is another."""
    at = int(place * (len(data) - 1))
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def other_number(data: bytes) -> bytes:
    """The last digit is another: JSON stays JSON."""
    at = re.search(rb"\d(?=\D*$)", data).start()
    return data[:at] + (b"7" if data[at : at + 1] != b"7" else b"6") + data[at + 1 :]


DAMAGES = {
    "missing": None,
    "empty": lambda data: b"",
    "half": lambda data: data[: len(data) // 2],
    "one byte short": lambda data: data[:-1],
    "a bit at the beginning": lambda data: flipped(data, 0.02),
    "a bit in the middle": lambda data: flipped(data, 0.5),
    "a bit near the end": lambda data: flipped(data, 0.98),
    "zeros in the middle": lambda data: data[: len(data) // 2] + bytes(16) + data[len(data) // 2 + 16 :],
    "more than it was": lambda data: data + b"\xff\x00\xff",
    "another table": lambda data: b"{}",
    "another number": other_number,
}


def recipe():
    return Recipe([warmup(steps=4, max_tokens=512)])


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run that was killed after its checkpoint, the same run finished, and the weights that it ends with."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.raises(Killed):
        recipe().run(llama(), TOKENIZER, folder / "stopped", report=killer(4))
    whole = recipe().run(llama(), TOKENIZER, folder / "finished")
    return folder, weights(whole)


def outcomes(folder, copy, damage, use):
    """For each file of a folder what `use(copy)` gives once the file is damaged: "right", or the error."""
    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        name = file.relative_to(folder)
        if damage is None:
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(damage(file.read_bytes()))
        try:
            use(copy)
            found[str(name)] = "right"
        except TrainError as error:
            found[str(name)] = str(error)
    for name, said in found.items():
        # A file that is whole and says something else is named by what it is of.
        kind = Path(name).name.replace("tokenizer_config.json", "tokenizer").replace("tokenizer.json", "tokenizer")
        named = any(part in said for part in (kind, "holds another run", "other settings"))
        assert said == "right" or (named and "\n" not in said), (name, said)
    return found


@pytest.mark.parametrize("kind", DAMAGES)
def test_resumed_right_or_the_file_is_named(runs, tmp_path, kind):
    folder, right = runs

    def resume(copy):
        assert same(weights(recipe().run(llama(), TOKENIZER, copy)), right)

    found = outcomes(folder / "stopped", tmp_path / "copy", DAMAGES[kind], resume)
    assert len(found) == 10
    refused = {name for name, outcome in found.items() if outcome != "right"}
    of_checkpoint = {name for name in found if "step-" in name}
    assert len(of_checkpoint) == 7
    assert refused >= of_checkpoint  # nothing of a checkpoint is believed


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_saved_model_is_right_or_its_folder_is_named(runs, tmp_path, kind):
    """Nothing of it is believed. Without its checksums it is a model as any other."""
    folder, right = runs
    found = outcomes(
        folder / "finished" / "model", tmp_path / "copy", DAMAGES[kind],
        lambda copy: same(weights(load_model(copy)[0]), right),
    )  # fmt: skip
    assert len(found) == 6
    assert {name for name, outcome in found.items() if outcome == "right"} <= {"checksums.json"}
    assert (found["checksums.json"] == "right") == (DAMAGES[kind] is None)


def test_a_model_that_was_changed_on_purpose(runs, tmp_path):
    """The error says what to do; transformers takes the folder as it is."""
    model = tmp_path / "model"
    shutil.copytree(runs[0] / "finished" / "model", model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    assert AutoModelForCausalLM.from_pretrained(model).config.rms_norm_eps == 1e-3
    with pytest.raises(TrainError, match=r"config.json is damaged: .* If that was on purpose, delete checksums.json"):
        load_model(model)
    for wrong in ("", "[]", '{"files": {}}', '{"files": [], "checksum": "0"}'):
        (model / "checksums.json").write_text(wrong)
        with pytest.raises(TrainError, match=r"checksums.json is damaged: .* If that was on purpose, delete checksums"):
            load_model(model)
    (model / "checksums.json").unlink()
    assert load_model(model)[0].config.rms_norm_eps == 1e-3


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_report_reads_right_or_the_file_is_named(runs, tmp_path, kind):
    folder, _ = runs

    def read(copy):
        lines = MetricsLog(copy / "metrics.jsonl").read()
        assert subtitle(copy) is not None
        assert heading(copy, "1-warmup", lines)
        assert settings(copy)

    found = outcomes(folder / "stopped", tmp_path / "copy", DAMAGES[kind], read)
    assert len(found) == 10


@pytest.mark.parametrize("kind", DAMAGES)
def test_eval_names_the_config_of_a_run(tmp_path, capsys, kind):
    """It reads what the run was measured on; no model is loaded, since the reward is not trusted."""
    file = tmp_path / "train.json"
    settings = TrainConfig(held_out=HeldOutConfig(data="test.jsonl", reward="mine.py:score"))
    file.write_text(json.dumps(dataclasses.asdict(settings), indent=2) + "\n")
    if DAMAGES[kind] is None:
        file.unlink()
    else:
        file.write_bytes(DAMAGES[kind](file.read_bytes()))
    assert main(["eval", str(tmp_path)]) in (1, 2)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert ("train.json" if file.exists() else "nothing to measure on") in said
