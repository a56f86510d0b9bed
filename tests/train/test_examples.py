"""A stage's examples: limits, mixtures, conversations, template arguments, and how a config names them."""

import json
from dataclasses import replace

import pytest

from warpup._command_line import parse
from warpup.train import RLVR, TrainError, Warmup
from warpup.train.config import HeldOutConfig, TrainConfig
from warpup.train.config_file import load_config
from warpup.train.examples import examples_of

pytestmark = pytest.mark.usefixtures("one_thread")


def test_what_a_limit_leaves_out_is_said(tmp_path, capsys):
    (tmp_path / "a.jsonl").write_text('{"prompt": "p", "answer": "1"}\n' * 5)
    stage = RLVR(data=str(tmp_path / "a.jsonl"), limit=3)
    assert len(examples_of(stage)) == 3
    assert capsys.readouterr().err == "rlvr.limit: the first 3 examples are used, there are more\n"
    for limit in (5, 6, None):
        assert len(examples_of(replace(stage, limit=limit))) == 5
    assert capsys.readouterr().err == ""


def test_conversations_and_template_arguments_of_a_stage(tmp_path):
    """Lists from Python may be conversations too, and the stage's template arguments reach every example."""
    user, reply = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
    rows = [{"messages": [user, reply]}, {"messages": [user, reply], "chat_template_kwargs": {"thinking": True}}]
    stage = Warmup(data=rows, chat_template_kwargs={"thinking": False, "date": "today"})
    first, second = examples_of(stage)
    assert (first["prompt"], first["completion"]) == ([user], "hello")
    assert first["chat_template_kwargs"] == {"thinking": False, "date": "today"}
    assert second["chat_template_kwargs"] == {"thinking": True, "date": "today"}
    with pytest.raises(TrainError, match=r"rlvr.chat_template_kwargs: no prompt is chat messages"):
        examples_of(RLVR(data=[{"prompt": "text"}], chat_template_kwargs={"thinking": False}))
    with pytest.raises(TrainError, match=r"data: got a generator; a stream cannot be resumed"):
        RLVR(data=(row for row in rows)).check()
    parts = [{"path": str(tmp_path / "a.jsonl"), "weight": 2}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"q": 1, "prompt": "p", "completion": "c"}))
    assert len(examples_of(Warmup(data=parts))) == 2
    with pytest.raises(TrainError, match=r"warmup.data: mixture: expected a part with path"):
        examples_of(Warmup(data=[{"path": "a.jsonl", "wieght": 2}]))


def test_data_in_a_config(tmp_path):
    chat = [{"role": "user", "content": "hi"}]
    parts = {
        "a": [{"q": "p", "completion": "c"}] * 3,
        "b": [{"text": "once"}] * 2,
        "c": [{"prompt": chat, "completion": "hello"}],
    }
    for name, rows in parts.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = tmp_path / "run.toml"
    path.write_text(f"""
        [warmup]
        data = [
            {{path = "{tmp_path}/a.jsonl", weight = 2, columns = {{prompt = "q"}}}},
            "{tmp_path}/b.jsonl",
            "{tmp_path}/c.jsonl",
        ]
        chat_template_kwargs = {{enable_thinking = false}}
        [rlvr]
        data = "{tmp_path}/a.jsonl"
        prompt = "q"
        answer = "none"
        [held_out]
        data = "{tmp_path}/a.jsonl"
        prompt = "q"
        answer = "none"
    """)
    config = load_config(path)
    mixed = examples_of(config.warmup)
    assert [e["prompt"] for e in mixed] == ["p"] * 6 + [""] * 2 + [chat]
    assert mixed[-2]["completion"] == "once"
    assert mixed[-1]["chat_template_kwargs"] == {"enable_thinking": False}
    assert (
        list(examples_of(config.rlvr)) == list(examples_of(config.held_out)) == [{"prompt": "p", "completion": "c"}] * 3
    )
    with pytest.raises(TrainError, match=r"held_out.data: .*no column 'question'"):
        examples_of(HeldOutConfig(data=f"{tmp_path}/a.jsonl", prompt="question"))


def test_on_the_command_line():
    def rlvr(*arguments, default=None):
        return parse(TrainConfig, list(arguments), "warpup train [CONFIG]", default).rlvr

    assert rlvr("--rlvr.reward", "a.py:f").reward == "a.py:f"
    two = rlvr("--rlvr.reward", "a.py:f(x=1,y=2),b:g", "--rlvr.reward-weights", "1", ".5")
    assert two.reward == ["a.py:f(x=1,y=2)", "b:g"]
    assert two.reward_weights == (1.0, 0.5)
    given = rlvr("--rlvr.chat-template-kwargs", '{"thinking": false}', "--rlvr.data", "a.jsonl")
    assert given.chat_template_kwargs == {"thinking": False}
    assert given.data == "a.jsonl"
    # What no flag changes stays as the file has it.
    parts = TrainConfig(rlvr=RLVR(data=({"path": "a"}, "b"), reward=("a:f", "b:g"), chat_template_kwargs={"a": 1}))
    kept = rlvr("--rlvr.steps", "3", default=parts)
    assert (kept.data, kept.reward, kept.chat_template_kwargs) == (({"path": "a"}, "b"), ("a:f", "b:g"), {"a": 1})
    with pytest.raises(TrainError, match=r"chat-template-kwargs"):
        rlvr("--rlvr.chat-template-kwargs", "thinking")
