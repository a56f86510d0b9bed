"""The pretrained models that `warpup fetch` makes: they answer, and stop where their turn ends."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.models import pretrained
from warpup import cli
from warpup.apps import fetch
from warpup.train.errors import TrainError


def load(name):
    folder = pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return folder, model, AutoTokenizer.from_pretrained(folder)


def test_smollm2_answers_a_question():
    folder, model, tokenizer = load("smollm2")
    for country, capital in {"France": "Paris", "Japan": "Tokyo"}.items():
        chat = tokenizer.apply_chat_template(
            [{"role": "user", "content": f"What is the capital of {country}?"}],
            add_generation_prompt=True,
            return_tensors="pt",
            return_dict=True,
        )
        out = model.generate(**chat, max_new_tokens=40, do_sample=False)[0, chat["input_ids"].shape[1] :]
        assert int(out[-1]) == tokenizer.convert_tokens_to_ids("<|im_end|>")  # its turn ended, it was not cut off
        assert capital in tokenizer.decode(out, skip_special_tokens=True)
    assert set(model.generation_config.eos_token_id) == set(
        tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    )
    assert model.lm_head.weight is model.model.embed_tokens.weight  # still tied
    config = json.loads((folder / "config.json").read_text())
    assert (config["dtype"], "quantization_config" in config) == ("bfloat16", False)


def test_a_folder_that_holds_something_is_left_alone(tmp_path, capsys):
    (tmp_path / "mine").write_text("text")
    assert cli.main(["fetch", "smollm2", str(tmp_path)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_the_folder_of_another_model_is_refused(tmp_path):
    """Else `warpup transfer --model gemma3-270m` would measure what an earlier call has left in the folder."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert fetch.fetched("smollm2", tmp_path) == tmp_path
    with pytest.raises(TrainError, match="holds another model, of type llama, than gemma3-270m: choose another folder"):
        fetch.fetched("gemma3-270m", tmp_path)


def test_the_folder_may_be_the_one_at_work(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "convert", lambda name, folder: (folder.mkdir(), (folder / "it").write_text(name)))
    monkeypatch.setattr(fetch, "find_spec", bool)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert cli.main(["fetch", "smollm2", "."]) == 0
    assert (tmp_path / "here" / "it").read_text() == "smollm2"
