"""Accuracy against size or latency: which steps no other step beats, and the plot of it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeid.converters.report.inline_svg import INK, MUTED, PAPER, SERIES, draw_svg, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Box = tuple[float, float, float, float]  # left, bottom, right, top in pixels

MANY = 8  # points; of more only the best, the first and the last are named
LOG_FROM = 4.0  # largest over smallest x from which the axis is logarithmic
PLACES = (
    (8, 8),
    (8, -8),
    (-8, 8),
    (-8, -8),
    (0, 14),
    (0, -14),
    (8, 20),
    (8, -20),
    (-8, 20),
    (-8, -20),
)


@dataclass(frozen=True)
class Point:
    """A step in a trade-off: x, y and the interval of y."""

    name: str
    x: float
    y: float
    low: float
    high: float


def pareto_front(points: Sequence[tuple[float, float]]) -> tuple[int, ...]:
    """Indices of the points that are best, by the first figure, where less of both is better.

    A point is beaten by one that is at least as good in both and better in one; equal points
    do not beat each other.
    """
    found = [
        number
        for number, (x, y) in enumerate(points)
        if not any(u <= x and v <= y and (u, v) != (x, y) for u, v in points)
    ]
    return tuple(sorted(found, key=lambda number: points[number]))


def plot_trade_off(points: Sequence[Point], x: str, y: str, *, lower: bool, key: str) -> str:
    """Points in order of the steps, the best of them joined.

    Args:
        points: one or more.
        x, y: names of the axes; less x is better.
        lower: whether less y is better.
        key: see ``draw_svg``.
    """

    def draw(axes: Axes) -> None:
        _scale(axes, [p.x for p in points])
        axes.plot([p.x for p in points], [p.y for p in points], ":", color=MUTED, linewidth=1)
        best = pareto_front([(p.x, p.y if lower else -p.y) for p in points])
        across, up = [points[i].x for i in best], [points[i].y for i in best]
        axes.step(across, up, color=SERIES[0], linewidth=1.2, where="post", alpha=0.6)
        for number, p in enumerate(points):
            colour = SERIES[0] if number in best else SERIES[1]
            shown = 0.35 if len(points) > MANY and number not in best else 1.0
            axes.plot([p.x, p.x], [p.low, p.high], color=colour, linewidth=1.4, alpha=shown)
            axes.plot(
                *([p.x], [p.y], "o"),
                color=colour if number in best else PAPER,
                markeredgecolor=colour,
                markersize=7,
                zorder=4,
            )
        _room(axes, points)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        _label(axes, points, {0, len(points) - 1, *best} if len(points) > MANY else None)
        corner = "better \u2199" if lower else "better \u2196"
        place = (0.01, 0.02, "bottom") if lower else (0.01, 0.98, "top")
        axes.text(
            place[0],
            place[1],
            corner,
            transform=axes.transAxes,
            color=MUTED,
            fontsize=8,
            va=place[2],
        )

    names = "; ".join(f"{plain(p.name)} {p.x:.4g}, {p.y:.4g}" for p in points)
    return draw_svg(draw, f"{y} against {x}: {names}", key)


def _scale(axes: Axes, values: Sequence[float]) -> None:
    """A logarithmic x where the values are far apart, with plain numbers at its ticks."""
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    if min(values) > 0 and max(values) / min(values) >= LOG_FROM:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.minorticks_off()
    else:
        axes.xaxis.set_major_locator(MaxNLocator(6))


def _room(axes: Axes, points: Sequence[Point]) -> None:
    """Space around the points; x spans a quarter of its value or more.

    Latencies that differ by the noise of the clock should not look far apart.
    """
    axes.margins(0.16, 0.14)
    low, high = min(p.x for p in points), max(p.x for p in points)
    if axes.get_xscale() == "linear" and high - low < 0.25 * high:
        middle, half = (low + high) / 2, 0.16 * high or 1.0
        axes.set_xlim(middle - half, middle + half)


def _label(axes: Axes, points: Sequence[Point], named: Collection[int] | None) -> None:
    """Names beside the points, each at the first place where nothing is drawn yet.

    ``named`` are the points that have one; None: all of them.
    """
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    unit = figure.dpi / 72  # pixels of a point
    frame = axes.get_window_extent()
    bars: list[Box] = []
    taken: list[Box] = []
    for p in points:
        x, y = axes.transData.transform((p.x, p.y))
        low, high = (axes.transData.transform((p.x, end))[1] for end in (p.low, p.high))
        taken.append((x - 5 * unit, y - 5 * unit, x + 5 * unit, y + 5 * unit))
        bars.append((x - unit, low, x + unit, high))
    for number, p in enumerate(points):
        if named is not None and number not in named:
            continue
        name = plain(p.name, 22)
        # a letter is about as wide as half the font's size
        size = (5.2 * unit * len(name), 10 * unit)
        dot = tuple(axes.transData.transform((p.x, p.y)))
        places = [(place, _box(dot, place, size, unit)) for place in PLACES]
        places = [(_, box) for _, box in places if frame.x0 <= box[0] and box[2] <= frame.x1]
        free = [
            (place, box)
            for others in ([*taken, *bars], taken)  # over a line rather than not at all
            for place, box in places
            if not any(_overlap(box, other) for other in others)
        ]
        if not free:
            continue  # the table has it
        (dx, dy), box = free[0]
        taken.append(box)
        text = axes.annotate(name, (p.x, p.y), (dx, dy), textcoords="offset points")
        text.set(ha=("right", "center", "left")[1 + (dx > 0) - (dx < 0)], va="center")
        text.set(fontsize=8.5, color=INK, zorder=5)
        text.set_bbox({"facecolor": PAPER, "alpha": 0.75, "edgecolor": "none", "pad": 0.5})


def _box(
    dot: tuple[float, ...], place: tuple[int, int], size: tuple[float, float], unit: float
) -> Box:
    """Where a text of ``size`` is that stands at ``place`` beside a dot."""
    left = dot[0] + place[0] * unit - size[0] * (0.5 if place[0] == 0 else place[0] < 0)
    middle = dot[1] + place[1] * unit
    return left, middle - size[1] / 2, left + size[0], middle + size[1] / 2


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
