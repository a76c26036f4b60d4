"""JSON as a model file may hold it: no duplicate keys, no NaN, no deep nesting."""

from __future__ import annotations

import json
import math
import zlib
from typing import Any

from edgeid.runtime.errors import ModelFormatError

MAX_DEPTH = 24
MAX_INTEGER = 1 << 53  # beyond it JavaScript and others lose digits


def parse_json(data: bytes) -> Any:
    """Parse UTF-8 JSON; raises ModelFormatError on anything a careful writer would not write."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFormatError(f"the header is not UTF-8 (byte {error.start})") from None
    try:
        value = json.loads(
            text,
            object_pairs_hook=_unique,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
    except RecursionError:
        raise ModelFormatError(f"the header nests deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:  # JSONDecodeError, and integers of thousands of digits
        raise ModelFormatError(f"the header is not JSON: {error}") from None
    check_json(value, "header")
    return value


def dump_json(value: Any) -> bytes:
    """The one way to write a value: sorted keys, no spaces, UTF-8.

    Raises:
        ModelFormatError: naming the place that holds something JSON cannot keep as it is.
    """
    check_json(value, "header")
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")


def inflate(data: bytes, limit: int) -> bytes:
    """The text in a zlib stream; memory grows with what it holds, up to ``limit`` bytes.

    Raises:
        ModelFormatError: it is damaged, holds more than that, or does not fill ``data``.
    """
    stream = zlib.decompressobj()
    try:
        text = stream.decompress(data, limit + 1)
    except zlib.error as error:
        raise ModelFormatError(f"the header is not a zlib stream: {error}") from None
    if len(text) > limit:
        raise ModelFormatError(f"the header unpacks to more than {limit} bytes")
    if not stream.eof or stream.unused_data:
        raise ModelFormatError("the header's zlib stream does not end where the header does")
    return text


def check_json(value: Any, where: str, depth: int = 0) -> None:
    """Raise ModelFormatError unless ``value`` survives JSON unchanged, within the limits."""
    if depth > MAX_DEPTH:
        raise ModelFormatError(f"the header nests deeper than {MAX_DEPTH} levels")
    if value is None or isinstance(value, bool):
        return
    if isinstance(value, str):
        _check_text(value, where)
    elif isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ModelFormatError(f"{where}: key {key!r} is not text")
            _check_text(key, where)
            check_json(item, f"{where}.{key:.80}", depth + 1)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            check_json(item, f"{where}[{index}]", depth + 1)
    elif type(value) is int:
        if abs(value) > MAX_INTEGER:
            raise ModelFormatError(f"{where}: whole number beyond 2^53")
    elif type(value) is not float:
        raise ModelFormatError(
            f"{where}: {type(value).__name__} cannot be stored; use dict, list, str, int, float"
        )
    elif not math.isfinite(value):
        raise ModelFormatError(f"{where}: {value} cannot be stored, numbers must be finite")


def _check_text(text: str, where: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise ModelFormatError(f"{where}: text with half a surrogate pair") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ModelFormatError(f"the header has the key {key!r:.80} twice")
            seen.add(key)
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ModelFormatError(f"the header holds {text:.80}, which is beyond a float")
    return value


def _refuse_constant(text: str) -> None:
    raise ModelFormatError(f"the header holds {text}, which is not JSON")
