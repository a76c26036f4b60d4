"""The two files of a report: one HTML page that needs nothing from outside, and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeid.converters.report.layer_sections import (
    codebooks_section,
    layers_section,
    similarity_section,
)
from edgeid.converters.report.markup import Markup, element, joined, markup
from edgeid.converters.report.sections import (
    passes_section,
    steps_section,
    text_lines,
    tiles,
    trade_off_section,
)
from edgeid.converters.report.steps import Measured
from edgeid.converters.report.style import STYLE
from edgeid.runtime.errors import DataError
from edgeid.runtime.replacement import replace_file

FORMAT = 1  # of the JSON

# the page may not fetch or run anything, whatever a name in it holds
POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(
    folder: Path, measured: Measured, *, title: str, lines: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Write ``report.html`` for people and ``report.json`` for programs.

    Args:
        folder: made where it is not there.
        measured: of one step or more.
        title, lines: text for the head of the page.

    Returns:
        The paths of both.

    Raises:
        DataError: the folder cannot be made.
        ModelError: a file cannot be written; the one that was there is whole.
        MissingExtraError: matplotlib is not installed.
    """
    page = render_page(measured, title, lines).encode("utf-8", "replace")
    figures = {"format": FORMAT, "title": title, "lines": list(lines), **measured.to_dict()}
    data = (json.dumps(plain_json(figures), indent=1, allow_nan=False) + "\n").encode("ascii")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"cannot make the folder {folder}: {error.strerror or error}") from error
    # the larger one first: on a full disk it fails before anything has changed
    paths = folder / "report.html", folder / "report.json"
    for path, content in zip(paths, (page, data), strict=True):
        replace_file(path, content)
    return paths


def render_page(measured: Measured, title: str, lines: Sequence[str]) -> str:
    """The whole page; ``title`` and ``lines`` are text."""
    parts = [
        element("h1", title),
        text_lines(lines),
        tiles(measured),
        trade_off_section(measured),
        steps_section(measured),
        similarity_section(measured),
        layers_section(measured),
        codebooks_section(measured),
        passes_section(measured),
    ]
    head = joined(
        [
            Markup('<meta charset="utf-8">'),
            Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
            Markup('<meta name="viewport" content="width=device-width, initial-scale=1">'),
            element("title", title),
            Markup(f"<style>{STYLE}</style>"),
        ]
    )
    body = element("main", joined([part for part in parts if part]))
    return str(
        joined(
            [
                Markup("<!DOCTYPE html>"),
                Markup('<html lang="en"><head>'),
                head,
                Markup("</head><body>"),
                markup(body),
                Markup("</body></html>\n"),
            ]
        )
    )


def plain_json(value: Any) -> Any:
    """``value`` as JSON takes it: numbers of Python's own, and null for those that are none."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain_json(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
