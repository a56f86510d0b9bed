"""How many tokens fit: what a model keeps of one is measured, what is free is asked, a run goes on as it began."""

import json

import pytest
import torch

from tests.support.tiny import TOKENIZER, Killed, killer, llama, mixture, rlvr, same, warmup, weights
from warpup.train import Recipe
from warpup.train.model import memory
from warpup.train.model.lora import LoRA, add_adapters
from warpup.train.model.memory import bytes_of_a_token, free_memory, tokens_that_fit
from warpup.train.model.precision import checkpoint_layers

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_a_token_takes():
    """Of a Llama layer: what its two norms, seven products, rotation, attention, gate and sums keep."""
    two, four = (bytes_of_a_token(llama(num_hidden_layers=n)) for n in (2, 4))
    of_a_layer = (four - two) / 2
    assert 4 * (8 * 32 + 3 * 64) < of_a_layer < 4 * (25 * 32 + 5 * 64)
    half = bytes_of_a_token(llama(num_hidden_layers=2), torch.bfloat16)
    assert half < 0.9 * two
    frozen = bytes_of_a_token(add_adapters(llama(num_hidden_layers=2), LoRA(r=1, targets=("q_proj",))))
    assert frozen < two
    layers = llama(num_hidden_layers=4)
    checkpoint_layers(layers)
    layers.model.train()  # as a stage has it
    assert bytes_of_a_token(layers) < 0.5 * four
    assert bytes_of_a_token(mixture()) > 0
    assert bytes_of_a_token(llama(max_position_embeddings=8)) > 0


def test_half_of_what_is_free_beside_gradients_and_moments(monkeypatch):
    model = llama()
    each, states = bytes_of_a_token(model), 12 * sum(p.numel() for p in model.parameters())
    for tokens in (1, 100, 5000):
        monkeypatch.setattr(memory, "free_memory", lambda device, n=tokens: states + int(2 * each * (n + 0.5)))
        assert tokens_that_fit(model) == tokens
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    assert tokens_that_fit(model) == 1
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    assert tokens_that_fit(model) == 16384


def test_free_memory_is_some_of_this_machine():
    free = free_memory(torch.device("cpu"))
    assert free is None or 2**20 < free < 2**50


@pytest.mark.parametrize(
    ("folder", "limit", "used"), [(".", "max", "current"), ("memory", "limit_in_bytes", "usage_in_bytes")]
)
def test_a_control_group_bounds_it(tmp_path, folder, limit, used):
    """Of both versions; what its files in memory take would give way, and does not count."""
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    (place / f"memory.{limit}").write_text("3000000\n")
    (place / f"memory.{used}").write_text("2500000\n")
    (place / "memory.stat").write_text("anon 7\nactive_file 100000\ninactive_file 20000\n")
    assert free_memory(torch.device("cpu"), tmp_path) == 620_000
    (place / f"memory.{limit}").write_text("max\n")
    assert free_memory(torch.device("cpu"), tmp_path) != 620_000


@pytest.mark.parametrize("stage", [warmup, rlvr])
def test_a_run_goes_on_with_the_number_it_began_with(tmp_path, monkeypatch, stage):
    """A machine with less to spare cuts the steps in other places, which would change the last bits."""
    settings = {"steps": 4, "save_every": 2}
    monkeypatch.setattr("warpup.train.recipe.tokens_that_fit", lambda model, dtype: 50)
    whole = Recipe([stage(**settings)]).run(llama(), TOKENIZER, tmp_path / "whole")
    with pytest.raises(Killed):
        Recipe([stage(**settings)]).run(llama(), TOKENIZER, tmp_path / "two", report=killer(3))
    monkeypatch.setattr("warpup.train.recipe.tokens_that_fit", lambda model, dtype: 9)
    resumed = Recipe([stage(**settings)]).run(llama(), TOKENIZER, tmp_path / "two")
    assert same(weights(resumed), weights(whole))
    [held] = (tmp_path / "two").glob("*/stage.json")
    assert json.loads(held.read_text())["max_tokens"] == 50
    # One that is given counts.
    settings["steps"] = 5
    stage = stage(**settings, lr_schedule="constant", max_tokens=77)
    Recipe([stage]).run(llama(), TOKENIZER, tmp_path / "given")
    [held] = (tmp_path / "given").glob("*/stage.json")
    assert json.loads(held.read_text())["max_tokens"] == 77
