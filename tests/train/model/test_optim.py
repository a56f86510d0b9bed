"""Learning rates."""

import pytest

from warpup.train.model.optim import learning_rate

pytestmark = pytest.mark.usefixtures("one_thread")


def test_learning_rate_rises_then_follows_its_schedule():
    assert [learning_rate(i, 10, 1.0, 2, "linear") for i in (0, 1, 2, 6)] == [0.5, 1.0, 1.0, 0.5]
    assert learning_rate(6, 10, 1.0, 2, "cosine") == pytest.approx(0.5)
    assert learning_rate(9, 10, 3.0, 0, "constant") == 3.0
