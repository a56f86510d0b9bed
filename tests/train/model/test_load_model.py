"""Saved models: found, loaded, and named where they are missing."""

import pytest
import torch

from tests.support.tiny import (
    TOKENIZER,
    gpt2,
    llama,
    rlvr,
    same,
    warmup,
    weights,
)
from warpup.train import Recipe, TrainError, load_model, newest_model
from warpup.train.config import TrainConfig
from warpup.train.model.load_model import start_model

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
    llama().save_pretrained(tmp_path)
    with pytest.raises(TrainError, match=r"cannot load the tokenizer .*tokenizer\.save_pretrained\(FOLDER\)"):
        load_model(tmp_path)


def test_weights_in_bfloat16_and_buffers_as_they_are(tmp_path):
    llama().save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    model, _ = start_model(TrainConfig(model=str(tmp_path), device="cpu", weights="bfloat16"))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert {b.dtype for b in model.buffers()} == {torch.float32}
