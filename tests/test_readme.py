"""The README's Python runs as it stands."""

import re
from pathlib import Path

import pytest
import torch

from tests.support.tiny import llama, mixture
from warpup.data import word_tokenizer

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
TOKENIZER = word_tokenizer(extra=("but", "alternatively", "however", "hmm"))  # the default words of a schedule


@pytest.mark.parametrize("block", [b for b in BLOCKS if "trl" not in b], ids=lambda b: b.splitlines()[0])
def test_python(block, tmp_path):
    """Its TRL block is what test_integrations_trl.py does; a tokenizer, a model and inputs are the reader's own."""
    mixture().save_pretrained(tmp_path)
    inputs = {"input_ids": torch.tensor([[5, 6, 7]]), "attention_mask": torch.ones(1, 3, dtype=torch.int64)}
    model = llama(vocab_size=len(TOKENIZER)).eval()
    exec(block, {"tokenizer": TOKENIZER, "model": model, "path": tmp_path, "inputs": inputs | {"max_new_tokens": 5}})


def test_there_is_something_to_run():
    assert len(BLOCKS) >= 4
