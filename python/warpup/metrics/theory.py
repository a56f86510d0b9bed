"""Curves and numbers that theory gives: exact dynamics of linear regression, strategies of learning in context, how
much a training minds its learning rate, whether a head is an induction head."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._arrays import array


def linear_dynamics(
    eigenvalues: Sequence[float], time: Any, *, signal: float = 1.0, start: float = 0.0, noise: float = 0.0
) -> np.ndarray:
    """Expected generalization error of linear regression under gradient flow, exact: a test of a trainer.

    E(t) = mean_i [(signal + start) e^(-2 l_i t) + noise / l_i (1 - e^(-l_i t))^2] + noise, for y = w x + e with N
    inputs of variance 1 / N, the gradient of half the summed squares, and the eigenvalues l_i of X^T X.

    eigenvalues: (N,), at least 0. time: any shape; steps times learning rate. signal, start, noise: variances of the
    true weights, of the initial ones and of e. Returns `time`'s shape.

    Source: "High-dimensional dynamics of generalization error in neural networks" (arXiv 1710.03667).
    """
    values = array("eigenvalues", eigenvalues, None)
    if values.min() < -1e-5 * values.max():
        raise ValueError(f"eigenvalues: expected numbers of at least 0, but for rounding, got {values.min()}")
    t = np.asarray(time, np.float64)[..., None]
    left = np.exp(-values * t)
    # (1 - e^(-l t))^2 / l, which is 0 at l = 0
    learned = np.where(values > 0, np.expm1(-values * t) ** 2 / np.where(values > 0, values, 1.0), 0.0)
    return ((signal + start) * left**2 + noise * learned).mean(-1) + noise


def memorizing(tasks: ArrayLike, counts: ArrayLike) -> np.ndarray:
    """(K,) predictions of who knows the tasks seen in training alone: their posterior after the context.

    tasks: (D, K), each the probabilities of K tokens; counts: (K,), how often each is in the context.
    """
    tasks = array("tasks", tasks, None, None)
    counts = array("counts", counts, tasks.shape[1])
    with np.errstate(divide="ignore", invalid="ignore"):
        logp = np.where(counts > 0, counts * np.log(tasks), 0.0).sum(1)
    if np.isneginf(logp.max()):
        raise ValueError("counts: no task has such a context")
    posterior = np.exp(logp - logp.max())
    return posterior @ tasks / posterior.sum()


def generalizing(counts: ArrayLike, prior: float = 1.0) -> np.ndarray:
    """(K,) predictions of who knows how tasks are made: the context's frequencies, under a Dirichlet prior."""
    counts = array("counts", counts, None)
    if not (prior >= 0 and (counts + prior).sum() > 0):
        raise ValueError(f"prior: expected at least 0, and above where nothing is counted, got {prior}")
    return (counts + prior) / (counts + prior).sum()


def strategy_weight(
    examples: Any, loss_gap: Any, complexities: tuple[float, float], *, gamma: float, alpha: float, beta: float
) -> np.ndarray:
    """How far a model memorizes: sigmoid of gamma N^(1 - alpha) (L_G - L_M) - (K_M^beta - K_G^beta). Its predictions
    are this share of `memorizing`, the rest of `generalizing`.

    examples: N, seen in training. loss_gap: L_G - L_M, how much worse the generalizing predictor does on them.
    complexities: (K_M, K_G), description lengths of the two. gamma, alpha, beta: fitted, as by scipy's `minimize`.

    Source: "In-Context Learning Strategies Emerge Rationally" (arXiv 2506.17859).
    """
    memory, general = complexities
    evidence = gamma * np.asarray(examples, np.float64) ** (1 - alpha) * np.asarray(loss_gap, np.float64)
    eta = evidence - (memory**beta - general**beta)
    return 0.5 * (1 + np.tanh(0.5 * eta))  # the sigmoid of eta, in a form that cannot overflow


def lr_sensitivity(losses: Sequence[float], initial: float) -> float:
    """What is lost on average by not knowing the best learning rate: the mean of min(loss, initial) minus the least.

    losses: (n,), the final ones of runs whose rates are spread evenly in log (3e-4 to 3e-1 in the paper); NaN and inf
    are runs that diverged, which count as `initial`, the loss of an untrained model.

    Source: "Small-scale proxies for large-scale Transformer training instabilities" (arXiv 2309.14322).
    """
    found = array("losses", losses, None, nan=True)
    held = np.minimum(np.where(np.isfinite(found), found, initial), initial)
    return float(held.mean() - held.min())


def prefix_matching(attention: Any, ids: Sequence[int]) -> np.ndarray:
    """How far heads attend to what followed the last time: the mean attention from each token that came before to the
    place behind its latest earlier one. An induction head has nearly 1 on a random sequence that is repeated.

    attention: (..., L, L), [t, s] from t to s. ids: (L,). Returns the leading shape. Raises ValueError where no token
    comes twice.

    Source: "What needs to go right for an induction head?" (arXiv 2404.07129), after Olsson et al. (arXiv 2209.11895).
    """
    attention, ids, latest, pairs = np.asarray(attention, np.float64), np.asarray(ids).tolist(), {}, []
    if attention.shape[-2:] != (len(ids), len(ids)):
        raise ValueError(f"attention: expected (..., {len(ids)}, {len(ids)}), got {attention.shape}")
    for t, token in enumerate(ids):
        if token in latest:
            pairs.append((t, latest[token] + 1))
        latest[token] = t
    if not pairs:
        raise ValueError("ids: no token comes twice")
    rows, columns = zip(*pairs, strict=True)
    return attention[..., list(rows), list(columns)].mean(-1)


@contextmanager
def clamped(module: Any, change: Callable[[Any], Any]) -> Iterator[None]:
    """While open, `change(output)` stands in the place of a torch module's output, in training too: a constant, or the
    pattern that a head should have. (An optogenetic experiment, in the words of arXiv 2404.07129.)"""
    handle = module.register_forward_hook(lambda _, __, output: change(output))
    try:
        yield
    finally:
        handle.remove()
