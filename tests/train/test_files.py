"""Files and folders are whole, and one process works in a folder."""

import pytest

from tests.support.tiny import (
    TOKENIZER,
    llama,
    warmup,
)
from warpup.train import Recipe, TrainError
from warpup.train.files import locked

pytestmark = pytest.mark.usefixtures("one_thread")


def test_folder_in_use_is_refused(tmp_path):
    with locked(tmp_path), pytest.raises(TrainError, match="another process is training"):
        Recipe([warmup(steps=1)]).run(llama(), TOKENIZER, tmp_path)
