"""From examples to padded batches: what counts, what is aligned with what, how batches are cut."""

import pytest
import torch

from tests.support.tiny import llama
from warpup.train.model.batch import IGNORE, LengthBuckets, collate, micro_batches

pytestmark = pytest.mark.usefixtures("one_thread")


def test_collate_aligns_targets_with_inputs():
    batch = collate([([5, 6, 7], [8, 9]), ([5], [6])], [1, 0], pad=0)
    assert batch.inputs.tolist() == [[5, 0, 0, 0], [5, 6, 7, 8]]
    assert batch.targets.tolist() == [[6, IGNORE, IGNORE, IGNORE], [IGNORE, IGNORE, 8, 9]]
    assert batch.attention.tolist() == [[1, 0, 0, 0], [1, 1, 1, 1]]
    assert batch.rows == [1, 0]


def test_micro_batches_hold_every_row_once_within_the_limit():
    pairs = [([1] * n, [2] * n) for n in (3, 9, 1, 5, 30)]
    batches = list(micro_batches(pairs, range(5), pad=0, max_tokens=24))
    assert sorted(row for batch in batches for row in batch.rows) == [0, 1, 2, 3, 4]
    assert all(batch.inputs.numel() <= 24 or len(batch.rows) == 1 for batch in batches)
    assert len(batches) < 5


def test_length_buckets_take_each_row_once_an_epoch_and_group_lengths():
    pairs = [([1], [2] * (1 + n % 17)) for n in range(64)]
    buckets = LengthBuckets(pairs, 8, seed=3)
    epoch = [buckets[step] for step in range(8)]
    assert sorted(row for rows in epoch for row in rows) == list(range(64))
    assert [buckets[step] for step in (9, 2)] == [LengthBuckets(pairs, 8, seed=3)[9], epoch[2]]
    assert [buckets[step] for step in range(8, 16)] != epoch
    assert max(max(buckets.lengths[r] for r in rows) - min(buckets.lengths[r] for r in rows) for rows in epoch) <= 4


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_gradients_of_padded_rows_are_those_of_rows_alone(attention):
    """Padding stands on the right: every query sees itself at least, and no row of a mask is whole."""
    model = llama(attn_implementation=attention)
    pairs = [([5], [6]), ([5, 6, 7, 8, 9, 3, 4], [8, 9, 7])]

    def gradients(rows):
        model.zero_grad()
        batch = collate(pairs, rows, pad=0)
        logp = model(**batch.arguments).logits.log_softmax(-1)[batch.mask]
        logp.gather(1, batch.completion[:, None]).sum().backward()
        return [p.grad.clone() for p in model.parameters()]

    for both, one, other in zip(gradients([0, 1]), gradients([0]), gradients([1]), strict=True):
        torch.testing.assert_close(both, one + other, rtol=1e-4, atol=1e-5)
