"""Prompt samplers: their formulas, and that they resume exactly."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.puzzle_text import few, seeds
from warpup.data import (
    DUMPSampler,
    SECSampler,
    UniformSampler,
)

CATEGORIES = ["easy"] * 7 + ["hard"] * 3 + ["mid"] * 5

SAMPLERS = {
    "uniform": lambda seed: UniformSampler(15, seed=seed),
    "sec": lambda seed: SECSampler(CATEGORIES, seed=seed),
    "dump": lambda seed: DUMPSampler(CATEGORIES, window=20, seed=seed),
}


def drive(sampler, steps, k, start=0):
    """A run whose advantages depend on the index and the step, so that curricula move."""
    picked = []
    for step in range(start, start + steps):
        indices = sampler.next(k)
        sampler.observe(indices, [[math.sin(i + step), 0.1 * i] for i in indices])
        picked.append(indices)
    return picked


@pytest.mark.parametrize("name", SAMPLERS)
@few
@given(seed=seeds, before=st.integers(0, 12), k=st.integers(1, 9))
def test_samplers_resume_exactly(name, seed, before, k):
    sampler, fresh = SAMPLERS[name](seed), SAMPLERS[name](seed + 1)
    drive(sampler, before, k)
    state = json.loads(json.dumps(sampler.state_dict()))
    rest = drive(sampler, 10, k, before)
    drive(fresh, 3, k)
    fresh.load_state_dict(state)
    assert drive(fresh, 10, k, before) == rest
    assert fresh.state_dict() == sampler.state_dict()
    assert drive(SAMPLERS[name](seed), before + 10, k)[before:] == rest
    assert drive(SAMPLERS[name](seed + 1), before + 10, 9) != drive(SAMPLERS[name](seed), before + 10, 9)


@few
@given(st.integers(1, 20), st.integers(1, 30), seeds)
def test_uniform_sampler_takes_all_once_an_epoch(size, k, seed):
    sampler = UniformSampler(size, seed=seed)
    stream = [i for _ in range(6) for i in sampler.next(k)]
    for start in range(0, len(stream) - size + 1, size):
        assert sorted(stream[start : start + size]) == list(range(size))
    assert sampler.epoch == len(stream) // size
    epochs = [tuple(UniformSampler(40, seed=seed).next(80)[i : i + 40]) for i in (0, 40)]
    assert epochs[0] != epochs[1]


def test_sec_formula():
    sampler = SECSampler(CATEGORIES, alpha=0.25, tau=0.5)
    assert sampler.probabilities() == pytest.approx({"easy": 1 / 3, "hard": 1 / 3, "mid": 1 / 3})
    sampler.observe([0, 1, 8], [[-1.0, 3.0], [0.0, 0.0], [2.0, -4.0]])  # |A| means: easy 1, hard 3
    assert sampler.q == [0.25, 0.75, 0.0]
    sampler.observe([2], [0.0])  # the others do not decay
    assert sampler.q == [0.1875, 0.75, 0.0]
    weights = [math.exp(q / 0.5) for q in sampler.q]
    expected = {c: w / sum(weights) for c, w in zip(("easy", "hard", "mid"), weights, strict=True)}
    assert sampler.probabilities() == pytest.approx(expected)
    counts = {c: 0 for c in expected}
    for i in sampler.next(3000):
        counts[CATEGORIES[i]] += 1
    assert all(abs(counts[c] / 3000 - expected[c]) < 0.04 for c in counts)


def test_dump_formula():
    sampler = DUMPSampler(["x", "y", "x"], window=3, tau=0.3)
    assert sampler.probabilities() == {"x": 0.5, "y": 0.5}
    sampler.observe([0, 2], [[9.0, -1.0], [0.5, 0.0]])  # window keeps 1, .5, 0; four rollouts count
    scores = [0.5 + math.sqrt(2 * math.log(5) / 5), math.sqrt(2 * math.log(5) / 1)]
    weights = [math.exp(s / 0.3) for s in scores]
    assert sampler.probabilities() == pytest.approx({"x": weights[0] / sum(weights), "y": weights[1] / sum(weights)})


def test_samplers_take_tensors_and_reject_nonsense():
    torch = pytest.importorskip("torch")
    one, two, three = (SECSampler(CATEGORIES) for _ in range(3))
    one.observe(torch.tensor([0, 8]), torch.tensor([[1.0, -2.0], [0.0, 4.0]]))
    two.observe([0, 8], [torch.tensor([1.0, -2.0]), [0.0, 4.0]])
    three.observe([0, 0, 8, 8], torch.tensor([1.0, -2.0, 0.0, 4.0]))
    assert one.q == two.q == three.q == [0.75, 1.0, 0.0]
    for indices, advantages, message in (
        ([0], [1, 2], "one for each of 1 indices, got 2"),
        ([15], [1], "0 to 14, got 15"),
        ([-1], [1], "0 to 14, got -1"),
        ([0.0], [1], "integers"),
        ([8, 0], [1, math.nan], "finite numbers, got nan for index 0"),
    ):
        with pytest.raises(ValueError, match=message):
            one.observe(indices, advantages)
    assert one.q == two.q
    for make, message in (
        (lambda: UniformSampler(0), "size: .*0"),
        (lambda: SECSampler([]), "categories: .*none"),
        (lambda: SECSampler("ab", tau=0), "tau: .*0"),
        (lambda: SECSampler("ab", alpha=1.5), "alpha: .*1.5"),
        (lambda: DUMPSampler("ab", window=0), "window: .*0"),
        (lambda: UniformSampler(3).next(0), "k: .*0"),
        (lambda: SECSampler("ab").next(-1), "k: .*-1"),
        (lambda: UniformSampler(3).load_state_dict(UniformSampler(4).state_dict()), "size 3, got .* size 4"),
        (lambda: SECSampler("ab").load_state_dict(DUMPSampler("ab").state_dict()), "SECSampler .* got 'DUMPSampler'"),
        (lambda: SECSampler("aab").load_state_dict(SECSampler("abb").state_dict()), r"\[2, 1\], got .*\[1, 2\]"),
        (lambda: UniformSampler(3).load_state_dict({}), "got None"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
