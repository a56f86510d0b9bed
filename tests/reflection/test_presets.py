"""The methods that CyclicReflex is compared with: TIP, NoWait, s1, AlphaOne."""

import math

import pytest
import torch

from tests.reflection.schedules import SIMPLE, TOKENS, VOCAB
from warpup.reflection import ReflectionBatch, presets


def test_a_ban_is_minus_infinity(backend):
    batch = ReflectionBatch(2, presets.no_wait(TOKENS), device=backend.device)
    logits = torch.randn(2, VOCAB, device=backend.device)
    batch.apply_(logits)
    assert logits.eq(-math.inf).nonzero().tolist() == [[0, 1], [0, 2], [1, 1], [1, 2]]


def test_budget_forcing(backend):
    """The first two ends of each request's thinking become `wait`; an end marker in the answer is left alone."""
    batch = ReflectionBatch(2, tokens=SIMPLE, device=backend.device)
    batch.begin([0, 1], [[3], [3]])
    forcing = presets.BudgetForcing(batch, wait=1, times=2)
    drawn = [[4, 8], [4, 4], [4, 8], [4, 4], [8, 4]]
    taken = []
    for step in drawn:
        tokens = forcing(torch.tensor(step, device=backend.device))
        batch.update(tokens)
        taken.append(tokens.tolist())
    assert taken == [[1, 8], [1, 1], [4, 8], [4, 1], [8, 4]]
    assert batch.progress().phase.tolist() == [2, 2]


def test_alpha_one(backend):
    batch = ReflectionBatch(3, tokens=SIMPLE, device=backend.device)
    batch.begin([0, 1, 2], [[3]] * 3, [[8], [8] * 14, [8]])
    alpha = presets.AlphaOne(batch, wait=1, newlines=[7], budget=10, alpha=1.4, start=0.4)
    torch.testing.assert_close(alpha.chance(torch.tensor([0.0, 7.0, 14.0, 30.0])), torch.tensor([0.4, 0.2, 0, 0]))
    previous = torch.tensor([7, 7, 8], device=backend.device)
    tokens, low = torch.tensor([5, 1, 5], device=backend.device), torch.zeros(3, device=backend.device)
    assert alpha(tokens, previous, low).tolist() == [1, 4, 5]
    assert alpha(tokens, previous, low + 0.9).tolist() == [5, 4, 5]


def test_thought_switch_penalty(backend):
    """-alpha for beta tokens after each switch, and after the start of thinking."""
    batch = ReflectionBatch(1, presets.thought_switch_penalty(SIMPLE, 3.0, 2), device=backend.device)
    batch.begin([0], [[3]])
    deltas = []
    for token in [8, 8, 8, 1, 8, 8, 4, 8]:
        deltas.append(batch.apply_(torch.zeros(1, VOCAB, device=backend.device)).item())
        batch.update(torch.tensor([token], device=backend.device))
    assert deltas == [-3, -3, 0, 0, -3, -3, 0, 0]


def test_wrong_calls():
    with pytest.raises(ValueError, match="times: expected at least 1, got 0"):
        presets.BudgetForcing(ReflectionBatch(1, tokens=SIMPLE), wait=1, times=0)
    for wrong in ({"budget": 0}, {"alpha": 0.0}, {"start": 1.5}, {"alpha": float("nan")}):
        with pytest.raises(ValueError, match="expected budget and alpha above 0 and start, a probability"):
            presets.AlphaOne(ReflectionBatch(1, tokens=SIMPLE), 1, [7], **{"budget": 10, **wrong})
    for method in (lambda b: presets.BudgetForcing(b, wait=1), lambda b: presets.AlphaOne(b, 1, [7], 10)):
        with pytest.raises(ValueError, match="an end of thinking of one token, this tokenizer has 3"):
            method(ReflectionBatch(1, tokens=TOKENS))
