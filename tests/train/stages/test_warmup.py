"""Warm-up learns from completion tokens alone, in batches of similar length."""

import pytest
import torch

from tests.support.tiny import (
    EXAMPLES,
    TOKENIZER,
    llama,
    steps_of,
    warmup,
)
from warpup.train import Recipe
from warpup.train.model.tokens import encode_pair

pytestmark = pytest.mark.usefixtures("one_thread")


def test_loss_is_over_completion_tokens_only(tmp_path):
    model, before = llama(), llama()
    Recipe([warmup(steps=1, batch_size=40, max_tokens=300)]).run(model, TOKENIZER, tmp_path)  # several micro-batches

    total, count = 0.0, 0
    for row in EXAMPLES:  # one unpadded row at a time
        prompt, completion = encode_pair(TOKENIZER, row)
        assert completion[-1] == TOKENIZER.eos_token_id
        logits = before(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        total = total - torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(completion)[:, None]).sum()
        count += len(completion)
    (total / count).backward()
    [(_, loss)], [(_, norm)] = steps_of(tmp_path, "loss"), steps_of(tmp_path, "grad_norm")
    assert loss == pytest.approx(total.item() / count, rel=1e-5)
    assert norm == pytest.approx(grad_norm(before), rel=1e-4)
    assert steps_of(tmp_path, "tokens") == [(1, count)]


def grad_norm(model):
    return torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
