"""What of an example is learned: spans, marked passages, turns; and what becomes of examples that are too long."""

import copy

import pytest

from tests.support.tiny import TOKENIZER, llama
from warpup.train import TrainError, Warmup
from warpup.train.model.spans import encode_spans, encode_turns, marked_spans
from warpup.train.model.tokens import encode_prompt

pytestmark = pytest.mark.usefixtures("one_thread")
END = TOKENIZER.eos_token_id


def ids(text):
    return TOKENIZER(text)["input_ids"]


def learned(pair):
    """The learned tokens as text."""
    return TOKENIZER.decode([t for t, flag in zip(pair[1], pair[2], strict=True) if flag])


def test_spans_take_the_tokens_they_touch():
    example = {"prompt": "knight", "completion": "says not knave and not knight"}
    pair = encode_spans(TOKENIZER, example, [[5, 8], [11, 12]], [END])
    assert pair[0] == ids("knight")
    assert pair[1] == [*ids(example["completion"]), END]
    assert learned(pair) == "not knave"
    assert learned(encode_spans(TOKENIZER, example, [(23, 29)], [END])) == "knight <eos>"  # a span that goes to the end
    assert learned(encode_spans(TOKENIZER, example, [(23, 29), (0, 4)], [END])) == "says knight <eos>"
    for bad in ([], [[3, 3]], [[20, 30]], [[1]]):
        with pytest.raises(ValueError, match="expected spans"):
            encode_spans(TOKENIZER, example, bad, [END])
    with pytest.raises(ValueError, match="no token stands"):
        encode_spans(TOKENIZER, example, [[4, 5]], [END])  # a space


def test_markers_are_taken_out():
    assert marked_spans("a <b>c</b> d<b>e</b>", ("<b>", "</b>")) == ("a c de", [(2, 3), (5, 6)])
    assert marked_spans("a", ("<b>", "</b>")) == ("a", [])
    for bad in ("a <b> c", "a </b> c", "<b>a<b>c</b>", "</b> <b>a</b>"):
        with pytest.raises(ValueError, match="in turn"):
            marked_spans(bad, ("<b>", "</b>"))


def chat_tokenizer(template):
    tokenizer = copy.deepcopy(TOKENIZER)
    tokenizer.chat_template = template
    return tokenizer


TEMPLATE = (
    "{% for m in messages %}{{ 'try ' if m['role'] == 'user' else 'back ' }}{{ m['content'] }} {{ '<eos> . ' }}"
    "{% endfor %}{% if add_generation_prompt %}back {% endif %}"
)
TALK = [
    {"role": "user", "content": "knight"},
    {"role": "assistant", "content": "not knave"},
    {"role": "user", "content": "says"},
    {"role": "assistant", "content": "and"},
    {"role": "user", "content": "or"},
]


def test_every_turn_of_the_assistant():
    tokenizer = chat_tokenizer(TEMPLATE)
    pair = encode_turns(tokenizer, {"prompt": TALK, "completion": "knave knight"}, [END])
    whole = "try knight <eos> . back not knave <eos> . try says <eos> . back and <eos> . try or <eos> . back "
    whole += "knave knight"
    assert pair[0] + pair[1] == [*ids(whole), END]
    assert tokenizer.decode(pair[0]) == "try knight <eos> . back"
    assert learned(pair) == "not knave <eos> and <eos> knave knight <eos>"
    assert pair[0] == encode_prompt(tokenizer, TALK[:1])


def test_a_template_that_rewrites_earlier_turns_is_refused():
    for template in (
        TEMPLATE.replace("{{ m['content'] }}", "{{ m['content'] if loop.last else 'yes' }}"),
        TEMPLATE + "{% if not add_generation_prompt %}ok{% endif %}",  # what ends a conversation alone
    ):
        with pytest.raises(TrainError, match=r"template writes message 1 in another way"):
            encode_turns(chat_tokenizer(template), {"prompt": TALK, "completion": "knave"}, [END])


def prepared(rows, tokenizer=TOKENIZER, **settings):
    return Warmup(data=rows, **settings).prepare(llama(), tokenizer, rows)


def test_settings_of_the_warm_up_reach_them():
    row = {"prompt": "knight", "completion": "says not knave", "where": [[5, 8]]}
    [pair] = prepared([row], spans="where").pairs
    assert learned(pair) == "not"
    [pair] = prepared([row | {"completion": "says [not] knave"}], markers=("[", "]")).pairs
    assert pair[1] == [*ids("says not knave"), END]
    assert learned(pair) == "not"
    found = prepared([row, {"prompt": TALK, "completion": "knave"}], chat_tokenizer(TEMPLATE), turns="all").pairs
    assert len(found[0]) == 2
    assert learned(found[1]) == "not knave <eos> and <eos> knave <eos>"


def test_examples_that_are_too_long(capsys):
    rows = [{"prompt": "knight", "completion": "says not"}, {"prompt": "knight and", "completion": "not " * 8}]
    assert len(prepared(rows, max_length=4, too_long="drop").pairs) == 1
    assert "warmup: of the examples 1 too long and left out" in capsys.readouterr().err
    cut = prepared(rows, max_length=5, too_long="cut").pairs
    assert cut[1] == (ids("knight and"), ids("not not not"))
    assert "warmup: of the examples 1 cut" in capsys.readouterr().err
    labels = {"ids": [[n] for n in range(9)], "logprobs": [[0.0]] * 9}
    kept = prepared([rows[1] | {"t": labels}], max_length=5, too_long="cut", soft_labels="t")
    assert [each.tolist() for each in kept.soft[0]] == [[[0], [1], [2]], [[1.0]] * 3]
    text = [{"prompt": "", "completion": "says not knave and not knight or"}]
    pieces = list(prepared(text, max_length=4, too_long="split").pairs)
    assert pieces == [
        ([TOKENIZER.bos_token_id], ids("says not knave")),
        (ids("knave"), ids("and not knight")),
        (ids("knight"), [*ids("or"), END]),
    ]
    with pytest.raises(TrainError, match=r"example 1: longer than max_length, 5, and with a prompt it cannot be split"):
        prepared(rows, max_length=5, too_long="split")
