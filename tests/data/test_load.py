"""Loading of examples: JSON lines, saved data sets, the hub, and what is said about bad ones."""

import json

import pytest

from warpup.data import (
    load_examples,
)

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
        ('{"prompt": 3}', dict(completion=None, answer=None), "column 'prompt': expected text, got int"),
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
