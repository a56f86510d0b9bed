"""Rewards from a file, and what goes wrong with them."""

import pytest

from warpup.train import TrainError
from warpup.train.rewards import load_reward, score

pytestmark = pytest.mark.usefixtures("one_thread")


def test_reward_from_a_file(tmp_path):
    (tmp_path / "mine.py").write_text("def good(completion, example):\n    return len(completion) + example['bonus']\n")
    function = load_reward(f"{tmp_path / 'mine.py'}:good")
    assert score(function, ["ab", "abc"], [{"bonus": 1}] * 2).rewards == [3.0, 4.0]
    (tmp_path / "broken.py").write_text("import nothing_of_this_name\n")
    with pytest.raises(TrainError, match=r"cannot import .*ModuleNotFoundError"):
        load_reward(f"{tmp_path / 'broken.py'}:good")
