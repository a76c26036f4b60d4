"""Confidence intervals: Clopper-Pearson for counts, bootstrap over identities for the rest.

The exact binomial interval assumes independent trials. Comparisons share people and
samples, so it is a lower bound of the uncertainty; the bootstrap draws whole people.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeid.runtime.errors import DataError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Rate:
    """A figure with its 95 % interval and the counts behind it.

    Attributes:
        value: the figure; a fraction, not per cent.
        low, high: interval; low <= value <= high.
        errors, trials: number of wrong decisions among the decisions it is made of.
    """

    value: float
    low: float
    high: float
    errors: int
    trials: int

    def to_dict(self) -> dict[str, float | int]:
        return {
            "value": self.value,
            "low": self.low,
            "high": self.high,
            "errors": self.errors,
            "trials": self.trials,
        }

    def complement(self) -> Rate:
        """The share of right decisions, from that of wrong ones."""
        return Rate(1 - self.value, 1 - self.high, 1 - self.low, self.errors, self.trials)


def binomial_rate(errors: int, trials: int) -> Rate:
    """errors / trials with the Clopper-Pearson interval."""
    low, high = clopper_pearson(errors, trials)
    return Rate(errors / trials, low, high, errors, trials)


def clopper_pearson(
    errors: int, trials: int, confidence: float = CONFIDENCE
) -> tuple[float, float]:
    """Exact two-sided interval of a rate observed as errors / trials.

    The bounds are quantiles of beta distributions (Clopper & Pearson, Biometrika 26, 1934).
    Raises DataError unless 0 <= errors <= trials, trials >= 1 and confidence is in (0, 1).
    """
    if not 0 <= errors <= trials or trials < 1 or not 0 < confidence < 1:
        raise DataError(f"no interval for {errors} errors in {trials} trials at {confidence}")
    tail = (1 - confidence) / 2
    low = 0.0 if errors == 0 else beta_quantile(tail, errors, trials - errors + 1)
    high = 1.0 if errors == trials else beta_quantile(1 - tail, errors + 1, trials - errors)
    return min(low, errors / trials), max(high, errors / trials)


def beta_quantile(q: float, a: float, b: float) -> float:
    """x in [0, 1] with incomplete_beta(a, b, x) = q, by bisection to full precision."""
    low, high = 0.0, 1.0
    for _ in range(1100):  # reaches the smallest positive float; stops much earlier
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if incomplete_beta(a, b, middle) < q:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def incomplete_beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b) for a, b > 0 and x in [0, 1].

    Continued fraction DLMF 8.17.22, evaluated by Lentz's method; the side of the symmetry
    I_x(a, b) = 1 - I_{1-x}(b, a) on which it converges fast is taken.
    """
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    if x > (a + 1) / (a + b + 2):
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    log_front = (
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    return math.exp(log_front) / (a * _fraction(a, b, x))


def _fraction(a: float, b: float, x: float) -> float:
    tiny = 1e-300
    value, c, d = 1.0, 1.0, 0.0
    for i in range(1, 20_000):
        m = i // 2
        if i % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / _nonzero(1.0 + term * d, tiny)
        c = _nonzero(1.0 + term / c, tiny)
        value *= c * d
        if abs(c * d - 1.0) < 1e-15:
            break
    return value


def _nonzero(value: float, tiny: float) -> float:
    return value if abs(value) > tiny else tiny


def bootstrap(
    claimed: ArrayLike,
    probe: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], ArrayLike],
    draws: int = 1000,
    seed: int = 0,
) -> NDArray[np.float64]:
    """Values (draws, k) of a statistic over people drawn with replacement.

    People, not trials, are drawn: a person drawn m times gives each genuine trial of theirs
    weight m, and an impostor trial between two people the product of their multiplicities
    (the two-way identity bootstrap; Owen, "The pigeonhole bootstrap", 2007).

    Args:
        claimed, probe: (n,) identities of the trials.
        statistic: maps trial weights (n,) to k values; it may return NaN for a draw in
            which it is not defined (a class without weight), which is then left out.
    """
    names, codes = np.unique([np.asarray(claimed), np.asarray(probe)], return_inverse=True)
    rows, columns = codes.reshape(2, -1)
    genuine = rows == columns
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(draws):
        count = np.bincount(rng.integers(len(names), size=len(names)), minlength=len(names))
        times = count.astype(np.float64)
        weights = np.where(genuine, times[rows], times[rows] * times[columns])
        values.append(np.atleast_1d(np.asarray(statistic(weights), dtype=np.float64)))
    table = np.stack(values)
    return table[np.isfinite(table).all(axis=1)]


def percentiles(values: NDArray[np.float64], point: float) -> tuple[float, float]:
    """The central 95 % of bootstrap values (n,), widened where needed to hold ``point``."""
    if not len(values):
        return point, point
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values, [tail, 1 - tail])
    return min(float(low), point), max(float(high), point)
