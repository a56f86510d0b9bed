"""What continual learning kept: by the matrix of accuracies, by curves measured all the time, by learning blocks."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ._arrays import array


class ContinualScores(NamedTuple):
    acc: float  # mean accuracy at the end
    bwt: float  # backward transfer: what later tasks changed of earlier ones
    fwt: float  # forward transfer: what a task is solved by before it is learned; NaN without `initial`
    forgetting: float  # how far below their best earlier tasks ended


def continual_scores(accuracy: Any, *, initial: Sequence[float] | None = None) -> ContinualScores:
    """Average accuracy, backward and forward transfer, and forgetting of T tasks learned one after another.

    accuracy: (T, T), [i, j] that of task j after task i was learned. initial: (T,), before anything was. With one task
    the last three are NaN.

        ACC = mean over j of a[T, j]            BWT = mean over j < T of a[T, j] - a[j, j]
        F = mean over j < T of max over i < T of a[i, j] - a[T, j]
        FWT = mean over j > 1 of a[j - 1, j] - initial[j]

    Source: GEM (arXiv 1706.08840); a survey for language models (arXiv 2404.16789).
    """
    a = np.asarray(accuracy, np.float64)
    a = array("accuracy", a, *([a.shape[0] if a.ndim else 1] * 2), nan=True)
    if len(a) == 1:
        return ContinualScores(float(a[0, 0]), np.nan, np.nan, np.nan)
    forward = np.nan
    if initial is not None:
        forward = float((np.diagonal(a, 1) - array("initial", initial, len(a), nan=True)[1:]).mean())
    backward = float((a[-1] - np.diagonal(a))[:-1].mean())
    return ContinualScores(float(a[-1].mean()), backward, forward, float((a[:-1].max(0) - a[-1])[:-1].mean()))


class StabilityGap(NamedTuple):
    min_acc: float  # mean over earlier tasks of the least accuracy since each was learned
    wc_acc: float  # worst case: that, and the last task's accuracy
    wf: float  # windowed forgetting: mean over tasks of the largest fall within a window
    wp: float  # windowed plasticity: of the largest rise
    aaa: float  # average anytime accuracy, over the tasks seen so far


def stability_gap(curves: Any, ends: Sequence[int], *, window: int = 10) -> StabilityGap:
    """How low accuracies went on the way, which the matrix of accuracies between tasks does not show.

    curves: (T, N), each task's accuracy at N evaluations, after every step at best. ends: (T,) rising, the evaluation
    right after a task was learned. window: evaluations in a row of wf and wp.

        min_acc = mean over i < T of min over n > ends[i] of A_i(n)
        wc_acc = A_T(ends[T]) / T + (1 - 1 / T) min_acc
        wf = mean over tasks of max over m < n of one window of A(m) - A(n)

    Source: "Continual evaluation for lifelong learning: Identifying the stability gap" (arXiv 2205.13452).
    """
    a = np.asarray(curves, np.float64)
    tasks = array("curves", a, None, None, nan=True).shape[0]
    ends = list(ends)
    if len(ends) != tasks or sorted(set(ends)) != ends or not 0 <= ends[0] <= ends[-1] < a.shape[1]:
        raise ValueError(f"ends: expected {tasks} rising numbers from 0 to {a.shape[1] - 1}, got {ends}")
    if window < 2 or a.shape[1] < 2:
        raise ValueError(f"window: expected at least 2 evaluations, got {window} of {a.shape[1]}")
    earlier = [a[i, end + 1 : ends[-1] + 1].min() for i, end in enumerate(ends[:-1])]
    least = float(np.mean(earlier)) if earlier else np.nan
    worst = float(np.mean([a[-1, ends[-1]], *earlier]))
    lags = range(1, min(window, a.shape[1]))
    falls = np.array([(a[:, :-lag] - a[:, lag:]).max(1) for lag in lags]).max(0)
    rises = np.array([(a[:, lag:] - a[:, :-lag]).max(1) for lag in lags]).max(0)
    begins = [0, *(end + 1 for end in ends[:-1])]
    seen = [a[: sum(begin <= n for begin in begins), n].mean() for n in range(a.shape[1])]
    return StabilityGap(least, worst, float(falls.mean()), float(rises.mean()), float(np.mean(seen)))


# ---- learning blocks (L2Metrics) ------------------------------------------------------------------------------------
# "A Domain-Agnostic Approach for Characterization of Lifelong Learning Systems" (arXiv 2301.07799) and its code.


def terminal(block: Sequence[float], share: float = 0.1) -> float:
    """Performance that a learning block ended with: the mean of its last tenth."""
    values = array("block", block, None)
    return float(values[-max(1, round(share * len(values))) :].mean())


def maintenance(evaluations: Sequence[float]) -> float:
    """Performance maintenance of a task: the mean change since the first of its evaluations after it was last learned.

    evaluations: (n,), the terminal performances of these, at least two."""
    values = array("evaluations", evaluations, None)
    if len(values) < 2:
        raise ValueError(f"evaluations: expected at least 2, got {len(values)}")
    return float((values[1:] - values[0]).mean())


def transfer(before: float, after: float, kind: str = "contrast") -> float:
    """What learning another task did to this one, forward where it was not learned yet, backward where it was:
    (after - before) / (after + before), or after / before ("ratio")."""
    if kind not in ("contrast", "ratio"):
        raise ValueError(f"kind: expected contrast or ratio, got {kind!r}")
    whole = before if kind == "ratio" else after + before
    if not whole:
        raise ValueError(f"before, after: a {kind} of {before} and {after} divides by 0")
    return after / before if kind == "ratio" else (after - before) / whole


def relative_performance(lifelong: Sequence[float], expert: Sequence[float]) -> float:
    """What a lifelong learner gathered over what an expert of the one task did, over their common length."""
    ours, theirs = array("lifelong", lifelong, None), array("expert", expert, None)
    length = min(len(ours), len(theirs))
    if not theirs[:length].sum():
        raise ValueError("expert: expected performances with a sum other than 0")
    return float(ours[:length].sum() / theirs[:length].sum())


def sample_efficiency(lifelong: Sequence[float], expert: Sequence[float]) -> float:
    """Ratio of the largest performances, times that of the experience it took the expert and the learner to reach them.
    0 where the learner's is below a fifth of the expert's, or its curve falls. Smooth the curves first."""
    ours, theirs = array("lifelong", lifelong, None), array("expert", expert, None)
    if not theirs.max() > 0:
        raise ValueError(f"expert: expected a largest performance above 0, got {theirs.max()}")
    falls = len(ours) > 1 and np.polyfit(np.arange(len(ours)), ours, 1)[0] < 0
    if ours.max() < 0.2 * theirs.max() or falls:
        return 0.0
    return float(ours.max() / theirs.max() * (theirs.argmax() + 1) / (ours.argmax() + 1))


def recovery(times: Sequence[float]) -> float:
    """Performance recovery: how much faster each time the old level is reached again, minus the Theil-Sen slope (the
    median of the slopes between all pairs) of the times it took."""
    values = array("times", times, None)
    if len(values) < 2:
        raise ValueError(f"times: expected at least 2, got {len(values)}")
    i, j = np.triu_indices(len(values), 1)
    return -float(np.median((values[j] - values[i]) / (j - i)))


# ---- the protocol of hyper-parameters -------------------------------------------------------------------------------


class Tuned(NamedTuple):
    best: Any  # the candidate
    tuning: float  # its mean score where it was chosen
    score: float  # its mean score on the other data
    scores: list[float]  # one a seed


def tune_then_evaluate(
    run: Callable[[Any, Any, int], float], candidates: Iterable[Any], tuning: Any, evaluation: Any, seeds: Iterable[int]
) -> Tuned:
    """Hyper-parameters that are chosen on one scenario and evaluated, frozen, on another of the same kind.

    run: (data, candidate, seed) -> score, of which more is better. The first of equal candidates is taken; one with a
    score of NaN, a run that diverged, is worse than any other.

    Source: "Hyperparameters in Continual Learning: A Reality Check" (arXiv 2403.09066).
    """
    seeds = list(seeds)
    scored = [(float(np.mean([run(tuning, candidate, seed) for seed in seeds])), candidate) for candidate in candidates]
    if not scored or not seeds:
        raise ValueError("candidates, seeds: expected at least one of each")
    found, best = max(scored, key=lambda pair: -np.inf if np.isnan(pair[0]) else pair[0])
    scores = [float(run(evaluation, best, seed)) for seed in seeds]
    return Tuned(best, found, float(np.mean(scores)), scores)
