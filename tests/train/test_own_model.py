"""Someone's own model, data and reward, from the command line: trained with adapters, killed, gone on with, sampled,
evaluated. On a pretrained model where there is one, on a tiny one everywhere."""

import json
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from tests.support.command import call
from tests.support.models import pretrained
from tests.support.tiny import llama
from tests.train.model.test_tokens import chat_tokenizer

REWARD = """
from dataclasses import dataclass

from scale import SCALE


@dataclass
class Score:
    reward: float
    correct: float
    format_ok: float = 1.0


def score(completion, example):
    right = example["answer"] in completion
    return Score(reward=SCALE * right - len(completion) / 1000, correct=float(right))
"""

CONFIG = """
model = "{model}"
out = "run"
dtype = "{dtype}"
threads = 1
lora = {{ r = 4 }}

[warmup]
data = "chat.jsonl"
steps = 2
batch_size = 2
lr = 1e-3
lr_warmup = 0
save_every = 1

[rlvr]
data = "chat.jsonl"
reward = "reward.py:score"
steps = 3
prompts = 2
samples = 3
max_new_tokens = 8
lr = 1e-3
save_every = 1

[held_out]
data = "test.jsonl"
reward = "reward.py:score"
points = 1
max_new_tokens = 8
"""


def rows(begin, end):
    for n in range(begin, end):
        ask = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"What is {n} + {n}?"}]
        yield {"messages": [*ask, {"role": "assistant", "content": f"{2 * n}"}], "answer": str(2 * n)}


@pytest.fixture(scope="module", params=["tiny", "smollm2"])
def project(request, tmp_path_factory):
    """A folder with what a user brings."""
    folder = tmp_path_factory.mktemp(request.param)
    if request.param == "tiny":
        tokenizer = chat_tokenizer()
        llama(vocab_size=len(tokenizer)).save_pretrained(folder / "start")
        tokenizer.save_pretrained(folder / "start")
        model = "start"
    else:
        model = pretrained("smollm2")
    (folder / "reward.py").write_text(REWARD)
    (folder / "scale.py").write_text("SCALE = 2.0\n")
    for name, some in (("chat.jsonl", rows(1, 9)), ("test.jsonl", rows(20, 22))):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in some))
    (folder / "train.toml").write_text(CONFIG.format(model=model, dtype="float32"))
    return folder


def log(folder):
    """What a run computed: its lines without what depends on the machine."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k and "per_s" not in k} for line in lines]


def test_trained_killed_gone_on_with_sampled_and_evaluated(project, monkeypatch, capsys):
    monkeypatch.chdir(project)

    def warpup(*arguments):
        code, out, err = call(capsys, *arguments)
        assert code == 0, err
        return out

    assert ": whole/model" in warpup("train", "train.toml", "--out", "whole")

    # Killed once reinforcement has begun, wherever it is then.
    command = [sys.executable, "-m", "warpup", "train", "train.toml"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 600
    while not list((project / "run").glob("2-rlvr/step-*")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (project / "run" / "model").exists()
    warpup("train", "train.toml")
    for name in ("whole", "run"):
        assert (project / name / "report.html").exists()
    one, other = (load_file(project / name / "model" / "adapter_model.safetensors") for name in ("whole", "run"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[k], other[k]) for k in one)
    assert any(v.abs().max() > 0 for k, v in one.items() if "lora_B" in k)
    assert log(project / "run") == log(project / "whole")

    said = warpup("sample", "run", "--prompt", "What is 3 + 3?", "--temperature", 0, "--max-new-tokens", 8)
    assert said.strip()
    found = json.loads(warpup("eval", "run", "--max-new-tokens", 8, "--samples", 0, "--json", "--trust"))
    last = [line for line in log(project / "run") if "held_out_reward" in line][-1]
    # The adapters were found and loaded: what was measured at the end of training is measured again.
    assert (found["examples"], found["reward"]) == (2, pytest.approx(last["held_out_reward"], abs=1e-6))
