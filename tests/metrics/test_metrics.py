"""Metrics beside what others compute, and on inputs that cannot be; docs/methods/metrics.py has values by hand."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from warpup import metrics

CURVES = ([[0.5, 0.9, 0.6, 0.7, 0.8], [0.1, 0.2, 0.5, 0.8, 0.9]], [1, 4])


@given(st.floats(-50, 50).filter(lambda a: abs(a) > 0.1), st.floats(0.1, 3), st.floats(-10, 100))
def test_a_power_law_is_found_again(a, b, c):
    pytest.importorskip("scipy")
    x = np.geomspace(1, 200, 20)
    fit = metrics.power_law(x, c + a * x**-b)
    np.testing.assert_allclose(fit(x), c + a * x**-b, atol=1e-4 * (abs(a) + abs(c)))
    line = metrics.power_law(x, abs(a) * x**-b, offset=False)
    np.testing.assert_allclose(line[:3], (abs(a), b, 0), rtol=1e-9)


def test_units_of_x_change_nothing():
    pytest.importorskip("scipy")
    x = np.array([1e6, 2e6, 5e6, 1e7, 3e7])
    fit = metrics.power_law(x, 2 + 300 * x**-0.4)
    np.testing.assert_allclose(fit[:3], (300, 0.4, 2), rtol=1e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.power_law([1, 2], [1, 2]), "3 or more different x"),
        (lambda: metrics.power_law([0, 1, 2], [1, 2, 3]), "above 0"),
        (lambda: metrics.power_law([1, 2], [1, -2], offset=False), "y: without an offset"),
        (lambda: metrics.continual_scores([[1, 2, 3], [1, 2, 3]]), r"accuracy: expected shape \(2, 2\), got \(2, 3\)"),
        (lambda: metrics.stability_gap(CURVES[0], [4, 1]), "ends: expected 2 rising numbers from 0 to 4"),
        (lambda: metrics.stability_gap(*CURVES, window=1), "window: expected at least 2"),
        (lambda: metrics.transfer(1, 2, kind="difference"), "kind: expected contrast or ratio"),
        (lambda: metrics.maintenance([1.0]), "evaluations: expected at least 2, got 1"),
        (lambda: metrics.recovery([1.0]), "times: expected at least 2, got 1"),
        (lambda: metrics.tune_then_evaluate(max, [], 0, 0, [0]), "candidates, seeds"),
        (lambda: metrics.processbench_f1([1], [1]), "labels: expected solutions with an error and"),
        (lambda: metrics.pass_at(3, [1], 2), "at least 3 samples"),
        (lambda: metrics.pass_at(1, [3], 2), "0 to samples correct"),
        (lambda: metrics.prefix_matching(np.eye(3), [1, 2, 3]), "ids: no token comes twice"),
        (lambda: metrics.prefix_matching(np.eye(2), [1, 2, 3]), r"attention: expected \(..., 3, 3\)"),
        # none at all
        (lambda: metrics.continual_scores(np.zeros((0, 0))), "accuracy: expected at least one"),
        (lambda: metrics.stability_gap(np.zeros((0, 5)), []), "curves: expected at least one"),
        (lambda: metrics.terminal([]), "block: expected at least one"),
        (lambda: metrics.sample_efficiency([], [1.0]), "lifelong: expected at least one"),
        (lambda: metrics.teacher_hacking([], [], []), "proxy: expected at least one"),
        (lambda: metrics.lr_sensitivity([], 1.0), "losses: expected at least one"),
        (lambda: metrics.linear_dynamics([], 1.0), "eigenvalues: expected at least one"),
        # NaN, where a comparison would take it for a number
        (lambda: metrics.first_error([0.9, math.nan]), "scores: expected numbers, got NaN at .1."),
        (lambda: metrics.teacher_hacking([1, 2], [2, 1], [math.nan, 3]), "golden: .* NaN"),
        (lambda: metrics.leaves_law([1, 2, 3, 4], [4, 3, math.nan, 2]), "values: .* NaN"),
        (lambda: metrics.group_gap([1, math.nan, 3], list("abc")), "values: .* NaN"),
        # a division by 0, an index from behind, another length
        (lambda: metrics.transfer(0.0, 0.0), "before, after"),
        (lambda: metrics.transfer(0.0, 1.0, "ratio"), "before, after"),
        (lambda: metrics.relative_performance([1.0], [0.0]), "expert: .* other than 0"),
        (lambda: metrics.sample_efficiency([0.0], [0.0]), "expert: .* above 0"),
        (lambda: metrics.pass_at(0, [1], 4), "n, confidence"),
        (lambda: metrics.pass_at(1, [1], 4, confidence=1.0), "n, confidence"),
        (lambda: metrics.pass_at(1, [1.5], 4), "correct, samples"),
        (lambda: metrics.cheat_interval(0.1, 0.2, error=0.0), "error: expected a share"),
        (lambda: metrics.elo([0.0, 0.0], [(0, -1, 1)]), "games: expected players from 0 to 1"),
        (lambda: metrics.exploitability([0.5], [1.0]), "wins: expected shape"),
        (lambda: metrics.group_gap([1, 2], "ab"), "groups: expected a list of labels, got"),
        (lambda: metrics.group_gap([1, 2], list("ab"), where=[True]), "where: expected one for each of 2"),
        (lambda: metrics.refusal_rate("I can't"), "answers: expected a list"),
        (lambda: metrics.memorizing([0.5, 0.5], [1, 1]), "tasks: expected shape"),
        (lambda: metrics.memorizing([[1.0, 0.0]], [1, 1]), "counts: no task has such a context"),
        (lambda: metrics.generalizing([0, 0], 0.0), "prior: expected"),
        (lambda: metrics.linear_dynamics([-1.0, 1.0], 1.0), "eigenvalues: expected numbers of at least 0"),
        (lambda: metrics.enough([1, 2, 3], [1, 2, 3, 4], tau=1.0), "y: expected shape"),
    ],
)
def test_inputs_that_cannot_be(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_numbers_far_away_and_of_other_libraries():
    assert metrics.elo([0.0, 1e6], [(0, 1, 0.0)]) == pytest.approx([0.0, 1e6])
    far = metrics.strategy_weight(1e9, [-1e6, 0.0, 1e6], (1, 1), gamma=1.0, alpha=0.0, beta=1.0)
    assert far.tolist() == [0.0, 0.5, 1.0]
    assert metrics.pass_at(1, np.array([1, 2]), np.int64(4)) == metrics.pass_at(1, [1, 2], [4, 4])
    ids = pytest.importorskip("torch").tensor([1, 2, 1, 2])  # no two of its elements are one object
    assert metrics.prefix_matching(np.eye(4, k=-1), ids) == 1.0


def test_a_run_that_diverged_is_not_chosen():
    scores = {"diverged": math.nan, "poor": 1.0, "good": 2.0}
    assert metrics.tune_then_evaluate(lambda _, name, seed: scores[name], scores, 0, 0, [0]).best == "good"


def test_stability_gap_sees_what_the_ends_do_not():
    found = metrics.stability_gap(*CURVES, window=2)
    assert found.min_acc == 0.6  # of the first task after evaluation 1
    assert found.wc_acc == pytest.approx((0.9 + 0.6) / 2)
    assert found.wf == pytest.approx((0.3 + 0.0) / 2 - 0.1 / 2)  # the second only rises: its largest fall is -.1
    assert found.wp == pytest.approx((0.4 + 0.3) / 2)
    assert found.aaa == pytest.approx(np.mean([0.5, 0.9, 0.55, 0.75, 0.85]))
    alone = metrics.stability_gap([[0.5, 0.9]], [1])
    assert alone.wc_acc == 0.9
    assert math.isnan(alone.min_acc)


@given(st.integers(1, 6), st.integers(0, 6), st.integers(1, 6))
def test_pass_at_counts_all_draws(samples, correct, n):
    correct, n = min(correct, samples), min(n, samples)
    draws = list(combinations(range(samples), n))
    share = sum(any(i < correct for i in draw) for draw in draws) / len(draws)
    assert metrics.pass_at(n, [correct], samples).value == pytest.approx(share)


def test_the_interval_of_pass_at_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    chances = rng.beta(2, 2, 2000)  # of problems, of which 60 are drawn
    truth = chances.mean()
    held = 0
    for _ in range(300):
        drawn = rng.choice(chances, 60)
        found = metrics.pass_at(1, rng.binomial(8, drawn).tolist(), 8)
        held += found.low <= truth <= found.high
    assert 0.91 <= held / 300 <= 0.985


def test_gaps_are_those_of_fairlearn():
    fairlearn = pytest.importorskip("fairlearn.metrics")
    rng = np.random.default_rng(1)
    truth, found, group = rng.integers(0, 2, 200), rng.integers(0, 2, 200), rng.integers(0, 3, 200)
    asked = {"y_true": truth, "y_pred": found, "sensitive_features": group}
    assert metrics.group_gap(found, group) == pytest.approx(fairlearn.demographic_parity_difference(**asked))
    rates = fairlearn.MetricFrame(metrics=fairlearn.false_positive_rate, **asked).difference()
    assert metrics.group_gap(found, group, where=truth == 0) == pytest.approx(rates)


def test_recovery_is_scipys_theil_sen():
    stats = pytest.importorskip("scipy.stats")
    times = [9.0, 4.0, 7.0, 3.0, 3.5]
    assert metrics.recovery(times) == pytest.approx(-stats.theilslopes(times).slope)


def test_linear_dynamics_is_gradient_descent():
    """Averaged over true weights and noise, small steps of gradient descent have exactly this error."""
    rng = np.random.default_rng(2)
    inputs, rows, noise, rate, steps, draws = 30, 20, 0.3, 0.01, 150, 4000
    x = rng.normal(0, inputs**-0.5, (rows, inputs))
    truth = rng.normal(0, 1, (inputs, draws))
    y = x @ truth + rng.normal(0, noise**0.5, (rows, draws))
    w = np.zeros_like(truth)
    for _ in range(steps):
        w -= rate * x.T @ (x @ w - y)
    error = ((truth - w) ** 2).mean() + noise
    values = np.maximum(np.linalg.eigvalsh(x.T @ x), 0)
    expected = metrics.linear_dynamics(values, rate * steps, noise=noise)
    assert error == pytest.approx(float(expected), rel=0.02)
    assert abs(float(metrics.linear_dynamics(values, 0.0, noise=noise)) - 1.3) < 1e-12


def test_clamped_lets_go():
    torch = pytest.importorskip("torch")
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    free = layer(x)
    with metrics.clamped(layer, lambda output: output * 0 + 3):
        assert layer(x).tolist() == [[3.0, 3.0]]
    assert torch.equal(layer(x), free)
