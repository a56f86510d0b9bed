"""Stop strings: a completion ends with the token that completes one, wherever the borders of tokens are."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from tests.support.tiny import EXAMPLES, TOKENIZER, Killed, completion_logprob, killer, llama, rlvr, same, weights
from tests.train.model.test_tokens import chat_tokenizer
from tests.train.sampling.test_episodes import Asks
from warpup.train import Recipe, TrainError, evaluate, rollout
from warpup.train.model.batch import collate
from warpup.train.model.tokens import encode_pair
from warpup.train.sampling.episodes import play
from warpup.train.sampling.stopping import StopStrings

pytestmark = pytest.mark.usefixtures("one_thread")


def pieces_tokenizer(*pieces):
    """Byte-level: these pieces, each a token, and all single bytes as gpt2 writes them."""
    alphabet = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in alphabet}
    letters |= {byte: chr(256 + n) for n, byte in enumerate(sorted(set(range(256)) - set(alphabet)))}

    def written(text):
        return "".join(letters[byte] for byte in text.encode())

    words = [*letters.values(), *(written(piece) for piece in pieces)]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token=words[0]))
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)
    ids = {piece: len(letters) + n for n, piece in enumerate(pieces)}
    return fast, lambda text: [list(letters).index(byte) for byte in text.encode()], ids


def ends_at(stop, ids):
    """The number of tokens after which a completion of these ids ends; None: never."""
    among = torch.tensor([True])
    for n in range(1, len(ids) + 1):
        if stop.completed(torch.tensor([ids[:n]]), among).item():
            return n
    return None


def test_across_the_borders_of_tokens():
    tokenizer, _, ids = pieces_tokenizer("a </", "ans", "wer>", "x", "> b", "wer")
    stop = StopStrings(tokenizer, ["</answer>"])
    assert ends_at(stop, [ids["x"], ids["a </"], ids["ans"], ids["wer>"], ids["x"]]) == 4
    assert ends_at(stop, [ids["x"], ids["a </"], ids["ans"], ids["wer"], ids["> b"], ids["x"]]) == 5
    assert ends_at(stop, [ids["a </"], ids["ans"], ids["x"], ids["wer>"]]) is None
    assert ends_at(StopStrings(tokenizer, ["nothing", "> b"]), [ids["x"], ids["> b"]]) == 2


@pytest.mark.parametrize("text", ["\u3002", "\u00e9!", "a\U0001f600b"])
def test_characters_of_several_tokens(text):
    """A character is there with its last byte; before a completion of any length."""
    tokenizer, bytes_of, _ = pieces_tokenizer("x")
    before, after = "\u4f60\u597d y" * 9, "z"
    ids = bytes_of(before + text + after)
    assert ends_at(StopStrings(tokenizer, [text]), ids) == len((before + text).encode())


def test_tokens_without_text_do_not_hide_it():
    """Ids that the tokenizer does not know, of a padded vocabulary, between the parts of the text."""
    tokenizer, _, ids = pieces_tokenizer("st", "op", "x")
    row = [ids["x"]] * 20 + [ids["st"], *[5000] * 30, ids["op"]]
    assert ends_at(StopStrings(tokenizer, ["stop"]), row) == len(row)


def test_rows_that_are_done_are_not_looked_at():
    tokenizer, _, ids = pieces_tokenizer("stop", "x")
    rows = torch.tensor([[ids["stop"]], [ids["stop"]], [ids["x"]]])
    assert StopStrings(tokenizer, ["stop"]).completed(rows, torch.tensor([False, True, True])).tolist() == [0, 1, 0]


def sample(stop, **options):
    model = llama().eval()
    prompts = [encode_pair(TOKENIZER, row)[0] for row in EXAMPLES[:4]]
    stop = StopStrings(TOKENIZER, stop) if stop else None
    rolls = rollout(
        model, prompts, eos=TOKENIZER.eos_token_id, pad=0, max_new_tokens=24, copies=5, stop=stop,
        generator=torch.Generator().manual_seed(0), **options,
    )  # fmt: skip
    return model, prompts, rolls


@pytest.mark.parametrize("rows", [None, 3])
def test_the_same_completions_cut_short(rows):
    """Of one word and of two: tokens and log-probs up to the stop are those without it; text and stop are whole."""
    texts = ["or", "try <think>"]
    _, _, whole = sample(None)
    model, prompts, rolls = sample(texts, rows=rows)
    stopped = 0
    for row in range(20):
        full, cut = whole.completion(row), rolls.completion(row)
        said = [TOKENIZER.decode(full[:n], skip_special_tokens=False) for n in range(1, len(full) + 1)]
        want = next((n for n, text in enumerate(said, 1) if any(stop in text for stop in texts)), len(full))
        assert cut == full[:want]
        met = any(stop in said[want - 1] for stop in texts)
        assert bool(rolls.finished[row]) == (met or bool(whole.finished[row]))
        torch.testing.assert_close(rolls.logp[row, :want], whole.logp[row, :want], rtol=1e-4, atol=1e-5)
        assert not rolls.logp[row, want:].any()
        stopped += want < len(full)
        batch = collate([(prompts[row // 5], cut)], [0], pad=0)
        torch.testing.assert_close(completion_logprob(model, batch), rolls.logp[row, :want], rtol=1e-4, atol=2e-5)
    assert stopped > 5


def test_rewards_see_it_and_held_out_stops_too(tmp_path):
    seen = []

    def reward(completion, example, finished, raw_completion):
        seen.append((completion, finished, raw_completion))
        return len(completion)

    Recipe([rlvr(reward=reward, steps=1, stop=("try",), max_new_tokens=24)]).run(llama(), TOKENIZER, tmp_path)
    ended = [text for text, *_ in seen if "try" in text]
    assert len(ended) > 5
    assert all(text.endswith("try") and text.count("try") == 1 for text in ended)
    assert all(finished and raw.endswith("try") for text, finished, raw in seen if "try" in text)
    found = evaluate(
        llama(), TOKENIZER, EXAMPLES[:6], lambda text, example: float(text.endswith("try")), stop=["try"],
        max_new_tokens=40, traces=6,
    )  # fmt: skip
    assert found.reward > 0.5
    assert found.unfinished < 0.5


def test_episodes_close_the_turn_that_a_stop_string_ended():
    """In a chat the end of the turn stands between, though the model did not write it."""
    chat, end = chat_tokenizer(), TOKENIZER.convert_tokens_to_ids("</answer>")

    class Chat(Asks):
        def reset(self, example):
            return [{"role": "user", "content": "A"}]

    knight = TOKENIZER.convert_tokens_to_ids("not")
    episodes = play(
        llama().eval(), chat, Chat, EXAMPLES[:2], turns=2, ends=[TOKENIZER.eos_token_id, end], copies=6, limit=200,
        max_new_tokens=12, generator=torch.Generator().manual_seed(0), stop=StopStrings(chat, ["not"]),
    )  # fmt: skip
    closed = 0
    for _, said, own in episodes.pairs:
        for n in range(len(said) - 1):
            if said[n] == knight and own[n] and not own[n + 1]:
                assert said[n + 1] == end
                closed += 1
    assert closed > 0


def test_killed_and_resumed_bit_for_bit(tmp_path):
    def stage():
        return rlvr(steps=3, save_every=1, stop=("or", "try <think>"), top_p=0.95, max_new_tokens=12)

    whole = weights(Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "whole"))
    with pytest.raises(Killed):
        Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "run", report=killer(2))
    assert same(whole, weights(Recipe([stage()]).run(llama(), TOKENIZER, tmp_path / "run")))


@pytest.mark.parametrize("stop", [("",), "</answer>"])
def test_wrong_settings(stop):
    with pytest.raises(TrainError, match=r"rlvr\.stop: expected a list of texts that are not empty"):
        rlvr(stop=stop).check()
