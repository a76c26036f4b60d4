"""How alike the embeddings of two networks are, each by each and as pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.engine import Engine
from edgeid.runtime.errors import GraphError

Values = NDArray[np.float64]
Embeddings = dict[str, Values]  # entry -> (N, d), unit length

BINS = 40
SHOWN = 15  # pairs of each bin that a plot shows


@dataclass(frozen=True, eq=False)
class Similarity:
    """The embeddings of a step beside the original ones.

    Attributes:
        cosines: (N,) of each sample's embedding with its original one; None where the
            embedding has another dimension now.
        correlation: Pearson's, of the cosines between all pairs of samples, before and
            after; what verification rests on. NaN with fewer than three samples.
        difference: mean absolute one of the same cosines.
        pairs: (n, 2) of them, before and after, few where there are many alike.
    """

    cosines: Values | None
    correlation: float
    difference: float
    pairs: Values

    @property
    def mean(self) -> float | None:
        """Mean cosine to the original."""
        return None if self.cosines is None else float(self.cosines.mean())

    def to_dict(self) -> dict[str, object]:
        """The figures, without the pairs."""
        ranks = (0, 5, 25, 50, 75, 95, 100)
        return {
            "mean_cosine": self.mean,
            "cosine_percentiles": None
            if self.cosines is None
            else {str(rank): float(np.percentile(self.cosines, rank)) for rank in ranks},
            "pair_correlation": self.correlation,
            "pair_difference": self.difference,
        }


def embed(engine: Engine, samples: Mapping[str, FloatArray], who: str) -> Embeddings:
    """Unit embeddings (N, d) of each entry's samples.

    Raises:
        GraphError: an embedding is NaN or infinite; it says whose.
    """
    found = {}
    for entry, x in samples.items():
        y = engine.run(entry, x).reshape(len(x), -1).astype(np.float64)
        if not np.isfinite(y).all():
            raise GraphError(f"{who}: entry {entry!r} gives NaN or infinity on the samples")
        found[entry] = y / np.maximum(np.linalg.norm(y, axis=1, keepdims=True), 1e-30)
    return found


def compare(before: Values, after: Values) -> Similarity:
    """Unit embeddings (N, d) and (N, d') of the same samples."""
    rows, columns = np.triu_indices(len(before), 1)
    old, new = ((y @ y.T)[rows, columns] for y in (before, after))
    varied = len(old) > 2 and min(np.ptp(old), np.ptp(new)) > 1e-12
    return Similarity(
        cosines=(before * after).sum(axis=1) if before.shape == after.shape else None,
        correlation=float(np.corrcoef(old, new)[0, 1]) if varied else float("nan"),
        difference=float(np.abs(old - new).mean()) if len(old) else float("nan"),
        pairs=_thinned(old, new),
    )


def _thinned(old: Values, new: Values) -> Values:
    """Pairs spread over the range of the original cosines: most lie near 0."""
    if not len(old):
        return np.empty((0, 2))
    bins = np.floor((old - old.min()) / max(float(np.ptp(old)), 1e-12) * BINS)
    order = np.random.default_rng(0).permutation(len(old))
    kept = np.concatenate([order[bins[order] == b][:SHOWN] for b in range(BINS + 1)])
    return np.stack([old[kept], new[kept]], axis=1)
