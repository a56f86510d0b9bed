"""warpup.arrays: what the arrays of other frameworks may be."""

import numpy as np
import pytest
import torch

from warpup import arrays


def logprob(logits, targets, logp, stats):
    arrays.token_logprob(logits, targets, logp=logp, stats=stats)
    return logp


def good():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(3, 5)).astype(np.float32)
    return {
        "logits": logits,
        "targets": np.array([0, 4, 2]),
        "logp": np.empty(3, np.float32),
        "stats": np.empty((3, 2), np.float32),
    }


def test_arrays_without_memory():
    given = good()
    empty = {name: x[:0] for name, x in given.items()}
    logprob(**empty)
    with torch._subclasses.FakeTensorMode():
        fake = torch.zeros(3, 5)
    with pytest.raises(ValueError, match="has no memory"):
        logprob(**{**given, "logits": fake})
    with pytest.raises(RuntimeError, match="meta"):  # torch's own word
        logprob(**{**given, "logits": torch.zeros(3, 5, device="meta")})
