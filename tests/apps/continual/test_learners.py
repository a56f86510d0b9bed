"""The tasks of `warpup continual`: pairs of digits, whole and split by the seed."""

from dataclasses import replace

import pytest
import torch

from tests.support.continual import SHORT
from warpup.apps._digits import load_digits_split
from warpup.apps.continual import learners

pytest.importorskip("sklearn")
pytestmark = pytest.mark.usefixtures("one_thread")


def test_digits_are_split_whole_and_by_seed():
    x, y, test_x, test_y = load_digits_split(3)
    assert (len(x), len(test_x), x.shape[1]) == (1437, 360, 64)
    assert (x.min(), x.max(), x.dtype, y.dtype) == (0, 1, torch.float32, torch.int64)
    whole = torch.cat([x, test_x])
    other = torch.cat(load_digits_split(4)[::2])
    assert torch.equal(whole.sum(0), other.sum(0))
    assert not torch.equal(whole, other)
    assert torch.equal(test_x, load_digits_split(3)[2])
    assert torch.cat([y, test_y]).bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_tasks_are_pairs_of_digits():
    _, y, _, test_y = load_digits_split(1)
    for scenario, heads in (("task", [slice(2 * t, 2 * t + 2) for t in range(5)]), ("domain", [slice(None)] * 5)):
        tasks = learners.tasks_of(replace(SHORT, scenario=scenario), 1)
        assert [task.head for task in tasks] == heads
        assert [task.name for task in tasks] == ["0 / 1", "2 / 3", "4 / 5", "6 / 7", "8 / 9"]
        for number, task in enumerate(tasks):
            assert task.y.sum() == (y == 2 * number + 1).sum()
            assert len(task.y) == sum((y == digit).sum() for digit in (2 * number, 2 * number + 1))
            assert len(task.test_y) == sum((test_y == digit).sum() for digit in (2 * number, 2 * number + 1))
