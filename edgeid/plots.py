"""Plots of an evaluation, for reports; needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeid.report import Report, ScoreReport, probit
from edgeid.runtime.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SUFFIXES = (".png", ".svg", ".pdf")
TICKS = (1e-5, 1e-4, 1e-3, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.6)
# Colour-blind safe (Okabe & Ito 2008); curves also differ in line style.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")
AXIS_END = 0.7


def plot_det(report: Report, path: str | Path) -> Path:
    """Write the detection error trade-off of all parts of a report as PNG, SVG or PDF.

    FNMR over FMR on normal-deviate axes (Martin et al. 1997), where normally distributed
    scores give straight lines. A dot marks the equal error rate. A curve ends at the
    smallest rates its trials can show.

    Raises DataError for another kind of file or one that cannot be written, and
    MissingExtraError without matplotlib.
    """
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        raise DataError(f"a plot is written as {', '.join(SUFFIXES)}, not as {target.name!r}")
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "plots need matplotlib: pip install 'edgeid[convert]' (or pip install matplotlib)"
        ) from error
    # A figure of its own, with no pyplot: no display is needed and no global state changed.
    figure = Figure(figsize=(6.8, 5.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, part in enumerate(report.parts):
        _draw(axes, part, number)
    _frame(axes, report)
    try:
        # Fixed ids and text as text: equal reports give equal, searchable SVG.
        with rc_context({"svg.hashsalt": "edgeid", "svg.fonttype": "none"}):
            figure.savefig(target, bbox_inches="tight", metadata=_plain_metadata(target))
    except OSError as error:
        raise DataError(f"{target} cannot be written: {error.strerror or error}") from error
    return target


def _axis_start(trials: list[int]) -> float:
    """Lower end of an axis: just below the smallest rate that these numbers can show."""
    return min(0.005, max(1e-5, 0.7 / max(trials)))


def _draw(axes: Axes, part: ScoreReport, number: int) -> None:
    colour = COLOURS[number % len(COLOURS)]
    x, y = np.array(part.det.fmr), np.array(part.det.fnmr)
    # A rate of 0 lies infinitely far down: the curve ends at the last one above it.
    shown = (x > 0) & (y > 0)
    label = f"{part.name}: EER {100 * part.eer.value:.2f} %"
    axes.plot(
        probit(x[shown]),
        probit(y[shown]),
        color=colour,
        linestyle=STYLES[number % len(STYLES)],
        linewidth=1.8,
        label=label if shown.any() else f"{label} (no errors to draw)",
    )
    if part.eer.value > 0:
        middle = probit(np.array([part.eer.value]))
        axes.plot(
            middle, middle, "o", color=colour, markersize=7, markeredgecolor="white", zorder=5
        )


def _frame(axes: Axes, report: Report) -> None:
    starts = (
        _axis_start([part.impostors for part in report.parts]),
        _axis_start([part.genuine for part in report.parts]),
    )
    for start, axis in zip(starts, (axes.xaxis, axes.yaxis), strict=True):
        ticks = [tick for tick in TICKS if start <= tick <= AXIS_END]
        axis.set_ticks(probit(np.array(ticks)).tolist(), [f"{100 * tick:g}" for tick in ticks])
    ends = [probit(np.array([start, AXIS_END])).tolist() for start in starts]
    axes.set(xlim=ends[0], ylim=ends[1])
    diagonal = probit(np.array([max(starts), AXIS_END]))
    axes.plot(diagonal, diagonal, color="0.7", linewidth=0.8, zorder=1)
    axes.set_aspect("equal")
    axes.grid(color="0.88", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("false match rate, %")
    axes.set_ylabel("false non-match rate, %")
    axes.set_title(f"Detection error trade-off: {report.kind}", fontsize=12)
    axes.legend(loc="upper right", framealpha=0.95)


def _plain_metadata(target: Path) -> dict[str, Any]:
    """No date in the file: equal reports give equal bytes."""
    if target.suffix.lower() == ".png":
        return {"Software": None}
    return {"Date": None} if target.suffix.lower() == ".svg" else {"CreationDate": None}
