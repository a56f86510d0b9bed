"""Where prompts end and completions end: chats, several end tokens, tokenizers that add tokens of their own."""

import pytest
import torch
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from tests.support.tiny import EXAMPLES, TOKENIZER, llama
from warpup.data import word_tokenizer
from warpup.train import TrainError, rollout
from warpup.train.model.tokens import encode_pair, encode_prompt, end_tokens, turn_end

pytestmark = pytest.mark.usefixtures("one_thread")
TEMPLATE = (
    "{% for m in messages %}<think> {{ m.role[0] | upper }} {{ m.content }} </answer>\n{% endfor %}"
    "{% if tools %}( {{ tools | length }} ) {% endif %}"
    "{% if add_generation_prompt %}<think> A {% if enable_thinking %}<think>{% endif %}{% endif %}"
)


def chat_tokenizer() -> PreTrainedTokenizerFast:
    """Turns begin with <think> and end with </answer>, which is not the end token."""
    tokenizer = word_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</answer>"]})
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def ids_of(tokenizer, *words):
    return [tokenizer.convert_tokens_to_ids(word) for word in words]


def test_end_tokens_come_from_tokenizer_model_and_template():
    model, chat = llama(), chat_tokenizer()
    assert end_tokens(model, TOKENIZER) == [TOKENIZER.eos_token_id]
    model.generation_config.eos_token_id = [TOKENIZER.eos_token_id, 11]
    model.config.eos_token_id = 9
    assert end_tokens(model, chat) == [chat.eos_token_id, *ids_of(chat, "</answer>"), 11, 9]
    assert turn_end(TOKENIZER) == TOKENIZER.eos_token_id


@pytest.mark.parametrize("ends", [[7], [9, 2, 7]])
def test_any_of_the_ends_ends_a_completion(ends):
    """Each completion holds one of them, as its last token, or ran into the limit."""
    model = llama().eval()
    rolls = rollout(
        model, [[5, 6]], eos=ends, pad=0, max_new_tokens=60, copies=32, generator=torch.Generator().manual_seed(0)
    )
    assert rolls.finished.any()
    for row in range(32):
        completion = rolls.completion(row)
        assert not set(completion[:-1]) & set(ends)
        assert (completion[-1] in ends) == bool(rolls.finished[row])


def test_a_chat_s_completion_ends_with_the_turn():
    chat = chat_tokenizer()
    example = {"prompt": [{"role": "user", "content": "B"}], "completion": "knight"}
    prompt, completion = encode_pair(chat, example)
    assert prompt == ids_of(chat, "<think>", "U", "B", "</answer>", "<think>", "A")
    assert completion == ids_of(chat, "knight", "</answer>")
    message = example | {"completion": [{"role": "assistant", "content": "knight"}]}
    assert encode_pair(chat, message) == (prompt, completion)
    text = {"prompt": "B", "completion": "knight"}
    assert encode_pair(chat, text)[1] == [*ids_of(chat, "knight"), chat.eos_token_id]


def test_a_completion_of_messages_loses_nothing():
    """A conversation that repeats its prompt, as preference data have it, is taken; what nothing would learn is not."""
    asked, reply = [{"role": "user", "content": "B"}], {"role": "assistant", "content": "knight"}
    plain = {"prompt": asked, "completion": "knight"}
    assert encode_pair(TOKENIZER, {"prompt": "B", "completion": [*asked, reply]}) == encode_pair(
        TOKENIZER, {"prompt": "B", "completion": "knight"}
    )
    chat = chat_tokenizer()
    system = [{"role": "system", "content": "A"}]
    for prompt in (asked, system + asked):
        given = {"prompt": prompt, "completion": [*asked, reply]}
        assert encode_pair(chat, given) == encode_pair(chat, plain | {"prompt": prompt})
    for more in ([reply, {"role": "tool", "content": "4"}], [*system, *asked], [*asked, reply, *asked]):
        with pytest.raises(TrainError, match="one assistant message with a text behind the prompt's"):
            encode_pair(chat, plain | {"completion": [*more, reply]})
    for odd in (4, [], ["knight"], [{"role": "assistant"}], [reply | {"content": None}], [reply | {"role": "user"}]):
        with pytest.raises(TrainError, match="a completion must be a text, or one assistant message"):
            encode_pair(chat, plain | {"completion": odd})
    with pytest.raises(TrainError, match="this one has reasoning_content beside it; write all"):
        encode_pair(chat, plain | {"completion": [reply | {"reasoning_content": "hm", "tool_calls": None}]})


def test_an_end_that_is_there_is_not_added_again():
    chat = chat_tokenizer()
    example = {"prompt": [{"role": "user", "content": "B"}], "completion": "knight </answer>"}
    assert encode_pair(chat, example)[1] == ids_of(chat, "knight", "</answer>")
    with_eos = {"prompt": "B", "completion": f"knight {TOKENIZER.eos_token}"}
    assert encode_pair(TOKENIZER, with_eos)[1] == [*ids_of(TOKENIZER, "knight"), TOKENIZER.eos_token_id]


def test_template_arguments_and_tools_of_an_example():
    chat, prompt = chat_tokenizer(), [{"role": "user", "content": "B"}]
    plain = encode_prompt(chat, prompt)
    thinking = encode_prompt(chat, prompt, {"chat_template_kwargs": {"enable_thinking": True}})
    assert thinking == [*plain, *ids_of(chat, "<think>")]
    assert encode_prompt(chat, prompt, {"tools": [{"name": "f"}]}) != plain


def test_tokenizers_that_add_tokens():
    """An end token behind the prompt is dropped, a second begin token too; one that the text itself has stays."""
    tokenizer = word_tokenizer()
    bos, eos = tokenizer.bos_token, tokenizer.eos_token
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}", special_tokens=[(bos, tokenizer.bos_token_id), (eos, tokenizer.eos_token_id)]
    )
    a = ids_of(tokenizer, "A")
    assert tokenizer("A")["input_ids"] == [tokenizer.bos_token_id, *a, tokenizer.eos_token_id]
    assert encode_prompt(tokenizer, "A") == [tokenizer.bos_token_id, *a]
    assert encode_prompt(tokenizer, f"{bos} A") == [tokenizer.bos_token_id, *a]
    assert encode_prompt(tokenizer, f"A {eos}")[-1] == tokenizer.eos_token_id
    assert encode_pair(tokenizer, {"prompt": "A", "completion": "B"})[1] == [
        *ids_of(tokenizer, "B"), tokenizer.eos_token_id,
    ]  # fmt: skip


def test_a_document_begins_where_documents_do():
    first, rest = encode_pair(TOKENIZER, {"prompt": "", "completion": EXAMPLES[0]["prompt"]})
    assert first == [TOKENIZER.bos_token_id]
    assert rest[-1] == TOKENIZER.eos_token_id


def test_wrong_prompts():
    with pytest.raises(TrainError, match="has no chat template: set one, or give text"):
        encode_prompt(TOKENIZER, [{"role": "user", "content": "B"}])
    with pytest.raises(TrainError, match=r"the chat template refuses .* got 3"):
        encode_prompt(chat_tokenizer(), [{"role": "user"}, 3])
