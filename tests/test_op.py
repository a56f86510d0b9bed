"""Calls of raw ops: what is a default need not be passed."""

from types import SimpleNamespace

import torch

from warpup import _op

TOKEN_LOGPROB = (None, 1.0, -100, None, None, 0.0, None, 1.0, 0.0, False, False, False)  # after logits and targets


def test_the_last_arguments_that_are_defaults_are_left_out(monkeypatch):
    z, y, row = torch.randn(2, 5), torch.tensor([1, 3]), torch.ones(2)
    call = _op.short("token_logprob")
    every = torch.ops.warpup.token_logprob(z, y, *TOKEN_LOGPROB)
    for got, want in zip(call(z, y, *TOKEN_LOGPROB), every, strict=True):
        assert got is want is None or torch.equal(got, want)

    monkeypatch.setattr(_op, "ops", SimpleNamespace(token_logprob=lambda *arguments: arguments))
    assert call(z, y, *TOKEN_LOGPROB) == (z, y)
    assert call(z, y) == (z, y)
    for at, value in ((0, row), (1, 0.5), (2, 0), (6, row), (10, True)):
        given = [*TOKEN_LOGPROB]
        given[at] = value
        passed = call(z, y, *given)
        assert len(passed) == 3 + at
        assert passed[-1] is value


def test_what_torch_leaves_out_is_filled_in():
    def function(*arguments):
        return arguments

    assert _op.filled("token_logprob", function)(1, 2, None, 0.5) == (1, 2, None, 0.5, *TOKEN_LOGPROB[2:])
    assert _op.filled("moe_gather", function)(1, 2, 3) == (1, 2, 3)
