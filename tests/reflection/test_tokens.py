"""`ReflectionTokens` of a byte-level tokenizer, and of one that knows whole words only."""

import warnings

import pytest

from warpup.data import word_tokenizer
from warpup.reflection import ReflectionSchedule, ReflectionTokens


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level BPE like those of the published models, trained on a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text = ["wait Wait but But however, await waiting", "Alternatively", " wait Wait but But, hmm"] * 60
    specials = ["<think>", "</think>", "<eos>"]
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(text, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")


def test_every_variant_is_found(byte_level):
    tokens = ReflectionTokens.from_tokenizer(byte_level, ["wait", "but"])
    texts = {byte_level.decode([i]) for i in tokens.ids}
    assert texts >= {"wait", "Wait", " wait", " Wait", " but", " But"}
    assert all(t.strip(" ,").lower() in ("wait", "but") for t in texts), texts
    assert tokens.think_start == (byte_level.convert_tokens_to_ids("<think>"),)
    assert tokens.think_end == (byte_level.convert_tokens_to_ids("</think>"),)
    plain = ReflectionTokens.from_tokenizer(byte_level, ["wait"], case=False, space=False)
    assert {byte_level.decode([i]) for i in plain.ids} == {"wait"}


@pytest.mark.filterwarnings("default")
def test_multi_token_and_missing_words(byte_level):
    with pytest.warns(UserWarning, match="'perhaps' takes . tokens .* is left out"):
        tokens = ReflectionTokens.from_tokenizer(byte_level, ["wait", "perhaps"])
    assert tokens.ids == ReflectionTokens.from_tokenizer(byte_level, ["wait"]).ids
    warnings.simplefilter("ignore")
    with pytest.raises(ValueError, match=r"none of .* is a single token"):
        ReflectionTokens.from_tokenizer(byte_level, ["perhaps"])
    with pytest.raises(ValueError, match="cannot spell 'perhaps'"):
        ReflectionTokens.from_tokenizer(word_tokenizer(), ["wait", "perhaps"])
    for name in ("think", "code"):
        with pytest.raises(ValueError, match=f"{name}: the tokenizer cannot spell"):
            ReflectionTokens.from_tokenizer(word_tokenizer(), ["wait"], **{name: ("<a>", "</a>")})


def test_code_markers(byte_level):
    """The usual pair is left out where it is not two tokens; a pair that is given is taken in pieces, too."""
    usual = ReflectionTokens.from_tokenizer(byte_level, ["wait"])
    assert usual.code_start == usual.code_end == ()
    given = ReflectionTokens.exactly(byte_level, ["wait"], code=("wait", "{}"))
    assert given.code_start == tuple(byte_level.encode("wait"))
    assert given.code_end == tuple(byte_level.encode("{}"))
    assert len(given.code_end) > 1
    assert ReflectionTokens.exactly(byte_level, ["wait"], code=None).markers[2:] == ((), ())


def test_too_long_a_marker():
    with pytest.raises(ValueError, match="think_end: expected at most 8 token ids"):
        ReflectionTokens((1,), think_end=tuple(range(9)))


def test_paper_exact(byte_level):
    schedule = ReflectionSchedule.paper_exact(byte_level)
    assert (schedule.wave, schedule.amplitude, schedule.period) == ("triangle", 5.0, 1200)
    assert {byte_level.decode([i]) for i in schedule.tokens.ids} == {"wait", "Wait", "but", "But", "Alternatively"}
    with pytest.raises(ValueError, match=r"not single tokens of this tokenizer: \['Wait', 'but'"):
        ReflectionSchedule.paper_exact(word_tokenizer())
