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
from warpup.train import Recipe, TrainError
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


class Recorder:
    """A sampler of one's own: the same three rows always."""

    reads = ("losses",)

    def __init__(self):
        self.seen = []

    def next(self, k):
        return [3, 1, 3][:k]

    def observe(self, indices, **signals):
        self.seen.append((list(indices), signals["losses"]))

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def test_a_sampler_chooses_the_rows_and_is_told_their_losses(tmp_path):
    model, before, sampler = llama(), llama(), Recorder()
    Recipe([warmup(steps=1, batch_size=3, sampler=sampler)]).run(model, TOKENIZER, tmp_path)
    each = {}
    for row in (1, 3):
        prompt, completion = encode_pair(TOKENIZER, EXAMPLES[row])
        logits = before(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logp = torch.log_softmax(logits.double(), -1).gather(1, torch.tensor(completion)[:, None])
        each[row] = (-logp.mean().item(), len(completion))
    assert sampler.seen == [([3, 1, 3], [pytest.approx(each[row][0], rel=1e-5) for row in (3, 1, 3)])]
    total = sum(each[row][0] * each[row][1] for row in (3, 1, 3)) / sum(each[row][1] for row in (3, 1, 3))
    assert steps_of(tmp_path, "loss") == [(1, pytest.approx(total, rel=1e-5))]


def test_a_sampler_that_gives_no_example_is_refused(tmp_path):
    sampler = Recorder()
    sampler.next = lambda k: [40] * k
    with pytest.raises(TrainError, match=r"warmup.sampler: expected 3 indices from 0 to 39, got \[40, 40, 40\]"):
        Recipe([warmup(steps=1, batch_size=3, sampler=sampler)]).run(llama(), TOKENIZER, tmp_path)


def grad_norm(model):
    return torch.stack([p.grad.norm() for p in model.parameters()]).norm().item()
