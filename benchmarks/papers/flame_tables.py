"""What paper 003 and our runs of it found, as Markdown tables and as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.papers.figures import per_cent, table
from edgeid.runtime.errors import MissingExtraError

Figures = dict[str, dict[str, Any]]

MEGA = 1e6
TOLERANCE = 0.01  # of the accuracy on the tuning images
PAPER_MB = 42.94
PAPER_SIZES = {  # stage 1: MB, drop in points
    "vgg11": (42.0, 0.0),
    "fire": (6.1, -1.8),
    "depthwise": (10.4, -2.33),
    "flame": (3.7, 0.91),
    "flame+shrink": (3.2, -0.69),
    "flame+shallow": (3.2, 2.53),
    "flame+shrink+shallow": (2.7, 14.04),
}
PAPER_BITS = {  # stage 2 and the comparison of methods: MB, drop in points
    "vgg11/floor/all/6": (8.05, 2.44),
    "vgg11/floor/convolutions/6": (9.15, 1.04),
    "vgg11/binarise/2": (3.97, 0.99),
    "depthwise/floor/all/9": (2.89, 0.12),
    "fire/floor/all/8": (1.54, 3.66),
    "flame/floor/all/10": (1.13, 1.22),
}
METHODS = {
    "floor/all": "log min-max, whole network",
    "floor/convolutions": "log min-max, convolutions only",
    "midpoint/all": "mid-points, whole network",
    "midpoint/convolutions": "mid-points, convolutions only",
    "palette": "palette (k-means), whole network",
    "binarise": "binarisation training",
}


def tables(figures: Figures) -> str:
    """Structures, the paper's rows of few bits, and every number of bits."""
    parts = ["### Structures, float32", _structures(figures)]
    parts += ["### Few bits: the paper's rows", _paper_rows(figures)]
    parts += ["### Fewest bits, chosen on the tuning images", _chosen(figures)]
    for network in PAPER_SIZES:
        grid = _grid(figures, network)
        if grid:
            parts += [f"### {network}: every b", grid]
    return "\n\n".join(parts)


def _structures(figures: Figures) -> str:
    head = ["network", "MB", "smaller", "multiply-adds", "accuracy, %", "drop", "paper: MB", "drop"]
    rows = []
    for name, (size, drop) in PAPER_SIZES.items():
        if name in figures:
            own = figures[name]
            adds = f"{own['multiply_adds'] / 1e6:.1f} M"
            rows.append(
                [
                    name,
                    *_size(own, figures),
                    adds,
                    per_cent(own["accuracy"]),
                    _drop(own),
                    size,
                    drop,
                ]
            )
    return table(head, rows)


def _paper_rows(figures: Figures) -> str:
    head = ["network/method/b", "MB", "smaller", "MB for 2,360 people", "accuracy, %", "drop"]
    head += ["paper: MB", "smaller", "drop"]
    rows = []
    for name, (size, drop) in PAPER_BITS.items():
        if name in figures:
            own = figures[name]
            smaller = f"{100 * (1 - size / PAPER_MB):.2f} %"
            more = f"{own['bytes_2360'] / MEGA:.2f}"
            found = [*_size(own, figures), more, per_cent(own["accuracy"]), _drop(own)]
            rows.append([name, *found, size, smaller, drop])
    return table(head, rows)


def _chosen(figures: Figures) -> str:
    """For each network the smallest file that loses at most a point on the tuning images."""
    head = ["network/method/b", "MB", "smaller", "MB for 2,360 people", "accuracy, %", "drop"]
    least = figures["vgg11"]["tuning_accuracy"]["value"] - TOLERANCE
    rows = []
    for network in PAPER_SIZES:
        found = [
            (own["bytes"], name)
            for name, own in figures.items()
            if own["network"] == network and own["tuning_accuracy"]["value"] >= least
        ]
        if found:
            name = min(found)[1]
            own = figures[name]
            more = f"{own['bytes_2360'] / MEGA:.2f}"
            rows.append([name, *_size(own, figures), more, per_cent(own["accuracy"]), _drop(own)])
    return table(head, rows)


