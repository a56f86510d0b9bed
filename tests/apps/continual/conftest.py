"""One short run of each method, shared by the tests that look at it."""

import pytest
import torch

from tests.support.continual import SHORT
from warpup.apps.continual.run import run_method
from warpup.apps.continual.settings import METHODS
from warpup.train.log import quiet


@pytest.fixture(scope="package")
def runs(tmp_path_factory):
    """One short run of each method: its numbers, and the folder of its checkpoints."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("runs")
    found = {m: (run_method(m, 0, SHORT, out / m, quiet), out / m) for m in METHODS}
    torch.set_num_threads(before)
    return found
