"""Somebody's samples as they were recorded, and made worse: what scores are measured on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeid.runtime.errors import CalibrationError


@dataclass(frozen=True, eq=False)
class Views:
    """Embeddings of one person's samples, each seen in several ways, with its quality.

    Attributes:
        embeddings: (v, n, d); view 0 is as recorded. Templates and the curves of a single
            modality are of that view, fused trials have probes of all.
        quality: (v, n) the measure that fusion looks at (runtime/fusion.py); NaN: not known.
    """

    embeddings: NDArray[Any]
    quality: NDArray[np.float64]

    def __post_init__(self) -> None:
        if self.embeddings.ndim != 3 or self.quality.shape != self.embeddings.shape[:2]:
            raise CalibrationError(
                f"views {self.embeddings.shape} with quality {self.quality.shape}: needs (v, n, d) "
                "and (v, n)"
            )

    @classmethod
    def of(cls, rows: ArrayLike | Views) -> Views:
        """``rows``; embeddings (n, d) become one view whose quality is not known."""
        if isinstance(rows, Views):
            return rows
        array = np.asarray(rows)
        if array.ndim != 2:
            raise CalibrationError(
                "embeddings must be (n_i, d) arrays with the same d for everyone, got "
                f"{array.shape}"
            )
        return cls(array[None], np.full((1, len(array)), np.nan))

    def __len__(self) -> int:
        return int(self.embeddings.shape[1])

    def permuted(self, rng: np.random.Generator) -> Views:
        """The samples in random order."""
        order = rng.permutation(len(self))
        return Views(self.embeddings[:, order], self.quality[:, order])
