"""Scored trials and the curve of their error rates over the threshold.

A trial is accepted when score >= threshold. FMR: share of impostor trials accepted; FNMR:
share of genuine trials not accepted (ISO/IEC 19795-1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeid.runtime.errors import DataError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Trials:
    """Scored trials: scores (n,), genuine (n,) bool, claimed and probe identities (n,)."""

    scores: Array
    genuine: NDArray[np.bool_]
    claimed: NDArray[np.str_]
    probe: NDArray[np.str_]

    def __post_init__(self) -> None:
        if not self.scores.shape == self.genuine.shape == self.claimed.shape == self.probe.shape:
            raise DataError("scores, labels and identities must be vectors of one length")
        check_trials(self.scores, self.genuine)

    def subset(self, chosen: NDArray[np.bool_]) -> Trials:
        """The trials where ``chosen`` (n,) is True; DataError if a class is then empty."""
        return Trials(
            self.scores[chosen], self.genuine[chosen], self.claimed[chosen], self.probe[chosen]
        )

    @property
    def identities(self) -> NDArray[np.str_]:
        """All people who claim or probe, sorted."""
        return np.union1d(self.claimed, self.probe)


def pooled(parts: Sequence[Trials]) -> Trials:
    """The trials of several sets, to be decided by one threshold."""
    names = ("scores", "genuine", "claimed", "probe")
    return Trials(*(np.concatenate([getattr(part, name) for part in parts]) for name in names))


@dataclass(frozen=True)
class Roc:
    """Vertices of the step ROC, one a distinct score and one (+inf) that accepts nothing.

    thresholds fall from +inf; fmr rises from 0 to 1 and fnmr falls from 1 to 0 with them.
    """

    thresholds: Array
    fmr: Array
    fnmr: Array


def check_trials(scores: Array, genuine: NDArray[np.bool_]) -> None:
    """Raise DataError unless scores (n,) are finite and both classes are there."""
    if scores.ndim != 1 or scores.shape != genuine.shape:
        raise DataError(f"scores {scores.shape} and labels {genuine.shape} must be (n,) both")
    if not np.isfinite(scores).all():
        raise DataError("scores are not finite")
    count = int(genuine.sum())
    if not 0 < count < len(genuine):
        raise DataError(
            f"{count} genuine and {len(genuine) - count} impostor trials: rates need both"
        )


class Ranking:
    """Trials sorted by falling score, so that error rates for many weightings are cheap."""

    def __init__(self, scores: ArrayLike, genuine: ArrayLike) -> None:
        values, labels = np.asarray(scores, np.float64), np.asarray(genuine, bool)
        check_trials(values, labels)
        self.order = np.argsort(-values, kind="stable")
        self.labels = labels[self.order]
        ranked = values[self.order]
        # Tied scores are accepted together: a vertex only after the last of equals.
        self.ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
        self.thresholds = np.append(np.inf, ranked[self.ends])

    def rates(self, weights: Array | None = None) -> tuple[Array, Array]:
        """FMR and FNMR at ``thresholds``; NaN when a class has no weight."""
        w = np.ones(len(self.order)) if weights is None else weights[self.order]
        accepted_genuine = np.cumsum(np.where(self.labels, w, 0.0))[self.ends]
        accepted_impostor = np.cumsum(np.where(self.labels, 0.0, w))[self.ends]
        if accepted_genuine[-1] == 0 or accepted_impostor[-1] == 0:
            return np.full(len(self.thresholds), np.nan), np.full(len(self.thresholds), np.nan)
        fmr = np.append(0.0, accepted_impostor / accepted_impostor[-1])
        fnmr = np.append(1.0, 1.0 - accepted_genuine / accepted_genuine[-1])
        return fmr, fnmr


def roc(scores: ArrayLike, genuine: ArrayLike) -> Roc:
    """The ROC of scores (n,) and labels (n,); DataError unless both classes are there."""
    ranking = Ranking(scores, genuine)
    return Roc(ranking.thresholds, *ranking.rates())
