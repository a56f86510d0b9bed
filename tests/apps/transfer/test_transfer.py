"""`warpup transfer`: the whole command on a tiny model, and what it asks, scores and mixes."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tests.support.tiny import llama
from warpup import cli
from warpup._command_line import parse
from warpup.apps.transfer import arms, command, domains, settings
from warpup.train.errors import Interrupted

pytest.importorskip("reasoning_gym")
pytest.importorskip("peft")
pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::FutureWarning:transformers")]

TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TINY = dict(
    people=(2,), pool=60, held_out=3, samples=1, examples=4, own=2, chains=4, batch=2, rl_steps=2, prompts=2, group=2,
    max_new_tokens=6, puzzle_tokens=6, rank=2,
)  # fmt: skip
OWN = [
    {"prompt": [{"role": "user", "content": "2 + 2 ="}], "completion": "<think> It is 4. </think> <answer> 4 </answer>"}
] * 2


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, with a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE({token: i for i, token in enumerate(["<pad>", "</s>", *letters])}, []))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", bos_token="</s>", chat_template=TEMPLATE
    )


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory):
    folder, tokenizer = tmp_path_factory.mktemp("tiny"), bytes_tokenizer()
    llama(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=1, eos_token_id=1).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_what_is_learned_from_is_as_hard_as_what_is_held_out(tmp_path):
    """There are 200 sums of two digits: problems that are drawn last would have three terms."""
    run = arms.Run("model", tmp_path, settings.SIZES["cpu"], "short_sum", "shuffled", "cpu", True)
    _, problems, held_out = arms.split_rows(run)
    parts = held_out["short_sum"], *(random.Random(seed).sample(problems, 100) for seed in range(3))
    long = [sum(sum(map(row["question"].count, "+-")) == 2 for row in rows) / len(rows) for rows in parts]
    assert max(long) - min(long) < 0.15


def test_the_whole_command(tmp_path, capsys, monkeypatch, tiny_model):
    monkeypatch.setitem(settings.SIZES, "quick", settings.Size(**TINY))
    out = tmp_path / "out"
    words = ["transfer", "--model", str(tiny_model), "--out", str(out), "--quick", "--seeds", "2"]
    assert cli.main(words) == 1  # its weights are random
    assert "finishes none of 4 answers within 6 tokens with a number" in capsys.readouterr().err
    arms.write_rows(out / "data", {"own": OWN})
    assert cli.main(words) == 0
    printed = capsys.readouterr().out
    for arm in settings.ARMS:
        assert f"\n| {arm} " in printed
    assert "warm-up + RLVR against control + RLVR: " in printed

    # The arms learn from the same puzzles; the control reads the chain's sentences in another order.
    data = out / "seed-1" / "data"
    warm, control = ([json.loads(line) for line in (data / f"{n}.jsonl").open()] for n in ("warmup", "control"))
    assert [row["prompt"] for row in warm] == [row["prompt"] for row in control]
    assert [sorted(row["completion"]) for row in warm] == [sorted(row["completion"]) for row in control]
    assert [row["completion"] for row in warm] != [row["completion"] for row in control]
    held, learned = ({row["prompt"][1]["content"] for row in map(json.loads, path.open())}
                     for path in (out / "data" / "short_sum.jsonl", data / "rlvr.jsonl"))  # fmt: skip
    assert len(held) == 3
    assert len(learned) == 4
    assert not held & learned

    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 2
    assert "http" not in page
    assert (out / "transfer.png").stat().st_size > 1000
    assert (out / "table.md").read_text().startswith("| arm            | short_sum |")

    # Asked again, nothing is trained or measured; another size does not fit into the folder.
    monkeypatch.setattr(arms, "evaluate", None)
    monkeypatch.setattr(arms, "warpup_train", None)
    assert cli.main(words) == 0
    assert (
        capsys.readouterr().out.split("seeds,")[1].split("report.html")[0]
        == printed.split("seeds,")[1].split("report.html")[0]
    )
    assert cli.main([*words, "--target", "needle"]) == 1
    assert "holds another run (target: short_sum there, needle now)" in capsys.readouterr().err


def test_a_run_that_was_stopped_goes_on(tmp_path, monkeypatch, tiny_model):
    monkeypatch.setitem(settings.SIZES, "quick", settings.Size(**TINY))
    trained, train = [], arms.warpup_train

    def stopping(words):
        trained.append(Path(words[0]).stem)
        if len(trained) == 2:
            raise Interrupted("stopped")
        train(words)

    monkeypatch.setattr(arms, "warpup_train", stopping)
    arms.write_rows(tmp_path / "data", {"own": OWN})
    words = ["transfer", "--model", str(tiny_model), "--out", str(tmp_path), "--quick"]
    assert cli.main(words) == 130
    assert cli.main(words) == 0
    assert trained == ["form", "form-rlvr", "form-rlvr", "warm-up", "warm-up-rlvr", "control", "control-rlvr"]


def test_wrong_calls(tmp_path, capsys, tiny_model):
    given = parse(settings.TransferArguments, ["--set", "rl_steps=40", "rl_lr=2e-4"], "warpup transfer")
    assert command.sized(given) == replace(settings.SIZES["cpu"], rl_steps=40, rl_lr=2e-4)
    for arguments, said in {
        ("--set", "rl_step=3"): "of pool, chain_words, ",
        ("--set", "rl_steps=2.5"): "got rl_steps=2.5",
        ("--set", "people=3"): "got people=3",
        ("--set", "rl_steps=-1"): "rl_steps must be above 0",
        ("--set", "batch=0"): "batch must be above 0 and finite; got batch=0",
        ("--set", "rank=-1"): "rank must be at least 0",
        ("--set", "rl_lr=nan"): "got rl_lr=nan",
        ("--set", "rl_lr=inf"): "got rl_lr=inf",
        ("--set", "slips=1.5"): "slips is a chance, at most 1",
        ("--seeds", "0"): "--seeds: expected at least 1",
        ("--quick", "--size", "gpu"): "expected one of both",
        ("--target", "sums"): "--target: expected one of short_sum, ",
        ("--model", str(tmp_path)): "or take one of PyPI: smollm2, gemma3-270m",
    }.items():
        assert cli.main(["transfer", "--model", str(tiny_model), "--out", str(tmp_path / "out"), *arguments]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_missing_package_is_told_before_anything_is_measured(tmp_path, capsys, monkeypatch, tiny_model):
    monkeypatch.setattr(command, "find_spec", lambda name: None if name == "peft" else name)
    assert cli.main(["transfer", "--model", str(tiny_model), "--out", str(tmp_path / "out")]) == 1
    assert "this needs peft: pip install 'warpup[transfer]'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_demo_of_a_pretrained_model_is_this(monkeypatch, capsys):
    asked = []
    monkeypatch.setattr("warpup.apps.demo.command.run_transfer", asked.append)
    assert cli.main(["demo", "--model", "smollm2", "--quick", "--seeds", "2"]) == 0
    assert asked.pop() == settings.TransferArguments("smollm2", "runs/transfer", quick=True, seeds=2)
    assert cli.main(["demo", "--model", "smollm2", "--out", "runs/demo"]) == 0
    assert asked.pop() == settings.TransferArguments("smollm2", "runs/demo")
    assert cli.main(["demo", "--model", "smollm2", "--jobs", "2"]) == 2
    assert "one after the other" in capsys.readouterr().err


def test_scores():
    row = domains.task_rows("short_sum", 3, 0, chat=True)[0]
    right, wrong = row["answer"], str(int(row["answer"]) + 1)
    form = "<think> so </think> <answer> {} </answer>"
    table = {
        form.format(right): (2.0, True, True),
        form.format(wrong): (-0.5, True, False),
        form.format("no idea"): (-1.0, True, False),
        f"The answer is {right}.": (-2.0, False, True),  # right, which the tables tell; learned is the form as well
        f"{form.format(right)} or {wrong}": (-2.0, False, True),
        f"<think> {right}": (-2.0, False, False),
    }
    assert {text: tuple(domains.score(text, row)) for text in table} == table

    assert domains.usable("So it is 5 or -3.5.", row, finished=True)
    assert not any(
        domains.usable(said, row, finished) for said, finished in (("5", False), ("<b> 5", True), ("five", True))
    )
    assert domains.own_row(row, " So it is 5 or -3.5.\n") == {
        "prompt": row["prompt"],
        "completion": "<think> So it is 5 or -3.5. </think> <answer> -3.5 </answer>",
    }

    learn, held = domains.puzzles((2,), 60, 150, 20)
    [puzzle] = domains.puzzle_rows(held, 1, "long", 0.0, 150, 0, chat=False)
    assert puzzle["prompt"].endswith("\nAnswer: ")
    assert tuple(domains.score(puzzle["completion"], puzzle)) == (2.0, True, True)
    slipped = domains.puzzle_rows(learn, 40, "long", 0.5, 150, 0, chat=False)
    assert max(len(row["completion"].split()) for row in slipped) <= 150
    assert not all(domains.score(row["completion"], row).correct for row in slipped)
    names = puzzle["answer"].split()[::2]
    assert tuple(domains.score(form.format(f"{names[0]} is a knight"), puzzle)) == (-1.0, True, False)
    assert not {p.canonical_key() for p in learn} & {p.canonical_key() for p in held}


def test_every_task_has_its_answers():
    for name in domains.TASKS:
        rows = [json.loads(json.dumps(row, default=str)) for row in domains.task_rows(name, 8, 0, chat=True)]
        assert all(
            domains.score(f"<think> </think> <answer> {row['answer']} </answer>", row).reward == 2 for row in rows
        )