def _grid(figures: Figures, network: str) -> str:
    found = {
        (own["method"], own["bits"]): own
        for own in figures.values()
        if own["network"] == network and own["method"] in METHODS
    }
    methods = [m for m in METHODS if any(method == m for method, _ in found)]
    if not methods:
        return ""
    rows = []
    for bits in sorted({b for _, b in found}):
        cells = [found.get((method, bits)) for method in methods]
        rows.append([bits, *(_cell(own) for own in cells)])
    return table(["b", *(f"{METHODS[m]}: MB, drop" for m in methods)], rows)


def _cell(own: dict[str, Any] | None) -> str:
    return "" if own is None else f"{own['bytes'] / MEGA:.3f}, {own['drop']:+.2f}"


def _size(own: dict[str, Any], figures: Figures) -> tuple[str, str]:
    smaller = 100 * (1 - own["bytes"] / figures["vgg11"]["bytes"])
    return f"{own['bytes'] / MEGA:.3f}", f"{smaller:.2f} %"


def _drop(own: dict[str, Any]) -> str:
    if "drop" not in own:
        return ""
    return f"{own['drop']:+.2f} ({own['drop_low']:+.2f} to {own['drop_high']:+.2f})"


def plot(figures: Figures, path: Path) -> None:
    """Change of accuracy over file size, a line for each network, the paper's points hollow.

    Raises:
        MissingExtraError: without matplotlib.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib: pip install edgeid[convert]") from error
    figure = Figure(figsize=(8.4, 5.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for number, name in enumerate(PAPER_SIZES):
        _draw(axes, figures, name, f"C{number}")
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.axhline(-2, color="0.4", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    ticks = (0.25, 0.5, 1, 2, 4, 8, 16, 32)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(-16, 5)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("file, MB (stars: float32; dots: log min-max of the whole network, b bits)")
    axes.set_ylabel("accuracy against VGG11-bn float32, points")
    base = 100 * figures["vgg11"]["accuracy"]["value"]
    axes.set_title(
        f"Identification of 253 people: VGG11-bn float32 {base:.1f} %; "
        "hollow: paper 003 (2,360 people, 77.3 %)",
        fontsize=10,
    )
    axes.legend(loc="lower right", framealpha=0.95, fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def _draw(axes: Any, figures: Figures, name: str, colour: str) -> None:
    own = [x for x in figures.values() if x["network"] == name]
    if not own:
        return
    line = sorted((x for x in own if x["method"] == "floor/all"), key=lambda x: int(x["bits"]))
    points = [(x["bytes"] / MEGA, -x["drop"], x["bits"]) for x in line]
    shown = [(size, gain, bits) for size, gain, bits in points if gain > -16]
    axes.plot([p[0] for p in shown], [p[1] for p in shown], "-o", color=colour, ms=3, lw=1)
    if name in ("vgg11", "flame"):
        for size, gain, bits in shown:
            axes.annotate(f"{bits}", (size, gain), (0, 4), textcoords="offset points", fontsize=7)
    plain = next(x for x in own if x["method"] == "float32")
    axes.plot(plain["bytes"] / MEGA, -plain.get("drop", 0.0), "*", color=colour, ms=11, label=name)
    for x in own:
        if x["method"] == "binarise" and x["drop"] < 16:
            axes.plot(x["bytes"] / MEGA, -x["drop"], "s", color=colour, ms=5)
            text = f"binarised, {x['bits']} bit{'s' * (x['bits'] > 1)}"
            place = (x["bytes"] / MEGA, -x["drop"])
            axes.annotate(text, place, (4, -9), textcoords="offset points", fontsize=7)
    size, drop = PAPER_SIZES[name]
    axes.plot(size, -drop, "*", color=colour, mfc="none", ms=11)
    for key, (size, drop) in PAPER_BITS.items():
        if key.startswith(f"{name}/"):
            axes.plot(size, -drop, "o", color=colour, mfc="none", ms=6)
