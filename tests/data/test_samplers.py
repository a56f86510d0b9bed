"""Samplers: their formulas, and that they resume exactly. docs/methods/samplers.py has more formulas."""

import inspect
import json
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.puzzle_text import few, seeds
from warpup.data import (
    AioliSampler,
    BalancedSampler,
    CyclicalSampler,
    DUMPSampler,
    PacedSampler,
    PassRateSampler,
    RecencySampler,
    RS2Sampler,
    Sampler,
    SECSampler,
    UniformSampler,
    WeaknessSampler,
    WeightedSampler,
    make_sampler,
)
from warpup.data.samplers import SAMPLERS

CATEGORIES = ["easy"] * 7 + ["hard"] * 3 + ["mid"] * 5

EXAMPLES = [{"category": c, "hard": 0.1 + i % 4, "rate": i % 4 / 3} for i, c in enumerate(CATEGORIES)]
NAMES = [
    "uniform", "sec", "dump:window=20", "weakness:window=5", "aioli:every=20,rounds=2,steps=2", "recency:per_task=20",
    "balanced:power=0.5", "cyclical:score=hard", "rs2:share=.3", "rs2:share=.3,replacement=true",
    "paced:score=hard,epochs=3", "views:views=3", "weighted:score=hard", "pass_rate", "pass_rate:score=rate,most=.6",
]  # fmt: skip


def made(name):
    return lambda seed: make_sampler(name, EXAMPLES, seed=seed)


def signals(indices, step):
    """What the stages tell, as it depends on index and step."""
    pairs = [[math.sin(i + step), 0.1 * i] for i in indices]
    correct = [[float(i % 5 > 0), math.nan] for i in indices]
    return {"advantages": pairs, "rewards": pairs, "correct": correct, "losses": [1 + a for a, _ in pairs]}


def drive(sampler, steps, k, start=0):
    """A run whose advantages depend on the index and the step, so that curricula move."""
    picked = []
    for step in range(start, start + steps):
        indices = sampler.next(k)
        sampler.observe(indices, **signals(indices, step))
        picked.append(indices)
    return picked


