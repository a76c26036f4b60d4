"""The false match rate (FMR) as a function of the threshold, as measured and stored.

Thresholds are asked for by FMR, and never for one that the number of comparisons cannot
support (the "rule of three": n comparisons without an error bound a rate by 3/n at 95 %
confidence; Jovanovic & Levy 1997, ISO/IEC 19795-1).

A comparison is accepted when score >= threshold. FMR is the share of impostor comparisons
accepted, FNMR the share of genuine comparisons not accepted.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import neg
from typing import Any

import numpy as np

from edgeid.runtime.errors import CalibrationError, InputError, ModelFormatError

RULE_OF_THREE = 3
MAX_POINTS = 4096
MAX_COUNT = 2**53


@dataclass(frozen=True)
class FmrCurve:
    """FMR against threshold, measured; piecewise linear in log FMR, never extrapolated.

    Attributes:
        fmrs: strictly falling from 1 to 3/impostors.
        thresholds: strictly rising; the FMR observed at thresholds[i], and on the line
            between two neighbours, is at most what the curve states.
        fnmrs: the FNMR observed at each threshold.
        impostors, genuine: numbers of comparisons behind the curve.
        people: number of people who gave the samples (comparisons re-use samples, so this,
            not the number of comparisons, bounds what the curve knows about a population).
    """

    fmrs: tuple[float, ...]
    thresholds: tuple[float, ...]
    fnmrs: tuple[float, ...]
    impostors: int
    genuine: int
    people: int

    def __post_init__(self) -> None:
        if self.impostors <= RULE_OF_THREE or self.genuine < 1 or self.people < 2:
            raise ModelFormatError(
                f"calibration from {self.impostors} impostor and {self.genuine} genuine "
                f"comparisons of {self.people} people: needs more than 3, 1 and 2"
            )
        if not 2 <= len(self.fmrs) == len(self.thresholds) == len(self.fnmrs) <= MAX_POINTS:
            raise ModelFormatError(
                f"calibration curve of {len(self.fmrs)} FMRs, {len(self.thresholds)} thresholds "
                f"and {len(self.fnmrs)} FNMRs: needs 2 to {MAX_POINTS} of each"
            )
        if not all(map(math.isfinite, (*self.fmrs, *self.thresholds, *self.fnmrs))):
            raise ModelFormatError("calibration curve holds values that are not finite")
        if not (_rising(self.thresholds) and _rising([-fmr for fmr in self.fmrs])):
            raise ModelFormatError("calibration thresholds must rise and FMRs fall, strictly")
        if self.fmrs[0] != 1.0 or not math.isclose(self.fmrs[-1], self.smallest_fmr):
            raise ModelFormatError(
                f"calibration FMRs run from {self.fmrs[0]} to {self.fmrs[-1]}, "
                f"not from 1 to 3/{self.impostors}"
            )
        rates = self.fnmrs
        if rates[0] < 0 or rates[-1] > 1 or any(b < a for a, b in pairwise(rates)):
            raise ModelFormatError("calibration FNMRs must rise within 0..1")

    @property
    def smallest_fmr(self) -> float:
        """The smallest FMR that the number of impostor comparisons supports, 3/n."""
        return RULE_OF_THREE / self.impostors

    def threshold(self, fmr: float) -> float:
        """Threshold at which the observed FMR is at most ``fmr``.

        Raises CalibrationError when ``fmr`` is not in (0, 1) or below 3/impostors.
        """
        above = self._point_above(fmr)
        low = self.thresholds[above]
        if above + 1 == len(self.fmrs) or self.fmrs[above] == fmr:
            return low
        high = self.thresholds[above + 1]
        upper, lower = math.log(self.fmrs[above]), math.log(self.fmrs[above + 1])
        share = (upper - math.log(fmr)) / (upper - lower)
        # Just above `low` the impostor scoring exactly `low` is rejected; rounding must not
        # bring the threshold back down onto it.
        return min(max(low + share * (high - low), math.nextafter(low, math.inf)), high)

    def fnmr_at(self, fmr: float) -> float:
        """FNMR at ``threshold(fmr)``, read at the next measured threshold (not below it)."""
        above = self._point_above(fmr)
        exact = above + 1 == len(self.fmrs) or self.fmrs[above] == fmr
        return self.fnmrs[above if exact else above + 1]

    def fmr_of(self, score: float) -> float:
        """FMR if ``score`` were the threshold, in [3/impostors, 1]; an upper bound at the tail."""
        if math.isnan(score):
            raise InputError("the score is not a number")
        if score <= self.thresholds[0]:
            return 1.0
        if score >= self.thresholds[-1]:
            return self.fmrs[-1]
        logs = np.log(self.fmrs)
        return float(np.exp(np.interp(score, self.thresholds, logs)))

    def _point_above(self, fmr: float) -> int:
        """Index of the last point whose FMR is >= fmr."""
        if not 0.0 < fmr < 1.0:
            raise CalibrationError(f"a false match rate lies between 0 and 1, got {fmr!r}")
        if fmr < self.smallest_fmr:
            raise CalibrationError(
                f"FMR {fmr:g} cannot be stated from {self.impostors:,} impostor comparisons; "
                f"the smallest that can is {self.smallest_fmr:.3g} (rule of three)"
            )
        return bisect_right(self.fmrs, -fmr, key=neg) - 1

    def to_dict(self) -> dict[str, Any]:
        return {
            "fmrs": list(self.fmrs),
            "thresholds": list(self.thresholds),
            "fnmrs": list(self.fnmrs),
            "impostors": self.impostors,
            "genuine": self.genuine,
            "people": self.people,
        }

    @classmethod
    def from_dict(cls, data: object) -> FmrCurve:
        """The curve in ``data``; ModelFormatError for anything that is not exactly one."""
        names = ("fmrs", "thresholds", "fnmrs", "impostors", "genuine", "people")
        parts = fields(data, "calibration curve", names)
        return cls(
            fmrs=numbers(parts["fmrs"], "fmrs"),
            thresholds=numbers(parts["thresholds"], "thresholds"),
            fnmrs=numbers(parts["fnmrs"], "fnmrs"),
            impostors=count(parts["impostors"], "impostors"),
            genuine=count(parts["genuine"], "genuine"),
            people=count(parts["people"], "people"),
        )


def _rising(values: Sequence[float]) -> bool:
    return all(a < b for a, b in pairwise(values))


def fields(
    data: object, what: str, names: tuple[str, ...], optional: bool = False
) -> dict[str, object]:
    """The members of a JSON object, which has just these names (all, unless optional)."""
    if not isinstance(data, Mapping):
        raise ModelFormatError(f"{what} must be an object, got {type(data).__name__}")
    unknown = [name for name in data if name not in names]
    missing = [] if optional else [name for name in names if name not in data]
    if unknown or missing:
        raise ModelFormatError(f"{what}: unknown {unknown[:4]!r:.80}, missing {missing}")
    return dict(data)


def number(value: object, what: str) -> float:
    """A JSON number that is not a boolean and fits a float."""
    # bool is an int in Python and not a number here; huge ints do not fit a float.
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > 1e300:
        raise ModelFormatError(f"{what} must be a finite number, got {value!r:.80}")
    return float(value)


def numbers(values: object, what: str) -> tuple[float, ...]:
    """A JSON list of numbers."""
    if not isinstance(values, list | tuple) or len(values) > MAX_POINTS:
        raise ModelFormatError(f"calibration {what} must be a list of <= {MAX_POINTS} numbers")
    return tuple(number(value, f"calibration {what}") for value in values)


def count(value: object, what: str) -> int:
    """A positive JSON integer."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= MAX_COUNT:
        raise ModelFormatError(f"calibration {what} must be a positive count, got {value!r:.80}")
    return value
