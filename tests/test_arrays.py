"""warpup.arrays: what the arrays of other frameworks may be."""

import functools
import inspect

import numpy as np
import pytest
import torch

from tests.support.cases import CASES, gradients_of
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


def read_only_by_one(call, seen: set):
    """A function of `warpup.arrays` that also calls itself with each of its NumPy arrays in turn read-only: those that
    it does not write work as they are, those that it writes are refused."""

    @functools.wraps(call)
    def checked(*given, **named):
        named |= dict(zip(inspect.signature(call).parameters, given, strict=False))
        before = {name: x.copy() for name, x in named.items() if isinstance(x, np.ndarray)}
        result = call(**named)
        written = {name for name, x in before.items() if x.tobytes() != named[name].tobytes()}
        for name in before:
            again = {**named, **{n: x.copy() for n, x in before.items()}}
            again[name].flags.writeable = False
            if name in written:
                with pytest.raises(ValueError, match=r"an array that is written, .* is read-only"):
                    call(**again)
            elif (call.__name__, name) not in SOMETIMES_WRITTEN:
                call(**again)
            assert again[name].tobytes() == before[name].tobytes()
        seen.add(call.__name__)
        return result

    return checked


# By the option `source`.
SOMETIMES_WRITTEN = {("interval_batch_norm", "mean"), ("interval_batch_norm", "var")}


@pytest.mark.parametrize("case", [case for case in CASES if case.core], ids=lambda case: case.op)
def test_what_is_read_may_be_read_only_and_what_is_written_not(case, monkeypatch):
    seen = set()
    for name in dir(arrays):
        if inspect.isroutine(getattr(arrays, name)) and not name.startswith("_"):
            monkeypatch.setattr(arrays, name, read_only_by_one(getattr(arrays, name), seen))

    def new(shape, dtype):
        return np.full(shape, 77, dtype)

    for variant in case.variants:
        inputs = case.make("small", torch.float32, variant=variant)
        results = case.run(inputs)
        outputs = results[: len(results) - len(case.differentiable)]
        plain = {name: x.numpy() if isinstance(x, torch.Tensor) else x for name, x in inputs.items()}
        forward, backward = case.core(plain, tuple(g.numpy() for g in gradients_of(outputs)), new)
        forward()
        if case.differentiable:
            backward()
    assert seen


def test_a_producer_of_before_dlpack_1():
    """That does not know of `max_version`."""

    class Old:
        def __init__(self, array):
            self.array = array

        def __dlpack__(self, stream=None):
            return self.array.__dlpack__()

        def __dlpack_device__(self):
            return self.array.__dlpack_device__()

    given = good()
    want = logprob(**given).copy()
    assert (logprob(**{name: Old(x) for name, x in given.items()}).array == want).all()
    given["logits"].flags.writeable = False
    with pytest.raises(BufferError):  # NumPy's own word where it cannot say that it is read-only
        logprob(**{name: Old(x) for name, x in given.items()})
