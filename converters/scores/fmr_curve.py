"""From measured scores to the false match rate curve that a model file keeps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgeid.runtime.curve import RULE_OF_THREE, FmrCurve
from edgeid.runtime.errors import CalibrationError

Array = NDArray[np.float64]


def build_curve(genuine: ArrayLike, impostor: ArrayLike, people: int) -> FmrCurve:
    """The FMR curve of measured scores; ``people`` is the number of people behind them.

    In each tenth of a decade of FMR the curve is two lines, tangent at its ends to the upper
    hull of the observed log FMR over the threshold. So no threshold read from it has a
    higher observed FMR than stated, and where the observed FMR enters a new tenth the curve
    meets it. The last point is the smallest threshold with at most three false matches, 3/n.

    Raises CalibrationError for fewer than 4 impostor or no genuine scores, or such that are
    not finite.
    """
    high, low = (np.sort(np.asarray(s, np.float64).ravel()) for s in (genuine, impostor))
    if len(low) <= RULE_OF_THREE or not len(high):
        raise CalibrationError(
            f"a curve needs genuine and at least 4 impostor scores, got {len(high)}, {len(low)}"
        )
    if not (np.isfinite(high).all() and np.isfinite(low).all()):
        raise CalibrationError("calibration scores are not finite")
    scores, first = np.unique(low, return_index=True)
    accepted = len(low) - first
    body = int(np.count_nonzero(accepted > RULE_OF_THREE))
    end = scores[body] if body < len(scores) else np.nextafter(scores[-1], np.inf)
    thresholds = np.append(scores[:body], end)
    fmrs = np.append(accepted[:body] / len(low), RULE_OF_THREE / len(low))
    points = _majorant(thresholds, np.log(fmrs))
    thresholds, fmrs = points[:, 0], np.exp(points[:, 1])
    fmrs[0], fmrs[-1] = 1.0, RULE_OF_THREE / len(low)
    fnmrs = np.searchsorted(high, thresholds, side="left") / len(high)
    return FmrCurve(
        fmrs=tuple(map(float, fmrs)),
        thresholds=tuple(map(float, thresholds)),
        fnmrs=tuple(map(float, fnmrs)),
        impostors=len(low),
        genuine=len(high),
        people=people,
    )


def _majorant(x: Array, y: Array) -> Array:
    """Points (m, 2) of lines nowhere below the falling points (x, y), y natural logarithms."""
    tenths = np.floor(-10 * y / np.log(10))
    breaks = {0, *map(int, np.flatnonzero(np.diff(tenths)) + 1), len(x) - 1}
    points = [(float(x[0]), float(y[0]))]
    for start, stop in pairwise(sorted(breaks)):
        hull = [start]
        for i in range(start + 1, stop + 1):
            while len(hull) > 1 and not _above(x, y, hull[-2], hull[-1], i):
                hull.pop()
            hull.append(i)
        if len(hull) == 3:
            points.append((float(x[hull[1]]), float(y[hull[1]])))
        elif len(hull) > 3:
            points.append(_crossing(x[hull], y[hull]))
        points.append((float(x[stop]), float(y[stop])))
    return np.array(points)


def _crossing(x: Array, y: Array) -> tuple[float, float]:
    """Where the first edge of a hull, prolonged, meets the last one."""
    first = (y[1] - y[0]) / (x[1] - x[0])
    last = (y[-1] - y[-2]) / (x[-1] - x[-2])
    if first <= last:  # parallel but for rounding
        return float(x[1]), float(y[1])
    at = (y[-1] - y[0] + first * x[0] - last * x[-1]) / (first - last)
    at = float(np.clip(at, x[1], x[-2]))
    return at, float(y[0] + first * (at - x[0]))


def _above(x: Array, y: Array, a: int, b: int, c: int) -> bool:
    """Whether point b lies above the line from a to c."""
    return bool((y[b] - y[a]) * (x[c] - x[a]) > (y[c] - y[a]) * (x[b] - x[a]))
