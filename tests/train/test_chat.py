"""`warpup sample` with a chat template: a prompt as a user's turn, and a chat that remembers."""

import json

import pytest
import torch

from tests.support.command import call, error
from tests.support.models import pretrained
from warpup.train import TrainError, load_model, rollout
from warpup.train.chat import answering, chat
from warpup.train.model.tokens import encode_prompt, end_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
TEMPLATE = "{% for m in messages %}{{ 'knight ' if m['role'] == 'user' else 'knave ' }}{{ m['content'] }} {% endfor %}"


@pytest.fixture
def chatty(project):
    """The project's model with a chat template."""
    (project / "start" / "chat_template.jinja").write_text(TEMPLATE + "{% if add_generation_prompt %}knave{% endif %}")
    return project / "start"


@pytest.fixture
def typed(monkeypatch):
    """What a user types: a list to fill; after its last turn comes Ctrl-D."""
    turns: list[str] = []

    def read(prompt):
        if not turns:
            raise EOFError
        return turns.pop(0)

    monkeypatch.setattr("builtins.input", read)
    return turns


def test_a_chat_remembers_until_it_is_told_to_forget(typed, capsys):
    heard = []

    def answer(said):
        heard.append([(m["role"][0], m["content"]) for m in said])
        if said[-1]["content"] == "long":
            raise TrainError("too long")
        if said[-1]["content"] == "slow":
            raise KeyboardInterrupt
        return f"a{len(heard)}"

    typed += ["one", " two ", "", "/help", "long", "slow", "three", "/reset", "four"]
    chat(answer)
    assert heard == [
        [("u", "one")],
        [("u", "one"), ("a", "a1"), ("u", "two")],
        [("u", "one"), ("a", "a1"), ("u", "two"), ("a", "a2"), ("u", "long")],
        [("u", "one"), ("a", "a1"), ("u", "two"), ("a", "a2"), ("u", "slow")],
        [("u", "one"), ("a", "a1"), ("u", "two"), ("a", "a2"), ("u", "three")],
        [("u", "four")],
    ]
    out = capsys.readouterr().out
    assert all(text in out for text in ("(/help: there are /reset and /exit)", "(too long; /reset", "(forgotten)"))
    heard.clear()
    typed += ["/exit", "more"]
    chat(answer)
    assert (heard, typed) == ([], ["more"])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_an_answer_is_the_models_own(chatty, capsys, monkeypatch, temperature):
    """Greedy as rollouts are; sampled from all tokens, whatever the model's generation config says."""
    model, tokenizer = load_model(chatty)
    model.eval().generation_config.update(top_k=1, repetition_penalty=9.0)
    turns = (("user", "A ?"), ("assistant", "ok"), ("user", "A says B knave . ?"))
    said = [{"role": role, "content": content} for role, content in turns]
    texts, heard, generate = [], [], model.generate
    monkeypatch.setattr(model, "generate", lambda ids, **how: heard.append(ids[0].tolist()) or generate(ids, **how))
    for seed in range(4):
        torch.manual_seed(seed)
        texts.append(answering(model, tokenizer, temperature, 6)(said))
        assert texts[-1] in " ".join(capsys.readouterr().out.split())  # streamed
    ids = encode_prompt(tokenizer, said)
    assert heard == [ids] * 4
    assert tokenizer.decode(ids) == "knight A ? knave ok knight A says B knave . ? knave"
    ends = end_tokens(model, tokenizer)
    greedy = rollout(model, [ids], eos=ends, pad=tokenizer.pad_token_id, max_new_tokens=6, temperature=0)
    likeliest = tokenizer.decode(greedy.completion(0), skip_special_tokens=True)
    assert set(texts) == {likeliest} if temperature == 0 else len(set(texts)) == 4


def test_no_room_left_is_told(chatty):
    model, tokenizer = load_model(chatty)
    positions = model.config.max_position_embeddings
    with pytest.raises(TrainError, match=f"the conversation with max_new_tokens has {positions + 4} tokens"):
        answering(model, tokenizer, 0.0, positions)([{"role": "user", "content": "A ?"}])


