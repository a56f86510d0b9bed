"""Calling the command line in a test, and a small project of a user's own to call it on."""

import json

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from warpup import cli
from warpup.data import example, knights_and_knaves, word_tokenizer

CONFIG = """
model = "start"
out = "run"
threads = 1
[warmup]
data = "train.jsonl"
steps = 3
batch_size = 4
lr = 1e-2
[rlvr]
data = "train.jsonl"
reward = "mine.py:score"
steps = 2
prompts = 2
samples = 4
max_new_tokens = 8
lr = 1
[held_out]
data = "test.jsonl"
reward = "mine.py:score"
points = 1
max_new_tokens = 8
"""


def call(capsys, *arguments):
    """(exit code, stdout, stderr) of a command."""
    code = cli.main([str(argument) for argument in arguments])
    return code, *capsys.readouterr()


def error(capsys, *arguments, status=1):
    """The one line that a command which must fail ends with."""
    code, _, text = call(capsys, *arguments)
    assert code == status, text
    assert "Traceback" not in text
    *progress, last = text.splitlines()
    assert all(line[0].isdigit() for line in progress), text
    return last


def make_project(folder):
    """Write a model, data, a reward function and a config into a folder."""
    tokenizer = word_tokenizer()
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("pad", "eos", "bos")}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **sizes, **tokens)).save_pretrained(folder / "start")
    tokenizer.save_pretrained(folder / "start")
    rows = [json.dumps(example(puzzle)) for puzzle in knights_and_knaves(12)]
    (folder / "train.jsonl").write_text("\n".join(rows[:8]))
    (folder / "test.jsonl").write_text("\n".join(rows[8:]))
    (folder / "mine.py").write_text("def score(completion, example):\n    return float(len(set(completion.split())))\n")
    (folder / "run.toml").write_text(CONFIG)
