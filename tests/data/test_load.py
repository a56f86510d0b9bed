"""Loading of examples: JSON lines, saved data sets, the hub, and what is said about bad ones."""

import json
import sys
from collections import Counter

import pytest

from warpup.data import Source, load_examples

ROWS = [{"prompt": f"p{i}", "completion": f"c{i}", "answer": str(i), "level": i % 2} for i in range(5)]


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    return path


def test_load_json_lines(tmp_path):
    file = write(tmp_path / "a.jsonl", ROWS[:3])
    write(tmp_path / "b.jsonl", ROWS[3:])
    assert load_examples(file) == ROWS[:3]
    assert load_examples(str(tmp_path)) == ROWS
    assert load_examples(tmp_path, limit=4) == ROWS[:4]
    renamed = write(tmp_path / "c.json", [{"q": "p", "a": "1", "prompt": "gone"}])
    assert load_examples(renamed, prompt="q", completion=None, answer="a") == [{"prompt": "p", "answer": "1"}]


def test_load_saved_data_sets(tmp_path):
    datasets = pytest.importorskip("datasets")
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(tmp_path / "one")
    assert load_examples(tmp_path / "one") == ROWS
    datasets.DatasetDict(train=table, test=table).save_to_disk(tmp_path / "two")
    assert load_examples(tmp_path / "two" / "train", limit=2) == ROWS[:2]
    with pytest.raises(ValueError, match=r"several splits.*\['test', 'train'\]"):
        load_examples(tmp_path / "two")
    with pytest.raises(ValueError, match=r"row 0: no column 'q' for the prompt, there are .*'level'"):
        load_examples(tmp_path / "one", prompt="q")


def test_load_hub(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    (tmp_path / "name").mkdir()
    write(tmp_path / "name" / "train.jsonl", ROWS)
    write(tmp_path / "name" / "test.jsonl", ROWS[:1])
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    assert load_examples(f"hub:{tmp_path / 'name'}") == ROWS
    assert load_examples(f"hub:{tmp_path / 'name'}:test") == ROWS[:1]
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or ROWS)
    load_examples("hub:openai/gsm8k@main:train[:10]")
    assert asked == [(("openai/gsm8k", "main"), {"split": "train[:10]"})]


