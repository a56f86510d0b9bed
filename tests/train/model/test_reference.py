"""The weights of a snapshot, put back for a while."""

import pytest
import torch

from tests.support.tiny import llama
from warpup.train.model.precision import computing
from warpup.train.model.reference import Snapshot


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_model_is_as_it_was_and_then_as_it_is(dtype):
    """Also where products are made in bfloat16, within one context: autocast keeps the casts of weights."""
    model, ids = llama(), torch.arange(6).view(1, 6)
    with computing(model, dtype), torch.no_grad():
        before = model(ids).logits
    snapshot = Snapshot(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    with computing(model, dtype):
        now = model(ids).logits
        with snapshot.restored(), torch.no_grad():
            assert torch.equal(model(ids).logits, before)
        assert torch.equal(model(ids).logits, now)
    assert not torch.equal(now, before)
