"""How many tokens fit: what a model keeps of one is measured, what is free is asked, a run goes on as it began."""

import json

import pytest
import torch

from tests.support.tiny import EXAMPLES, TOKENIZER, Killed, killer, llama, mixture, rlvr, same, warmup, weights
from tests.train.model.test_heads import build
from tests.train.sampling.test_episodes import Asks
from warpup.train import Recipe
from warpup.train.model import memory
from warpup.train.model.lora import LoRA, add_adapters
from warpup.train.model.memory import (
    bytes_of_a_cached_row,
    bytes_of_a_token,
    free_memory,
    rows_that_fit,
    tokens_that_fit,
)
from warpup.train.model.precision import checkpoint_layers
from warpup.train.rewards.reward_set import VERIFIER

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


def test_what_a_cached_row_takes():
    """Of attention keys and values of each token, of recurrent layers a state; weights do not count."""
    assert bytes_of_a_cached_row(llama(num_hidden_layers=3)) == (0, 3 * 2 * 32 * 4)
    # Under autocast a rotation leaves keys in float32.
    assert bytes_of_a_cached_row(llama(num_hidden_layers=3), torch.bfloat16) == (0, 3 * 32 * (4 + 2))
    adapted = add_adapters(llama(num_hidden_layers=3), LoRA(r=1, targets=("q_proj",)))
    assert bytes_of_a_cached_row(adapted) == (0, 3 * 2 * 32 * 4)
    fixed, each = bytes_of_a_cached_row(build("Mamba", state_size=4))
    assert fixed > 0 == each
    model = llama().train()
    bytes_of_a_cached_row(model)
    assert model.training


def test_rows_take_half_of_what_is_free(monkeypatch):
    each = 2 * 2 * 32 * 4 * 50 + 12 * len(TOKENIZER)
    for rows in (1, 9, 100):
        monkeypatch.setattr(memory, "free_memory", lambda device, n=rows: int(2 * each * (n + 0.5)))
        assert rows_that_fit(llama(), 50) == rows
    monkeypatch.setattr(memory, "free_memory", lambda device: 0)
    assert (rows_that_fit(llama(), 50), rows_that_fit(llama(), 0)) == (1, 256)
    monkeypatch.setattr(memory, "free_memory", lambda device: None)
    assert rows_that_fit(llama(), 50) == 256


def test_rows_are_kept_for_resuming(tmp_path, monkeypatch):
    """They are measured for the longest prompt and a whole completion, of an episode for all its turns."""
    asked = []
    monkeypatch.setattr("warpup.train.recipe.rows_that_fit", lambda model, length, dtype: asked.append(length) or 5)
    stage = rlvr(steps=2, save_every=1)
    with pytest.raises(Killed):
        Recipe([stage]).run(llama(), TOKENIZER, tmp_path / "run", report=killer(2))
    monkeypatch.setattr("warpup.train.recipe.rows_that_fit", lambda *arguments: 1 / 0)
    resumed = Recipe([stage]).run(llama(), TOKENIZER, tmp_path / "run")
    longest = max(len(TOKENIZER(row["prompt"])["input_ids"]) for row in EXAMPLES)
    assert asked == [longest + 8]
    assert json.loads((tmp_path / "run/1-rlvr/stage.json").read_text())["rows"] == 5
    given = Recipe([rlvr(steps=2, rows=5)]).run(llama(), TOKENIZER, tmp_path / "given")
    assert same(weights(resumed), weights(given))
    played = rlvr(environment=Asks, reward=VERIFIER, turns=3)
    assert played.longest_row(played.prepare(llama(), TOKENIZER, EXAMPLES)) == 3 * (longest + 8)


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
