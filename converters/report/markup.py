"""HTML in small pieces: text is escaped, only ``Markup`` goes in as it is."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

JOINED = "\u00a0"  # the space between a number and its unit


class Markup(str):
    """HTML that is ready; a plain ``str`` is text and is escaped where it is put in."""

    __slots__ = ()


def markup(value: object) -> Markup:
    """``value`` as HTML: escaped, letters that cannot be printed replaced."""
    if isinstance(value, Markup):
        return value
    line = "".join(c if c.isprintable() or c == JOINED else "\ufffd" for c in str(value))
    return Markup(escape(line, quote=True))


def joined(parts: Sequence[object]) -> Markup:
    """The parts one after the other, each on a line."""
    return Markup("\n".join(markup(part) for part in parts))


def element(tag: str, *content: object, kind: str = "") -> Markup:
    """``<tag class="kind">content</tag>``; tag and kind are the page's own."""
    opening = f'<{tag} class="{kind}">' if kind else f"<{tag}>"
    return Markup(opening + "".join(markup(part) for part in content) + f"</{tag}>")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Markup:
    """A table that can be pushed sideways where it is wider than the page.

    Cells of numbers, that is, those that begin with a digit or a sign, stand to the right.
    """
    top = element("tr", *(_head(name, number, rows) for number, name in enumerate(head)))
    body = [element("tr", *(_cell(cell, n) for n, cell in enumerate(row))) for row in rows]
    inner = element("thead", top) + element("tbody", *body)
    return element("div", element("table", Markup(inner)), kind="wide")


def _head(name: str, number: int, rows: Sequence[Sequence[object]]) -> Markup:
    right = number and any(_numeric(row[number]) for row in rows)
    return element("th", name, kind="n" if right else "")


def _cell(cell: object, number: int) -> Markup:
    if number == 0:
        return Markup(f'<th scope="row">{markup(cell)}</th>')
    return element("td", cell, kind="n" if _numeric(cell) else "")


def _numeric(cell: object) -> bool:
    return not isinstance(cell, Markup) and str(cell)[:1] in set("0123456789+-\u2212\u2013")


def bar(share: float, series: int = 1) -> Markup:
    """A bar of a share 0..1 of its column."""
    share = min(1.0, max(0.0, share)) if math.isfinite(share) else 0.0
    inner = f'<i class="b{series}" style="width:{100 * share:.1f}%"></i>'
    return Markup(f'<span class="bar">{inner}</span>')


def stacked(shares: Sequence[float]) -> Markup:
    """One bar of several parts, together 0..1."""
    inner = "".join(
        f'<i class="b{series(number)}" style="width:{100 * max(0.0, share):.2f}%"></i>'
        for number, share in enumerate(shares, 1)
    )
    return Markup(f'<span class="bar">{inner}</span>')


def series(number: int) -> int:
    """The colour, 1..6, of the ``number``-th of several things, from 1."""
    return (number - 1) % 6 + 1


def profile(values: Sequence[float]) -> Markup:
    """A small area plot, 120 x 28; the line is at 1."""
    top = max(1.5, *values)
    width = 120 / len(values)
    steps = []
    for number, value in enumerate(values):
        y = 28 - 26 * value / top
        steps.append(f"{number * width:.1f},{y:.1f} {(number + 1) * width:.1f},{y:.1f}")
    even = 28 - 26 / top
    return Markup(
        '<svg class="profile" viewBox="0 0 120 28" width="120" height="28" role="img" '
        f'aria-label="use of the codewords, the most frequent {values[0]:.1f} times even use">'
        f'<polygon points="0,28 {" ".join(steps)} 120,28"/>'
        f'<path d="M0 {even:.1f}H120"/></svg>'
    )


def in_bytes(count: float) -> str:
    """1234567 -> "1.23 MB" (10^6 bytes)."""
    return _scaled(count, ("GB", "MB", "kB", "B"))


def in_millions(count: float) -> str:
    """312000000 -> "312 M"."""
    return _scaled(count, ("G", "M", "k", "")).rstrip(JOINED)


def _scaled(count: float, units: Sequence[str]) -> str:
    for unit, size in zip(units, (1e9, 1e6, 1e3), strict=False):
        if count >= 0.9995 * size:  # which three digits round to 1.00
            return f"{count / size:.3g}{JOINED}{unit}"
    return f"{count:.0f}{JOINED}{units[-1]}"


def in_times(before: float, after: float) -> str:
    """How many times smaller: "12.3x"."""
    if after <= 0 or before <= 0:
        return "\u2013"
    times = before / after
    return f"{times:.1f}x" if times >= 9.95 else f"{times:.2f}x"


def in_percent(value: float) -> str:
    """0.0312 -> "3.12 %"."""
    return f"{100 * value:.2f}{JOINED}%" if math.isfinite(value) else "\u2013"


def rounded(value: float | None, form: str = ".4f") -> str:
    """A number, or a dash where there is none."""
    return "\u2013" if value is None or not math.isfinite(value) else format(value, form)