def test_every_sampler_is_tried():
    assert {name.partition(":")[0] for name in NAMES} == set(SAMPLERS)
    assert all(isinstance(made(name)(0), Sampler) for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
@few
@given(seed=seeds, before=st.integers(0, 12), k=st.integers(1, 9))
def test_samplers_resume_exactly(name, seed, before, k):
    make = made(name)
    sampler, fresh = make(seed), make(seed + 1)
    drive(sampler, before, k)
    state = json.loads(json.dumps(sampler.state_dict()))
    rest = drive(sampler, 10, k, before)
    drive(fresh, 3, k)
    fresh.load_state_dict(state)
    assert drive(fresh, 10, k, before) == rest
    assert fresh.state_dict() == sampler.state_dict()
    assert drive(make(seed), before + 10, k)[before:] == rest
    assert drive(make(seed + 1), before + 10, 9) != drive(make(seed), before + 10, 9)


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
        (lambda: WeaknessSampler("ab").observe([0], advantages=[1]), "correct, rewards: expected one of them"),
        (lambda: SECSampler("ab").next(-1), "k: .*-1"),
        (lambda: UniformSampler(3).load_state_dict(UniformSampler(4).state_dict()), "size 3, got .* size 4"),
        (lambda: SECSampler("ab").load_state_dict(DUMPSampler("ab").state_dict()), "SECSampler .* got 'DUMPSampler'"),
        (lambda: SECSampler("aab").load_state_dict(SECSampler("abb").state_dict()), r"\[2, 1\], got .*\[1, 2\]"),
        (lambda: UniformSampler(3).load_state_dict({}), "got None"),
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_weakness_leaves_what_is_solved_a_share():
    sampler = WeaknessSampler(["a", "b", "c"], power=2, spread=0.3)
    sampler.observe([0, 1], correct=[[1, 1], [1, 0]])  # solved 1, .5, not tried
    assert sampler.probabilities() == pytest.approx({"a": 0.1, "b": 0.1 + 0.7 * 0.2, "c": 0.1 + 0.7 * 0.8})
    sampler.observe([1, 1, 2], rewards=[2.0, 1.0, 0.5])  # nobody tells: a reward above 0
    assert list(sampler.recent[1]) == [1, 0, 1, 1]
    solved = WeaknessSampler(["a", "b"], spread=0)
    solved.observe([0, 1], correct=[1, 1])
    assert solved.probabilities() == {"a": 0.5, "b": 0.5}


def test_recency_brings_tasks_in_turn():
    tasks = "aabbcc"
    sampler = RecencySampler(tasks, per_task=4, d=1)
    assert {tasks[i] for i in sampler.next(4)} == {"a"}
    assert sampler.probabilities() == pytest.approx({"a": 1 / 3, "b": 2 / 3, "c": 0})
    sampler.next(40)
    assert sampler.probabilities() == pytest.approx({"a": 2 / 11, "b": 3 / 11, "c": 6 / 11})


def test_aioli_goes_on_behind_a_loss_that_is_not_finite():
    sampler = AioliSampler("ab", every=40, rounds=2, steps=2)
    sampler.observe([0, 0, 1], [math.nan, 3.0, math.inf])
    assert sampler.level == [3.0, None]


def test_aioli_gives_more_to_what_lowers_all_losses():
    """A step lowers both losses by the share of a: the law is (1, 0) a step, (2, 0) a trial of two."""
    sampler = AioliSampler("ab", every=40, rounds=2, steps=2, eta=1.0, focus=0.75)
    level, tried = 10.0, []
    for _ in range(9):
        tried.append(sampler.probabilities()["a"])
        sampler.observe([0, 1], losses=[level, level])
        level -= tried[-1]
    assert sorted(tried[:8]) == [0.25] * 4 + [0.75] * 4
    assert tried[8] == 0.5  # the batch that tells what the last trial did
    assert sampler.probabilities()["a"] == pytest.approx(1 / (1 + math.exp(-4)))


def test_rs2_without_replacement_takes_all_before_any_again():
    sampler = RS2Sampler(10, share=0.3)
    assert sampler.count == 3
    taken = Counter(sampler.next(9))
    assert len(taken) == 9
    assert len(set(sampler.next(3))) == 3  # a new shuffle
    again = RS2Sampler(10, share=0.3, replacement=True)
    epochs = [tuple(again.next(3)) for _ in range(20)]
    assert all(len(set(epoch)) == 3 for epoch in epochs)
    assert len({i for epoch in epochs[:4] for i in epoch}) < 12
    assert RS2Sampler(100, share=0.29).count == 29  # .29 * 100 is 28.999999999999996


def test_cyclical_draws_by_score_without_replacement():
    counts = Counter()
    for seed in range(400):
        first = CyclicalSampler(4, scores=[8, 1, 1, 0], start=0.25, seed=seed).next(1)
        counts[first[0]] += 1
    assert counts[3] == 0
    assert abs(counts[0] / 400 - 0.8) < 0.06
    epoch = CyclicalSampler(4, scores=[8, 1, 1, 0], start=1.0).next(4)
    assert sorted(epoch) == [0, 1, 2, 3]
    assert epoch[-1] == 3  # a weight of 0 comes last


def test_weighted_draws_by_score():
    counts = Counter(WeightedSampler(3, scores=[3, 1, 0]).next(4000))
    assert counts[2] == 0
    assert abs(counts[0] / 4000 - 0.75) < 0.03


def test_a_pass_rate_is_that_of_the_latest_group():
    sampler = PassRateSampler(4, most=0.75)
    sampler.next(1)
    sampler.observe([0, 1, 2], correct=[[0, 0], [1, 1], [1, 0]])
    sampler.next(3)  # the epoch at work ends as it began
    assert sorted(sampler.next(2)) == [2, 3]  # never solved, always solved, half, not tried
    sampler.observe([2, 3], correct=[[0, 0], [0, 0]])
    before = sampler.state_dict()
    for _ in range(2):  # it does not go back to an epoch that is over
        with pytest.raises(ValueError, match=r"no example has one above 0\.0 and at most 0\.75"):
            sampler.next(1)
    assert sampler.state_dict() == before


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("thompson", "expected one of uniform, sec, dump, .*, got 'thompson'"),
        ("sec alpha=.5", "with options as in `sec:alpha=.5`, got 'sec alpha=.5'"),
        ("sec:alpha=high", "alpha: expected a number, got 'high'"),
        ("rs2:share=.1,replacement=yes", "replacement: expected true or false, got 'yes'"),
        ("sec:beta=1", "sec has no option beta, it has alpha, tau"),
        ("uniform:alpha=1", "uniform has no option alpha, it has none"),
        ("sec:alpha", "expected key=value after the name, got 'alpha'"),
        ("recency", "recency needs per_task, as in `recency:per_task=...`"),
        ("weighted", "weighted needs score"),
        ("sec:alpha=2", "alpha: expected 0 < alpha <= 1, got 2"),
        ("weighted:score=weight", "sampler weighted:score=weight: 15 of 15 examples have no 'weight' column"),
        ("weighted:score=category", "scores: expected a finite number, got 'easy' for example 0"),
        ("paced:score=hard,order=up", "order: expected one of easy, anti, random, got 'up'"),
        ("pass_rate:score=hard", "scores: expected pass rates from 0 to 1, got 1.1"),
        ("pass_rate:above=1", "above: expected -1 <= above < most, 1.0, got 1"),
        ("rs2:share=.05", "share: 0.05 of 15 examples is not one"),
        ("aioli:every=10", "every: 48 batches are trials alone, got 10"),
        ("recency:per_task=5,decay=linear", "decay: expected power or exponential"),
        ("weakness:spread=2", "spread: expected 0 <= spread <= 1, got 2"),
        ("recency:per_task=5,d=inf", "d: expected 0 <= d"),
        ("sec:tau=.5,tau=1", "tau is given twice"),
        ("rs2:replacement=2", "replacement: expected true or false, got 2"),
    ],
)
def test_names_that_cannot_be(name, message):
    with pytest.raises(ValueError, match=message):
        make_sampler(name, EXAMPLES)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_text_where_a_number_belongs_is_named(name):
    signature = inspect.signature(SAMPLERS[name]).parameters.values()
    given = {"recency": "per_task=20,", "paced": "score=hard,", "weighted": "score=hard,"}.get(name, "")
    for option in (p.name for p in signature if isinstance(p.default, int | float) and p.name != "seed"):
        with pytest.raises(ValueError, match=f"^{option}: expected .*'much'"):
            make_sampler(f"{name}:{given}{option}=much", EXAMPLES)


def test_categories_of_every_size_and_kind():
    for power, share in ((100.0, 1.0), (-100.0, 0.0), (0.0, 0.5)):
        found = BalancedSampler(["large"] * 5000 + ["small"], power=power).probabilities()
        assert found["large"] == pytest.approx(share)
    with pytest.raises(ValueError, match="categories: expected texts"):
        make_sampler("sec", [{"category": ["a"]}])


def test_paced_takes_the_easy_ones_first():
    scores = [4.0, 1.0, 3.0, 2.0]
    sampler = PacedSampler(4, scores=scores, start=0.25, epochs=3)
    epochs = [sorted(sampler.next(n)) for n in (1, 2, 3, 4, 4)]
    assert epochs == [[1], [1, 3], [1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    assert PacedSampler(4, scores=scores, start=0.25, order="anti").next(1) == [0]
    random = [PacedSampler(4, scores=scores, start=0.25, order="random", seed=s).next(1)[0] for s in range(40)]
    assert set(random) == {0, 1, 2, 3}
