"""How well labelled embeddings verify: the quick figure by which converters compare."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeid.runtime.errors import DataError
from edgeid.runtime.score import similarity_matrix
from edgeid.runtime.scoring_backend import Backend

Array = NDArray[np.float64]
MAX_SAMPLES = 3000  # nine million comparisons


def equal_error_rate(genuine: ArrayLike, impostor: ArrayLike) -> float:
    """The rate at which false matches and false non-matches are equally frequent.

    The mean of the two where they cross between two scores. For choosing between variants:
    rates that are reported carry an interval (``edgeid eval``).

    Raises DataError for a class without scores, or scores that are not finite.
    """
    high, low = (np.sort(np.asarray(s, np.float64).ravel()) for s in (genuine, impostor))
    if not (len(high) and len(low)) or not np.isfinite([high.sum(), low.sum()]).all():
        raise DataError(f"{len(high)} genuine and {len(low)} impostor scores: needs finite ones")
    thresholds = np.unique(np.concatenate([high, low, [np.inf]]))
    missed = np.searchsorted(high, thresholds, side="left") / len(high)
    matched = 1 - np.searchsorted(low, thresholds, side="left") / len(low)
    crossing = int(np.argmin(np.abs(missed - matched)))
    return float((missed[crossing] + matched[crossing]) / 2)


def pair_scores(
    embeddings: ArrayLike, labels: ArrayLike, backend: Backend | None = None
) -> tuple[Array, Array]:
    """Genuine and impostor scores over all pairs of embeddings (N, d), each pair once.

    Of more than ``MAX_SAMPLES`` embeddings an even choice is taken, in order of the labels
    so that people keep several. Raises DataError where no two are of one identity, or all.
    """
    rows, names = np.asarray(embeddings), np.asarray(labels)
    if rows.ndim != 2 or names.shape != (len(rows),):
        raise DataError(f"embeddings {rows.shape} and labels {names.shape} do not fit together")
    order = np.argsort(names, kind="stable")
    if len(order) > MAX_SAMPLES:  # whole blocks of eight neighbours
        blocks = np.linspace(0, len(order) // 8 - 1, MAX_SAMPLES // 8).astype(np.intp)
        order = order[(8 * blocks[:, None] + np.arange(8)).ravel()]
    rows, names = rows[order], names[order]
    if len(rows) < 2:
        raise DataError(f"{len(rows)} embeddings make no pair")
    scores = similarity_matrix([row[None] for row in rows], rows, backend)
    upper = np.triu(np.ones(scores.shape, np.bool_), 1)
    same = names[:, None] == names[None, :]
    return scores[upper & same], scores[upper & ~same]


def pair_error(embeddings: ArrayLike, labels: ArrayLike, backend: Backend | None = None) -> float:
    """Equal error rate over all pairs of embeddings (N, d); DataError as ``pair_scores``."""
    return equal_error_rate(*pair_scores(embeddings, labels, backend))
