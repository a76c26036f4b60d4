"""matplotlib figures as SVG inside an HTML page, in the page's own colours and font."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from html import escape
from typing import TYPE_CHECKING, Any

from edgeid.runtime.errors import MissingExtraError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# matplotlib knows no CSS variables: these colours, which nothing else has, become them
INK, MUTED, GRID, PAPER = "#010203", "#010204", "#010205", "#010206"
SERIES = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", PAPER: "card"} | {
    colour: f"s{number}" for number, colour in enumerate(SERIES, 1)
}
_SETTINGS: dict[str, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a name may hold dollar signs
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "legend.frameon": False,
}

WIDTH = 4.4  # inches; on a phone one plot is as wide as the page


def draw_svg(draw: Callable[[Axes], None], label: str, key: str, height: float = 3.1) -> str:
    """What ``draw`` draws, as an ``<svg>`` element.

    Args:
        draw: takes the axes; colours are those above.
        label: says what is seen, for those who cannot see it.
        key: makes the ids inside unlike those of the page's other plots; letters and digits.
        height: in inches, the width is 4.4.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib import rc_context
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "reports need matplotlib: pip install 'edgeid[convert]' (or pip install matplotlib)"
        ) from error
    stream = io.StringIO()
    settings: Any = _SETTINGS | {"svg.hashsalt": key}
    with rc_context(settings), warnings.catch_warnings():
        # the browser has glyphs that the font the text is measured with lacks
        warnings.filterwarnings("ignore", "Glyph", UserWarning)
        # a figure of its own, with no pyplot: no display is needed
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure.add_subplot())
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(stream, format="svg", transparent=True, metadata=nothing)
    return _inlined(stream.getvalue(), label, key)


def _inlined(svg: str, label: str, key: str) -> str:
    """Only the drawing: no document type, metadata or style for the page around it."""
    start = svg.index("<svg")
    head, body = svg[start:].split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    assert box is not None
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.S)
    body = re.sub(r'(\bid="|xlink:href="#|url\(#)', lambda m: _own(m.group(1), key), body)
    for colour, name in _VARIABLES.items():
        body = body.replace(colour, f"var(--{name})")
    body = re.sub(r"\s*\n\s*", "\n", body)
    title = escape(label, quote=True)
    return f'<svg class="plot" role="img" aria-label="{title}" {box.group()}>{body.strip()}'


def _own(opening: str, key: str) -> str:
    return f"{opening.removeprefix('xlink:')}{key}-"


def plain(name: str, most: int = 26) -> str:
    """A name for a plot: one line, not long."""
    line = "".join(c if c.isprintable() else "\ufffd" for c in name)
    return line if len(line) <= most else line[: most - 1] + "\u2026"
