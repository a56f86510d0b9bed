"""Learning curves: fits by a power law, and what follows from them (when to stop, where a curve leaves its law)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from warpup._optional import needs

from ._arrays import array


class PowerLaw(NamedTuple):
    """y = c + a x^-b, with b above 0: falling to c where a is above 0, rising to it where a is below."""

    a: float
    b: float
    c: float
    error: float  # root mean square of what the fit leaves

    def __call__(self, x: Any) -> Any:
        """Its value at x, a number or an array."""
        return self.c + self.a * np.asarray(x, np.float64) ** -self.b


def power_law(x: ArrayLike, y: ArrayLike, *, offset: bool = True) -> PowerLaw:
    """The power law of least squares through (x, y), by scipy's `curve_fit` in float64.

    x: (n,) above 0, at least three different ones. offset: with False c is 0 and the fit is a line in log-log (two
    points are enough, y must be above 0). Raises ValueError otherwise, ImportError without scipy.

    Loss over steps or tokens ("One Epoch Is All You Need", arXiv 1906.06669), accuracy over the size of a corpus
    ("Modeling of learning curves with applications to POS tagging"), distance to a teacher over steps ("On Teacher
    Hacking in Language Model Distillation", arXiv 2502.02671).
    """
    x, y = array("x", x, None), array("y", y, None)
    least = 3 if offset else 2
    if x.shape != y.shape or len(np.unique(x)) < least or not (x > 0).all() or not np.isfinite([x, y]).all():
        raise ValueError(
            f"x, y: expected finite numbers of one length at {least} or more different x above 0, got {x.tolist()} and "
            f"{y.tolist()}"
        )
    if not offset:
        if not (y > 0).all():
            raise ValueError(f"y: without an offset expected numbers above 0, got {y.tolist()}")
        slope, intercept = np.polyfit(np.log(x), np.log(y), 1)
        a, b, c = float(np.exp(intercept)), float(-slope), 0.0
        return PowerLaw(a, b, c, float(np.sqrt(np.mean((a * x**-b - y) ** 2))))
    with needs("power_law", "scipy", "'warpup[methods]'"):
        from scipy.optimize import curve_fit

    # For a given b the other two are linear, so the best of a grid of b is a start that the fit cannot miss from; x in
    # units of its geometric mean keeps a and c of one size.
    unit = np.exp(np.log(x).mean())
    z = x / unit

    def linear(b: float) -> tuple[float, np.ndarray]:
        design = np.stack([z**-b, np.ones_like(z)], 1)
        found = np.linalg.lstsq(design, y, rcond=None)[0]
        return float(((design @ found - y) ** 2).sum()), found

    start = min(np.geomspace(0.01, 10, 61), key=lambda b: linear(b)[0])
    a, c = linear(start)[1]
    bounds = ([-np.inf, 1e-6, -np.inf], [np.inf, 50, np.inf])
    (a, b, c), _ = curve_fit(lambda z, a, b, c: c + a * z**-b, z, y, p0=(a, start, c), bounds=bounds)
    error = float(np.sqrt(np.mean((c + a * z**-b - y) ** 2)))
    return PowerLaw(float(a * unit**b), float(b), float(c), error)


def enough(
    x: ArrayLike, y: ArrayLike, *, tau: float, at: float | None = None, first: int = 4, bound: float = 100.0
) -> int | None:
    """After how many observations of a rising learning curve more data are not worth it; None if that is not yet so.

    Power laws are fitted to the first i observations, i = first, first + 1, ... Of two in a row that are regular
    (rising to an asymptote of at most `bound`) the later one stops it if it moved by at most `tau`: at x = `at`, or its
    asymptote where `at` is None.

    Source: iterated fits with a proximity condition, "Modeling of learning curves with applications to POS tagging"
    (Vilares et al. 2017).
    """
    x = array("x", x, None)
    y = array("y", y, len(x))
    before = None
    for i in range(max(first, 3), len(x) + 1):
        fit = power_law(x[:i], y[:i])
        now = (fit.c if at is None else float(fit(at))) if fit.a < 0 and fit.c <= bound else None
        if before is not None and now is not None and abs(now - before) <= tau:
            return i
        before = now
    return None


def one_epoch(params: float, tokens: float, epochs: float, ratio: float = 5.0) -> tuple[float, float]:
    """(parameters, unique tokens) of a run of one epoch at the cost of one with `params` parameters that reads `tokens`
    unique tokens `epochs` times: cost ∝ parameters times tokens read, and `ratio` tokens a parameter.

    Source: "One Epoch Is All You Need" (arXiv 1906.06669). The ratio of 5 is what summaries give as its rule of thumb;
    models of today read more.
    """
    cost = params * tokens * epochs
    return (cost / ratio) ** 0.5, (cost * ratio) ** 0.5


def teacher_hacking(steps: Sequence[int], proxy: ArrayLike, golden: ArrayLike) -> int | None:
    """The step from which a student comes nearer to its teacher (proxy) and goes away from the oracle that the teacher
    stands for (golden); None if it does not.

    That is the step of golden's least value, if golden ends above it and proxy ends below where it was then.

    Source: "On Teacher Hacking in Language Model Distillation" (arXiv 2502.02671).
    """
    proxy, golden = array("proxy", proxy, len(steps)), array("golden", golden, len(steps))
    least = int(golden.argmin())
    return int(steps[least]) if golden[-1] > golden[least] and proxy[-1] < proxy[least] else None


def leaves_law(
    steps: Sequence[float], values: Sequence[float], *, prefix: float = 0.5, factor: float = 1.1
) -> float | None:
    """The first step beyond the first `prefix` of them at which a curve is over `factor` times the power law of that
    prefix (a line in log-log); None if it stays below. All values above 0."""
    curve = array("values", values, len(steps))
    known = max(2, int(prefix * len(steps)))
    law = power_law(steps[:known], curve[:known], offset=False)
    late = [s for s, v in zip(steps[known:], curve[known:], strict=True) if v > factor * float(law(s))]
    return late[0] if late else None
