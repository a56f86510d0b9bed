"""Saved models: found, loaded, and named where they are missing."""

import pytest

from tests.support.tiny import (
    TOKENIZER,
    gpt2,
    rlvr,
    same,
    warmup,
    weights,
)
from warpup.train import Recipe, TrainError, load_model, newest_model

pytestmark = pytest.mark.usefixtures("one_thread")


def test_any_saved_model_loads_trains_and_saves(tmp_path):
    start = gpt2()
    start.save_pretrained(tmp_path / "start")
    TOKENIZER.save_pretrained(tmp_path / "start")
    model, tokenizer = load_model(tmp_path / "start")
    assert same(weights(start), weights(model))
    Recipe([warmup(steps=3), rlvr(steps=2)]).run(model, tokenizer, tmp_path / "run")
    again, _ = load_model(newest_model(tmp_path / "run"))
    assert same(weights(again), weights(model))
    assert not same(weights(again), weights(start))


def test_missing_models_are_named(tmp_path):
    with pytest.raises(TrainError, match="no folder"):
        newest_model(tmp_path / "nothing")
    with pytest.raises(TrainError, match="holds no model and no checkpoint"):
        newest_model(tmp_path)
    with pytest.raises(TrainError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(TrainError, match="cannot load the model"):
        load_model(tmp_path)
