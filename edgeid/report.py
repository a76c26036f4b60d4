"""Results of an evaluation: figures with counts and intervals, as JSON and as text."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.intervals import Rate
from edgeid.metrics import OperatingPoint
from edgeid.roc import Roc
from edgeid.runtime.curve import RULE_OF_THREE

DET_POINTS = 800
LABEL_WIDTH = 30


@dataclass(frozen=True)
class Decision:
    """Error rates at the threshold the model stores for an FMR; None where it has none."""

    fmr: float
    threshold: float | None
    observed_fmr: Rate | None
    observed_fnmr: Rate | None

    def to_dict(self) -> dict[str, Any]:
        return {
            "fmr": self.fmr,
            "threshold": self.threshold,
            "observed_fmr": _dict(self.observed_fmr),
            "observed_fnmr": _dict(self.observed_fnmr),
        }


@dataclass(frozen=True)
class Det:
    """Detection error trade-off: FMR (rising) and FNMR (falling) at vertices of the ROC."""

    fmr: tuple[float, ...]
    fnmr: tuple[float, ...]

    @classmethod
    def of(cls, roc: Roc) -> Det:
        """At most 800 vertices, evenly spread along the curve on normal-deviate axes."""
        x, y = roc.fmr, roc.fnmr
        before = (np.diff(x[:-1]) == 0) & (np.diff(x[1:]) == 0)
        across = (np.diff(y[:-1]) == 0) & (np.diff(y[1:]) == 0)
        # Points inside a straight run of the staircase say nothing.
        keep = np.flatnonzero(np.concatenate([[True], ~(before | across), [True]]))
        if len(keep) > DET_POINTS:
            steps = np.abs(np.diff(probit(x[keep]))) + np.abs(np.diff(probit(y[keep])))
            path = np.append(0.0, np.cumsum(steps))
            wanted = np.linspace(0.0, path[-1], DET_POINTS)
            keep = keep[np.unique(np.append(np.searchsorted(path, wanted[:-1]), len(keep) - 1))]
        return cls(tuple(map(float, x[keep])), tuple(map(float, y[keep])))


def probit(rates: NDArray[np.float64], floor: float = 1e-6) -> NDArray[np.float64]:
    """Normal deviates of rates (n,), which are first clipped to [floor, 1 - floor]."""
    inverse = NormalDist().inv_cdf
    return np.array([inverse(rate) for rate in np.clip(rates, floor, 1 - floor).tolist()])


@dataclass(frozen=True)
class ScoreReport:
    """Figures of one set of trials.

    Attributes:
        name: "face", "voice", "fused", a set, or a fold.
        genuine, impostors: numbers of trials; people: of different people in them.
        accuracy: LFW style, threshold from other people; hter: likewise; None where that
            is no part of the protocol or the people are too few to be halved.
        points: FNMR at FMRs, thresholds from these trials.
        decisions: both rates at thresholds stored in the model.
    """

    name: str
    genuine: int
    impostors: int
    people: int
    eer: Rate
    min_dcf: Rate
    points: tuple[OperatingPoint, ...]
    det: Det
    accuracy: Rate | None = None
    hter: Rate | None = None
    decisions: tuple[Decision, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "genuine": self.genuine,
            "impostors": self.impostors,
            "people": self.people,
            "accuracy": _dict(self.accuracy),
            "eer": self.eer.to_dict(),
            "hter": _dict(self.hter),
            "min_dcf": self.min_dcf.to_dict(),
            "points": [point.to_dict() for point in self.points],
            "decisions": [decision.to_dict() for decision in self.decisions],
            "det": {"fmr": list(self.det.fmr), "fnmr": list(self.det.fnmr)},
        }

    def lines(self) -> list[str]:
        """The figures as an aligned table, rates in per cent with 95 % intervals."""
        lines = [
            f"{self.name}: {self.genuine:,} genuine and {self.impostors:,} impostor comparisons "
            f"of {self.people:,} people"
        ]
        if self.accuracy is not None:
            lines.append(_line("accuracy", _percent(self.accuracy)))
        lines.append(_line("EER", _percent(self.eer, counts=False)))
        if self.hter is not None:
            lines.append(_line("HTER", _percent(self.hter)))
        cost = self.min_dcf
        lines.append(
            _line("minDCF (p = 0.01)", f"{cost.value:8.4f}    [{cost.low:.4f}, {cost.high:.4f}]")
        )
        lines += [_point_line(point) for point in self.points]
        for decision in self.decisions:
            lines += _decision_lines(decision)
        return lines


@dataclass(frozen=True)
class Report:
    """An evaluation: one part for each set of trials.

    Attributes:
        kind: "faces", "voices" or "people".
        samples: number of images and recordings read.
        failed: how many of them gave no embedding (no face, nothing heard); comparisons with
            them score -1, so genuine ones are errors.
        left_out: comparisons of the protocol not made because a file is not there.
        notes: what limits the figures.
    """

    kind: str
    parts: tuple[ScoreReport, ...]
    samples: int
    failed: int
    left_out: int
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "samples": self.samples,
            "failed": self.failed,
            "left_out": self.left_out,
            "notes": list(self.notes),
            "parts": [part.to_dict() for part in self.parts],
        }

    def lines(self) -> list[str]:
        """All parts as text."""
        lines = [
            f"{self.kind}: {self.samples:,} samples, {self.failed:,} without an embedding, "
            f"{self.left_out:,} comparisons left out"
        ]
        for part in self.parts:
            lines += ["", *part.lines()]
        return [*lines, "", *(f"Note: {note}" for note in self.notes)] if self.notes else lines


def _dict(rate: Rate | None) -> dict[str, float | int] | None:
    return None if rate is None else rate.to_dict()


def _line(label: str, text: str) -> str:
    return f"  {label:<{LABEL_WIDTH}}{text}"


def _percent(rate: Rate, counts: bool = True) -> str:
    interval = f"[{100 * rate.low:.3f}, {100 * rate.high:.3f}]"
    text = f"{100 * rate.value:8.3f} %  {interval:<18}"
    return f"{text}  {rate.errors:,} / {rate.trials:,}" if counts else text.rstrip()


def _point_line(point: OperatingPoint) -> str:
    label = f"FNMR at FMR {point.fmr:g}"
    if point.fnmr is not None:
        return _line(label, _percent(point.fnmr))
    needed = round(RULE_OF_THREE / point.fmr)
    return _line(label, f"not supported ({point.impostors:,} impostors, needs {needed:,})")


def _decision_lines(decision: Decision) -> list[str]:
    label = f"stored threshold, FMR {decision.fmr:g}"
    if decision.threshold is None or not decision.observed_fmr or not decision.observed_fnmr:
        return [_line(label, "no threshold stored")]
    return [
        _line(label, f"{decision.threshold:8.4f}"),
        _line("  observed FMR", _percent(decision.observed_fmr)),
        _line("  observed FNMR", _percent(decision.observed_fnmr)),
    ]
