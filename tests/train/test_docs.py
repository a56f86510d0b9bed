"""The pages on the trainer and the apps: the config shown has every key, and the options named exist."""

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest

from tests.support.servers import FLAGS
from warpup.train.config import TrainConfig
from warpup.train.config_file import fill

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
PAGES = ("train", "rlvr", "stages", "doctor", "demo", "transfer", "certify", "continual")
TRAINER = ("init", "doctor", "train", "sample", "eval", "report")
COMMANDS = {
    "train": TRAINER,
    "rlvr": TRAINER,
    "stages": TRAINER,
    "doctor": ("doctor",),
    "demo": ("demo", "eval"),
}  # that a page is about
pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_config_has_every_key_with_its_default():
    page, *more = ((DOCS / f"{name}.md").read_text() for name in ("train", "rlvr", "stages"))
    text, *others = re.findall(r"```toml\n(.*?)```", page + "".join(more), re.DOTALL)
    table = tomllib.loads(text)
    given, default = fill(TrainConfig, table, ""), TrainConfig()
    for part in ("lora", "warmup", "rlvr", "held_out"):
        for field in dataclasses.fields(getattr(default, part)):
            if field.name not in table[part]:
                assert f"`{part}.{field.name}`" in page, field.name
            elif field.name not in ("data", "reward"):
                assert getattr(getattr(given, part), field.name) == getattr(getattr(default, part), field.name), field
    assert set(table) == {field.name for field in dataclasses.fields(TrainConfig)} - {"stages"}
    kinds = [type(stage).__name__ for other in others for stage in fill(TrainConfig, tomllib.loads(other), "").stages]
    assert kinds == ["PreferenceSettings", "DistillSettings", "StepRewardSettings", "WarmupSettings"]


def test_commands_and_options_exist(capsys):
    """Every `--option` that a page names belongs to a command that the page is about."""
    from warpup import cli

    for page in PAGES:
        known = ""
        for command in COMMANDS.get(page, (page,)):
            with pytest.raises(SystemExit):
                cli.main([command, "--help"])
            known += capsys.readouterr().out
        if page == "rlvr":  # which says how the servers are started
            known += " ".join(flag for flags in FLAGS.values() for flag in flags)
        launchers = r"(?m)^(torchrun|accelerate launch) .* -m "  # which have options of their own
        text = re.sub(launchers, "", (DOCS / f"{page}.md").read_text())
        for option in re.findall(r"(?<![\w-])--[a-z][\w.-]*", text):
            assert option.rstrip(".") in known, (page, option)
