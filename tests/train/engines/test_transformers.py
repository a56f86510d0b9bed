"""transformers' continuous batching as the sampler of RLVR."""

import pytest
import torch

from tests.support.tiny import TOKENIZER, completion_logprob, llama, rlvr, steps_of
from warpup.train import Recipe, TrainError
from warpup.train.engines.protocol import SamplingParams
from warpup.train.engines.transformers import ContinuousBatching
from warpup.train.model.batch import collate
from warpup.train.model.tokens import encode_prompt

pytestmark = pytest.mark.usefixtures("one_thread")

END = TOKENIZER.eos_token_id
PROMPTS = [encode_prompt(TOKENIZER, text) for text in ("A is a knight", "B says that A is a knave or a knave")]


def params(seed=0, **options):
    settings = {"max_new_tokens": 6, "copies": 3, "temperature": 0.7} | options
    return SamplingParams([END], TOKENIZER.pad_token_id, generator=torch.Generator().manual_seed(seed), **settings)


def test_log_probs_are_those_of_the_model():
    """At the temperature, in batches of requests of any length."""
    model = llama()
    rolls = ContinuousBatching(model).generate(PROMPTS, params())
    pairs = [(PROMPTS[row // 3], rolls.completion(row)) for row in range(6)]
    batch = collate(pairs, range(6), TOKENIZER.pad_token_id)
    with torch.no_grad():
        own = completion_logprob(model, batch, 0.7)
    torch.testing.assert_close(rolls.logp[rolls.learned()], own, rtol=1e-4, atol=1e-5)
    assert (rolls.logp[~rolls.learned()] == 0).all()


def test_where_completions_end():
    model = llama()
    model.get_output_embeddings().weight.data[END] *= 3  # often
    rolls = ContinuousBatching(model).generate(PROMPTS * 4, params(temperature=1.0))
    for row, finished in enumerate(rolls.finished.tolist()):
        tokens = rolls.completion(row)
        assert END not in tokens[:-1]
        assert finished == (tokens[-1] == END)
        assert finished or len(tokens) == 6
    assert 0 < rolls.finished.sum() < 24


def test_the_seed_says_what_is_drawn():
    engine = ContinuousBatching(llama())
    first, again, other = (engine.generate(PROMPTS, params(seed)).tokens for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)
    assert len({tuple(row) for row in first.tolist()}) > 2  # copies are not alike


def test_the_model_is_left_as_it_was():
    model = llama().train()
    model.model.layers[0].eval()
    before, attention = [m.training for m in model.modules()], model.config._attn_implementation
    ContinuousBatching(model).generate(PROMPTS, params())
    assert [m.training for m in model.modules()] == before
    assert model.config._attn_implementation == attention


def test_a_request_that_fails_is_an_error(monkeypatch):
    model = llama()
    plain = model.generate_batch

    def failing(*arguments, **options):
        found = plain(*arguments, **options)
        found.popitem()
        return found

    monkeypatch.setattr(model, "generate_batch", failing)
    with pytest.raises(TrainError, match="continuous batching: 5 of 6 requests came back"):
        ContinuousBatching(model).generate(PROMPTS, params())


def test_a_run(tmp_path):
    Recipe([rlvr(engine="transformers", steps=3)]).run(llama(), TOKENIZER, tmp_path)
    for name, want in (("sampler_kl", 0.0), ("correction_ratio", 1.0)):
        assert [value for _, value in steps_of(tmp_path, name)] == pytest.approx([want] * 3, abs=1e-5)
