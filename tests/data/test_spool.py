"""Rows in a temporary file: the same list as in memory, whatever fits there; a run on them is the same run."""

import json
import tracemalloc

import pytest

from tests.support.tiny import EXAMPLES, TOKENIZER, Killed, killer, llama, same, warmup, weights
from warpup.data import Source, load_examples
from warpup.data import spool as module
from warpup.data.load import spool_examples
from warpup.data.spool import Spool
from warpup.train import Recipe

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=[10, 1 << 20])
def limit(request, monkeypatch):
    monkeypatch.setattr(module, "IN_MEMORY", request.param)


@pytest.mark.usefixtures("limit")
def test_a_spool_is_a_list():
    items = [{"a": n, "b": ["x"] * n} for n in range(20)] + [([1, 2], [3], [True])]
    spool = Spool(items[:3])
    assert spool[2] == items[2]
    for item in items[3:]:
        spool.append(item)
        assert spool[-1] == item
    assert list(spool) == items
    assert len(spool) == 21
    assert spool[4:-1:3] == items[4:-1:3]
    with pytest.raises(IndexError):
        spool[21]
    spool.reorder([5, 0, 5])
    assert list(spool) == [items[5], items[0], items[5]]
    assert len(spool) == 3


@pytest.mark.usefixtures("limit")
def test_mixtures_name_their_rows(tmp_path):
    for name, count in (("a", 5), ("b", 3)):
        rows = [{"prompt": f"{name}{i}", "completion": "c", "answer": ""} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    parts = [Source(tmp_path / "a.jsonl", 1.4), Source(tmp_path / "b.jsonl", 2, limit=2)]
    found = [e["prompt"] for e in spool_examples(parts)]
    assert found[:5] == [f"a{i}" for i in range(5)]
    assert len(set(found[5:7])) == 2
    assert found[7:] == ["b0", "b1", "b0", "b1"]
    assert [e["prompt"] for e in load_examples(parts, limit=6)] == found[:6]


def test_large_data_take_little_memory(tmp_path, monkeypatch):
    """20 MB of rows and their tokens, of which 1 MB may be in memory: counted."""
    monkeypatch.setattr(module, "IN_MEMORY", 1 << 20)
    with (tmp_path / "a.jsonl").open("w") as file:
        for n in range(2000):
            row = {"prompt": f"knight {n}", "completion": "knave says " * 900, "answer": ""}
            file.write(json.dumps(row) + "\n")
    assert (tmp_path / "a.jsonl").stat().st_size > 19e6
    model, stage = llama(), warmup(data=str(tmp_path / "a.jsonl"), max_length=4000)
    tracemalloc.start()
    [data], [prepared] = Recipe([stage]).check(model, TOKENIZER)
    assert tracemalloc.get_traced_memory()[1] < 8e6
    tracemalloc.stop()
    assert len(data) == len(prepared.pairs) == 2000
    assert len(prepared.pairs[1999][1]) == 1801


def test_a_run_on_them_is_resumed_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "IN_MEMORY", 1000)
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, EXAMPLES)))
    whole = weights(Recipe([warmup()]).run(llama(), TOKENIZER, tmp_path / "whole"))
    stage = warmup(data=str(tmp_path / "a.jsonl"))
    with pytest.raises(Killed):
        Recipe([stage]).run(llama(), TOKENIZER, tmp_path / "run", report=killer(5))
    assert same(weights(Recipe([stage]).run(llama(), TOKENIZER, tmp_path / "run")), whole)
