"""Routing metrics of the grokking paper: pathways, their distance, consistency; over batches as over one."""

import math
from itertools import combinations, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from warpup.moe.metrics import RoutingMetrics, edit_distance, pair


def routing(tokens, k, experts, seed):
    rng = torch.Generator().manual_seed(seed)
    indices = torch.rand(tokens, experts, generator=rng).argsort(1)[:, :k]
    return torch.rand(tokens, k, generator=rng), indices


def test_pathways_by_hand():
    """Sample 7: layer 0 gives experts .5 .3 .2, of which .5 + .3 exceed .7; layer 1 one expert .8."""
    metrics = RoutingMetrics(2, 4)
    samples = torch.tensor([7, 7, 9])
    weights, indices = torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.5, 0.5]]), torch.tensor([[2, 0], [1, 2], [3, 1]])
    metrics.update(0, weights, indices, samples)
    metrics.update(
        1, torch.tensor([[0.8, 0.2], [0.8, 0.2], [0.9, 0.1]]), torch.tensor([[1, 0], [1, 2], [1, 0]]), samples
    )
    report = metrics.results()
    assert report.pathways == {7: ((2, 1), (1,)), 9: ((1, 3), (1,))}
    assert report.distance == 2  # 2, 1 | 1 against 1, 3 | 1
    assert math.isnan(report.consistency)


def test_an_edit_of_characters():
    metrics = RoutingMetrics(1, 40, edits="character")
    metrics.update(0, torch.ones(2, 1), torch.tensor([[12], [32]]), torch.tensor([0, 1]))
    assert metrics.results().distance == 1


@given(st.text("ab", max_size=7), st.text("abc", max_size=7))
def test_edit_distance(a, b):
    def slow(i, j):
        if min(i, j) == 0:
            return max(i, j)
        return min(slow(i - 1, j) + 1, slow(i, j - 1) + 1, slow(i - 1, j - 1) + (a[i - 1] != b[j - 1]))

    assert edit_distance(a, b) == edit_distance(b, a) == slow(len(a), len(b))


def test_batches_add_up():
    """Two batches, a sample in both, give what one batch gives, -1 left out."""
    experts, layers, tokens = 8, 3, 30
    samples = torch.arange(tokens) // 7
    router = [torch.randn(experts, 5, generator=torch.Generator().manual_seed(i)) for i in range(layers)]
    one, two = (RoutingMetrics(layers, experts, router=router) for _ in range(2))
    inputs = [routing(tokens, 3, experts, layer) for layer in range(layers)]
    for _, indices in inputs:
        indices[::5, 1], indices[11] = -1, -1
    for layer, (w, i) in enumerate(inputs):
        one.update(layer, w, i, samples)
    for part in (slice(0, 17), slice(17, tokens)):
        for layer, (w, i) in enumerate(inputs):
            two.update(layer, w[part], i[part], samples[part])
    a, b = one.results(), two.results()
    assert a.pathways == b.pathways
    assert a.distance == b.distance > 0
    assert a.consistency == pytest.approx(b.consistency)

    mixed = [(torch.nn.functional.one_hot(i.clamp_min(0), experts) * (w * (i >= 0)).unsqueeze(-1)).sum(1) @ r
             for (w, i), r in zip(inputs, router, strict=True)]  # fmt: skip
    live = torch.arange(tokens) != 11
    cosines = [torch.cosine_similarity(x, y)[live].mean().item() for x, y in pairwise(mixed)]
    assert a.cosine == pytest.approx(sum(cosines) / 2)
    assert a.consistency == pytest.approx(1 - sum(cosines) / 2 / (max(cosines) + 1e-8))


def test_equal_layers_are_consistent():
    router = [torch.eye(4)] * 2
    metrics = RoutingMetrics(2, 4, router=router)
    w, i = routing(9, 2, 4, 0)
    for layer in range(2):
        metrics.update(layer, w, i, torch.arange(9))
    report = metrics.results()
    assert report.cosine == pytest.approx(1)
    assert report.consistency == pytest.approx(0, abs=1e-6)


def test_pairs_may_be_drawn():
    w, i = routing(300, 2, 8, 0)
    all_pairs, some = (RoutingMetrics(1, 8, pairs=p) for p in (None, 4000))
    for metrics in (all_pairs, some):
        metrics.update(0, w, i, torch.arange(300))
    exact, drawn = all_pairs.results().distance, some.results().distance
    assert drawn == some.results().distance != exact
    assert drawn == pytest.approx(exact, rel=0.05)


def test_numbers_of_pairs():
    assert {pair(n) for n in range(45)} == set(combinations(range(10), 2))
    far = 10**12  # where a float would round
    assert [pair(far * (far - 1) // 2 + i) for i in (-1, 0, 1)] == [(far - 2, far - 1), (0, far), (1, far)]


def test_few_samples_are_compared_exactly():
    """As many pairs as may be drawn: all of them, each once."""
    w, i = routing(12, 2, 8, 0)
    for pairs in (66, 67, None):
        metrics = RoutingMetrics(1, 8, pairs=pairs)
        metrics.update(0, w, i, torch.arange(12))
        report = metrics.results()
        paths = [[(0, e) for e in path[0]] for path in report.pathways.values()]
        assert report.distance == sum(edit_distance(a, b) for a, b in combinations(paths, 2)) / 66


def test_a_million_samples_need_no_table_of_their_pairs():
    """All pairs would be 8 TB of indices. Odd samples go another way than even ones: 1 edit in half of the pairs."""
    pathways = [((0,),), ((1,),)] * 500_000
    metrics = [RoutingMetrics(1, 2, pairs=2000, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (m._distance(pathways) for m in metrics)
    assert first == again != other
    assert first == pytest.approx(0.5, abs=0.05)
    assert other == pytest.approx(0.5, abs=0.05)


def test_nothing_yet():
    report = RoutingMetrics(2, 4, router=[torch.eye(4)] * 2).results()
    assert report.pathways == {}
    assert report.distance == 0
    assert math.isnan(report.cosine)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda m: m.update(2, torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(1)),
            r"layer must be in \[0, 2\), got 2",
        ),
        (
            lambda m: m.update(0, torch.ones(1, 1), torch.full((1, 1), 4), torch.zeros(1)),
            r"indices must be in \[-1, 4\)",
        ),
        (lambda m: m.update(0, torch.ones(1, 2), torch.zeros(1, 1), torch.zeros(1)), "weights, indices and sample_ids"),
        (lambda m: RoutingMetrics(1, 2, edits="word"), "edits must be expert or character, got 'word'"),
        (lambda m: RoutingMetrics(1, 2, pairs=0), "pairs must be at least 1, or None for all, got 0"),
        (lambda m: RoutingMetrics(1, 2, pairs=None, seed=1), "seed=1 draws nothing where all pairs are compared"),
        (lambda m: RoutingMetrics(1, 2, threshold=1.0), "threshold must be above 0 and below 1"),
        (lambda m: RoutingMetrics(2, 4, router=[torch.eye(4)]), r"router must hold \(4, H\) for each of 2 layers"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        call(RoutingMetrics(2, 4))