def test_the_command_chats(chatty, typed, capsys):
    typed += ["A ?", "B ?"]
    code, out, _ = call(capsys, "sample", "start", "--chat", "--max-new-tokens", 3)
    assert code == 0
    assert out.startswith("/reset forgets the conversation")
    assert out.count("(cut off)") == 2
    (chatty / "chat_template.jinja").unlink()
    assert "--chat: the tokenizer in start has no chat template; use --prompt" in error(
        capsys, "sample", "start", "--chat"
    )


def test_a_prompt_is_a_users_turn_where_there_is_a_template(chatty, capsys, monkeypatch):
    seen = []

    def spy(model, prompts, **options):
        seen.append(load_model(chatty)[1].decode(prompts[0]))
        return rollout(model, prompts, **options)

    monkeypatch.setattr("warpup.train.sampling.rollouts.rollout", spy)
    flags = ("--temperature", 0, "--max-new-tokens", 2)
    for more, said, prompt in (
        ((), "prompt: a user's turn in the model's chat template; --raw", "knight A ? knave"),
        (("--raw",), "prompt: a text to go on from\n", "A ?"),
    ):
        _, out, _ = call(capsys, "sample", "start", "--prompt", "A ?", *flags, *more)
        assert out.startswith(said)
        assert "A ?\n  -> " in out
        assert seen.pop() == prompt
    messages = [{"role": "user", "content": "B ?"}]
    (chatty.parent / "chats.jsonl").write_text(json.dumps({"prompt": messages}) + "\n")
    _, out, _ = call(capsys, "sample", "start", "--data", "chats.jsonl", *flags)
    assert out.startswith("user: B ?\n  -> ")
    assert seen.pop() == "knight B ? knave"
    (chatty / "chat_template.jinja").unlink()
    _, out, _ = call(capsys, "sample", "start", "--prompt", "A ?", *flags)
    assert out.startswith("prompt: a text to go on from; the tokenizer has no chat template\n")
    assert seen.pop() == "A ?"


def test_the_template_arguments_of_a_run_are_its_own(chatty, typed, capsys, monkeypatch):
    """Those that it sampled with; an example's own win."""
    template = (chatty / "chat_template.jinja").read_text()
    (chatty / "chat_template.jinja").write_text("{{ mood }} " + template)
    rlvr = {"data": "train.jsonl", "max_new_tokens": 2, "chat_template_kwargs": {"mood": "wait"}}
    (chatty / "train.json").write_text(json.dumps({"held_out": {}, "rlvr": rlvr}))
    seen = []

    def spy(tokenizer, *arguments):
        seen.append(tokenizer.decode(ids := encode_prompt(tokenizer, *arguments)))
        return ids

    for place in ("model.tokens", "chat"):
        monkeypatch.setattr(f"warpup.train.{place}.encode_prompt", spy)
    example = {"prompt": [{"role": "user", "content": "B ?"}]}
    rows = [example, example | {"chat_template_kwargs": {"mood": "back"}}]
    (chatty.parent / "chats.jsonl").write_text("\n".join(map(json.dumps, rows)))
    typed += ["C ?"]
    for flags in (("--prompt", "A ?"), ("--data", "chats.jsonl"), ("--chat",)):
        code, _, told = call(capsys, "sample", "start", *flags, "--temperature", 0)
        assert (code, told) == (0, "as the run has it: max_new_tokens 2, chat_template_kwargs {'mood': 'wait'}\n")
    said = [("wait", "A"), ("wait", "B"), ("back", "B"), ("wait", "C")]
    assert seen == [f"{mood} knight {name} ? knave" for mood, name in said]


def test_a_pretrained_model_answers(capsys):
    folder = pretrained("smollm2")
    _, out, _ = call(capsys, "sample", folder, "--prompt", "What is the capital of France?", "--temperature", 0)
    assert "What is the capital of France?\n  -> The capital of France is Paris.\n" in out
