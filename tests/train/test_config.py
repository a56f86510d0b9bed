"""Values of a config file are held against the settings' types, and parts that nothing reads are refused."""

import dataclasses

import pytest

from warpup.train import TrainError
from warpup.train.config import HeldOutConfig, TrainConfig, check_config_of_run
from warpup.train.config_file import OTHER_NAMES, convert, fill, load_config
from warpup.train.model.lora import LoRA
from warpup.train.stages.rlvr import RLVR
from warpup.train.stages.warmup import Warmup


@pytest.mark.parametrize(
    ("hint", "value", "wanted"),
    [
        (float, 3, 3.0),
        (float | None, "none", None),
        (tuple[float, float], [1, 0.5], (1.0, 0.5)),
        (str, "3", "3"),
        (int | None, 4, 4),
    ],
)
def test_values_that_fit(hint, value, wanted):
    found = convert(hint, value, "key")
    assert found == wanted
    assert type(found) is type(wanted)


@pytest.mark.parametrize(
    ("hint", "value", "message"),
    [
        (float, True, "key: expected a number, got True"),
        (int, 3.0, "key: expected a whole number, got 3.0"),
        (int, True, "key: expected a whole number, got True"),
        (str, 3, "key: expected a text, got 3"),
        (tuple[float, float], [1], "key: expected a list of 2 numbers, got .1."),
        (int | None, "all", "key: expected a whole number or \"none\", got 'all'"),
    ],
)
def test_values_that_do_not(hint, value, message):
    with pytest.raises(TrainError, match=message):
        convert(hint, value, "key")


def test_tables_nest():
    config = fill(TrainConfig, {"seed": 2, "rlvr": {"lr": 1, "answer": "none", "sampler": "sec"}}, "")
    assert (config.seed, config.rlvr.lr, config.rlvr.answer, config.rlvr.sampler) == (2, 1.0, None, "sec")
    with pytest.raises(TrainError, match=r"rlvr: expected a table, got 3"):
        fill(TrainConfig, {"rlvr": 3}, "")


def test_what_others_call_a_setting_is_none_here_and_means_one():
    config = TrainConfig()
    known = {field.name for part in (config, config.warmup, config.rlvr) for field in dataclasses.fields(part)}
    assert set(OTHER_NAMES.values()) <= known
    assert not OTHER_NAMES.keys() & known


def test_a_part_without_data_has_no_settings_unless_a_flag_emptied_it():
    def config(held_out):
        return TrainConfig(model="m", out="o", warmup=Warmup(data="x.jsonl"), held_out=held_out)

    check_config_of_run(config(HeldOutConfig()), TrainConfig())
    check_config_of_run(config(HeldOutConfig(points=3)), TrainConfig(held_out=HeldOutConfig(data="y.jsonl", points=3)))
    with pytest.raises(
        TrainError, match=r"held_out.points: got 3, but held_out has no data and is left out; set held_"
    ):
        check_config_of_run(config(HeldOutConfig(points=3)), TrainConfig())
    with pytest.raises(TrainError, match=r"rlvr.steps: got 3, but rlvr has no data and is left out; set rlvr.data"):
        check_config_of_run(
            TrainConfig(model="m", out="o", warmup=Warmup(data="x.jsonl"), rlvr=RLVR(steps=3)), TrainConfig()
        )


def test_weights_in_bfloat16_go_with_no_other_precision():
    for more, message in (
        ({"dtype": "float32"}, r"dtype: got 'float32', but products are made in bfloat16"),
        ({"lora": LoRA(r=2)}, r"weights: got 'bfloat16', but only adapters are trained"),
    ):
        config = TrainConfig(model="m", out="o", warmup=Warmup(data="x.jsonl"), weights="bfloat16", **more)
        with pytest.raises(TrainError, match=message):
            check_config_of_run(config, TrainConfig())


def test_rewards_with_weights_in_a_config(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text('[rlvr]\nreward = ["a.py:f", "module:g"]\nreward_weights = [1, 0.5]\nreward_timeout = 5\n')
    stage = load_config(path).rlvr
    assert stage.reward == ("a.py:f", "module:g")
    assert stage.reward_weights == (1.0, 0.5)
    assert stage.reward_timeout == 5.0
    path.write_text("[rlvr]\nreward = [3]\n")
    with pytest.raises(TrainError, match=r"rlvr.reward: expected a text, got 3"):
        load_config(path)
    path.write_text('[rlvr]\nreward_weights = ["1"]\n')
    with pytest.raises(TrainError, match=r"rlvr.reward_weights: expected a number, got '1'"):
        load_config(path)


def test_stages_in_any_order_and_number(tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(
        """
        model = "m"
        out = "o"
        [[stages]]
        kind = "preference"
        data = "pairs.jsonl"
        loss = "simpo"
        [[stages]]
        kind = "warmup"
        data = "chains.jsonl"
        steps = 3
        [[stages]]
        kind = "warmup"
        data = "more.jsonl"
        """
    )
    config = load_config(path)
    assert [(type(stage).__name__, stage.data) for stage in config.all_stages()] == [
        ("Preference", "pairs.jsonl"), ("Warmup", "chains.jsonl"), ("Warmup", "more.jsonl"),
    ]  # fmt: skip
    assert config.all_stages()[1].steps == 3
    check_config_of_run(config, config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages = 3", r"stages: expected tables, each written under \[\[stages\]\], got 3"),
        ('[[stages]]\nkind = "sft"', r"stages\[0\].kind: expected one of warmup, .*step_reward, got 'sft'"),
        ('[[stages]]\nkind = "warmup"\nstep = 3', r"stages\[0\]: unknown key 'step': did you mean 'steps'"),
        ('[[stages]]\nkind = "warmup"', r"stages\[0\].data: nothing given"),
        ('[[stages]]\nkind = "warmup"\ndata = "a"\n[rlvr]\ndata = "b"', r"\[warmup\] and \[rlvr\] have data too"),
    ],
)
def test_wrong_stages(tmp_path, text, message):
    path = tmp_path / "run.toml"
    path.write_text(f'model = "m"\nout = "o"\n{text}\n')
    with pytest.raises(TrainError, match=message):
        check_config_of_run(load_config(path), TrainConfig())