def test_load_says_what_is_wrong(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or directory .*none.jsonl \(.*hub:name"):
        load_examples(tmp_path / "none.jsonl")
    cases = [
        ('{"prompt": "p"}\n{oops', dict(completion=None, answer=None), "bad.jsonl, line 2: bad JSON: .* column 2"),
        ("\n[1]", {}, "line 2: expected a JSON object, got list"),
        ('{"prompt": "p", "a": 1}', {}, r"line 1: no column 'completion' .*\['a', 'prompt'\]; .*completion=None"),
        ('{"prompt": "p"}', dict(completion=None), "no column 'answer' for the answer"),
        (
            '{"prompt": 3}',
            dict(completion=None, answer=None),
            "column 'prompt': expected text or a list of messages, got int",
        ),
        ("\n\n", {}, "has no rows"),
        ("{}", dict(limit=0), "limit"),
        ("{}", dict(prompt=None), "prompt"),
    ]
    for text, options, message in cases:
        (tmp_path / "bad.jsonl").write_text(text)
        with pytest.raises(ValueError, match=message):
            load_examples(tmp_path / "bad.jsonl", **options)
    (tmp_path / "bad.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(ValueError, match="line 1: not UTF-8"):
        load_examples(tmp_path / "bad.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"neither \*.jsonl"):
        load_examples(tmp_path / "empty")
    with pytest.raises(ValueError, match="hub:name"):
        load_examples("hub:")


USER, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
SYSTEM = {"role": "system", "content": "be kind"}


def load(tmp_path, row, **columns):
    return load_examples(write(tmp_path / "chat.jsonl", [row]), answer=None, **columns)[0]


def test_chat_messages(tmp_path):
    """As prompt and completion, or as one conversation, whose last turn of the assistant is the completion."""
    wanted = {"prompt": [SYSTEM, USER], "completion": "hello"}
    assert load(tmp_path, {"prompt": [SYSTEM, USER], "completion": [REPLY]}) == wanted
    assert load(tmp_path, {"prompt": [SYSTEM, USER], "completion": "hello"}) == wanted
    extra = {"tools": [{"type": "function"}], "chat_template_kwargs": {"enable_thinking": False}}
    assert load(tmp_path, {"messages": [SYSTEM, USER, REPLY], **extra}) == wanted | extra
    turns = [USER, REPLY, USER, REPLY]
    assert load(tmp_path, {"messages": turns}) == {"prompt": turns[:3], "completion": "hello"}
    # Reinforcement needs no completion: a conversation may end with the question.
    assert load(tmp_path, {"messages": [SYSTEM, USER]}, completion=None) == {"prompt": [SYSTEM, USER]}
    for last in (REPLY, REPLY | {"thinking": "hm"}):
        assert load(tmp_path, {"messages": [USER, last]}, completion=None)["prompt"] == [USER]
    assert load(tmp_path, {"chat": [USER], "completion": "x"}, prompt="chat") == {"prompt": [USER], "completion": "x"}
    call = {"role": "assistant", "content": None, "tool_calls": [{}]}
    for row, message in [
        ({"messages": [USER]}, "column 'messages': expected the assistant's turn last"),
        ({"messages": [REPLY]}, "expected a turn before the assistant's"),
        ({"messages": []}, "column 'messages': expected text or a list of messages, got list"),
        ({"messages": [{"from": "human", "value": "hi"}]}, "expected messages with role and content, got {'from'"),
        ({"messages": [USER, call]}, "an assistant message whose content is text, got None"),
        ({"messages": [USER, call | {"content": "4"}]}, "this one has tool_calls beside it"),
        ({"prompt": "p", "completion": [REPLY | {"reasoning": "hm"}]}, "this one has reasoning beside it"),
        ({"prompt": [USER, REPLY], "completion": "x"}, "column 'prompt': the last message is the assistant's"),
        ({"prompt": "p", "completion": [USER]}, "column 'completion': expected text or one message of the assistant"),
        ({"prompt": "p", "completion": [REPLY, REPLY]}, "got 2 messages"),
    ]:
        with pytest.raises(ValueError, match=f"line 1: .*{message}"):
            load(tmp_path, row)


def test_plain_text(tmp_path):
    """A text without a prompt is a completion of nothing."""
    assert load(tmp_path, {"text": "once", "id": 3}) == {"prompt": "", "completion": "once", "id": 3}
    with pytest.raises(ValueError, match="no column 'prompt'"):
        load(tmp_path, {"text": "once"}, completion=None)
    with pytest.raises(ValueError, match="column 'text': expected text, got int"):
        load(tmp_path, {"text": 3})


def test_csv(tmp_path):
    file = tmp_path / "a.csv"
    file.write_text('\ufeffprompt,answer,note\n"2, and\n2",4,\n3,5,"a ""b"""\n', encoding="utf-8")
    rows = [{"prompt": "2, and\n2", "answer": "4", "note": ""}, {"prompt": "3", "answer": "5", "note": 'a "b"'}]
    assert load_examples(file, completion=None) == rows
    assert load_examples(tmp_path, completion=None, limit=1) == rows[:1]
    for text, message in [
        ("prompt,answer\n1\n", "line 2: expected 2 fields as in the first line, got 1"),
        ("prompt,answer\n1,2\n1,2,3\n", "line 3: expected 2 fields as in the first line, got 3"),
        ('prompt,answer\n1,"2', "line 2: unexpected end of data"),
        ("prompt\n1\n", r"line 2: no column 'answer' for the answer, there are \['prompt'\]"),
        ("prompt,answer\n", "has no rows"),
    ]:
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_examples(file, completion=None)


def test_parquet(tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"messages": [USER, REPLY], "answer": str(i)} for i in range(5)]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
    wanted = [{"prompt": [USER], "completion": "hello", "answer": str(i)} for i in range(5)]
    assert load_examples(tmp_path / "a.parquet") == wanted
    assert load_examples(tmp_path, limit=3) == wanted[:3]
    with pytest.raises(ValueError, match=r"a.parquet, row 0: no column 'level' for the answer"):
        load_examples(tmp_path, answer="level")
    write(tmp_path / "b.jsonl", ROWS)
    with pytest.raises(ValueError, match=r"holds .jsonl and .parquet files: name one of them"):
        load_examples(tmp_path)
    (tmp_path / "c.parquet").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"c.parquet: "):
        load_examples(tmp_path / "c.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match="pip install pyarrow"):
        load_examples(tmp_path / "a.parquet")


def test_json_that_is_one_list(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("\n" + json.dumps(ROWS, indent=1))
    assert load_examples(file) == ROWS
    file.write_text("[3]")
    with pytest.raises(ValueError, match=r"a.json, item 0: expected a JSON object, got int"):
        load_examples(file)
    file.write_text("[{}")
    with pytest.raises(ValueError, match="bad JSON"):
        load_examples(file)


def test_mixtures(tmp_path):
    """A weight says how often a part's rows count; the same rows are drawn each time."""
    one, two = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", [{"q": "x", "completion": "y"}] * 2)
    columns = {"prompt": "q", "answer": None}
    found = load_examples([{"path": str(one), "weight": 2}, Source(two, 0.5, columns=columns)])
    assert [e["prompt"] for e in found] == [f"p{i}" for i in range(5)] * 2 + ["x"]
    part = load_examples([Source(one, 1.6), Source(one, limit=2)])
    assert part == load_examples([Source(one, 1.6), Source(one, limit=2)])
    counts = Counter(e["prompt"] for e in part[:-2])
    assert sorted(counts.values()) == [1, 1, 2, 2, 2]
    assert part[-2:] == ROWS[:2]
    assert load_examples([str(one), one], limit=6) == [*ROWS, ROWS[0]]
    for parts, message in [
        ([], "a mixture of nothing"),
        ([{"path": "a", "wieght": 2}], "expected a part with path and optionally weight, limit, columns, got"),
        ([Source(one, 0)], r"weight of .*a.jsonl: expected a number above 0, got 0"),
        ([Source(one, limit=0)], r"limit of .*a.jsonl: expected a positive number"),
        ([Source(one, columns={"q": "prompt"})], "expected some of prompt, completion, answer"),
        ([Source(one), Source(two)], r"b.jsonl, line 1: no column 'prompt'"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_examples(parts)
