"""Bars in a terminal: drawn by rich where it is installed, else with plain characters."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass

PLAIN_WIDTH = 40  # of the longest bar without rich
LONGEST_LABEL = 44


@dataclass(frozen=True)
class Bar:
    """A label, a length of 0 or more, and the text behind the bar."""

    label: str
    value: float
    text: str


def draw_bars(title: str, bars: Sequence[Bar]) -> list[str]:
    """Lines of a chart; the longest bar belongs to the greatest value.

    Colours only where standard output is a terminal that shows them.
    """
    shown = [Bar(_shortened(bar.label), bar.value, bar.text) for bar in bars]
    longest = max((bar.value for bar in shown), default=0.0) or 1.0
    try:
        from rich.bar import Bar as RichBar
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        return _plain(title, shown, longest)
    stream = io.StringIO()
    console = Console(
        file=stream,
        force_terminal=sys.stdout is not None and sys.stdout.isatty(),
        width=shutil.get_terminal_size((100, 24)).columns,
        highlight=False,
    )
    if not console.encoding.lower().startswith("utf"):
        return _plain(title, shown, longest)
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(ratio=1)
    table.expand = True
    for bar in shown:
        drawn = RichBar(longest, 0, bar.value, color="cyan")
        table.add_row(_literal(bar.label), _literal(bar.text), drawn)
    console.print(_literal(title), style="bold")
    console.print(table)
    return [line.rstrip() for line in stream.getvalue().splitlines()]


def _literal(text: str) -> str:
    """Names of layers may hold brackets, which rich takes for markup."""
    from rich.markup import escape

    return escape(text)


def _plain(title: str, bars: Sequence[Bar], longest: float) -> list[str]:
    label = max((len(bar.label) for bar in bars), default=0)
    text = max((len(bar.text) for bar in bars), default=0)
    lines = [title]
    for bar in bars:
        drawn = "#" * round(PLAIN_WIDTH * bar.value / longest)
        lines.append(f"{bar.label:{label}} {bar.text:>{text}} {drawn}".rstrip())
    return lines


def _shortened(label: str) -> str:
    return label if len(label) <= LONGEST_LABEL else f"...{label[3 - LONGEST_LABEL :]}"
