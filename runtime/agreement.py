"""How much somebody's own templates agree, and what that says of similarities to them.

Three short words, or two calm sentences and a shouted one, make templates that agree less than
three calm sentences do; and later samples of the same person will be less similar to their mean as
well, while those of strangers are about as similar as ever. One threshold for all would reject such
people more often than others. So similarities are moved by the agreement: in effect a threshold for
each person, learnt from other people (user-specific thresholds: Jain and Ross, "Learning
user-specific parameters in a multibiometric system", ICIP 2002; a measure of quality beside the
score: Mandasari et al., "Quality measure functions for calibration of speaker recognition systems
in various duration conditions", IEEE TASLP 2013).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeid.runtime.curve import fields, number
from edgeid.runtime.errors import ModelFormatError

Array = NDArray[np.float64]
HEAVIEST = 100.0  # of a weight


@dataclass(frozen=True)
class Agreement:
    """What the agreement of n templates, the mean cosine of any two, takes from similarities:

        weight * (n - 1) / (n + 1) * (clip(agreement, low, high) - usual)

    The fraction says how far the agreement of so few can be believed: nothing is taken where
    there is one template.

    Attributes:
        low, usual, high: the range of agreements met in calibration, and the median of those of
            samples as they were recorded.
        weight: above 0. Between ``low`` and ``high`` a similarity moves by no more than
            ``weight * (high - low)``, whatever was enrolled.

    Raises:
        ModelFormatError: a range that does not rise within -1..1, or another weight.
    """

    low: float
    usual: float
    high: float
    weight: float

    def __post_init__(self) -> None:
        if not -1 <= self.low <= self.usual <= self.high <= 1:
            raise ModelFormatError(
                f"agreement range {self.low} .. {self.usual} .. {self.high}: must rise within -1..1"
            )
        if not 0 < self.weight <= HEAVIEST:
            raise ModelFormatError(
                f"the weight of agreement lies above 0 and up to {HEAVIEST:g}, got {self.weight}"
            )

    def shifts(self, agreements: ArrayLike, counts: ArrayLike) -> Array:
        """What is taken from similarities to people with these agreements of n >= 1 templates."""
        n = np.asarray(counts, np.float64)
        beyond = np.clip(np.asarray(agreements, np.float64), self.low, self.high) - self.usual
        return np.asarray(self.weight * (n - 1) / (n + 1) * beyond)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Agreement:
        """The parameters in ``data``; ModelFormatError for anything else."""
        parts = fields(data, "agreement", ("low", "usual", "high", "weight"))
        return cls(**{name: number(value, f"agreement {name}") for name, value in parts.items()})


def agreement_of(centroids: Array, counts: ArrayLike) -> Array:
    """Mean cosine of any two of n unit templates, from their mean (people, d) and n; 0 for n = 1.

    The squared length of the mean is (1 + (n - 1) agreement) / n.
    """
    n = np.asarray(counts, np.float64)
    squares = np.square(centroids).sum(axis=1)
    agreements = (n * squares - 1) / np.maximum(n - 1, 1) * (n > 1)
    return np.asarray(agreements.clip(-1, 1))  # rounding may take it beyond
