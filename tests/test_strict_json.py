"""JSON as a model file may hold it: refusals, and values that come back as they were."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeid.runtime.errors import ModelFormatError
from edgeid.runtime.strict_json import dump_json, parse_json

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_values_come_back(value):
    assert parse_json(dump_json(value)) == value


def test_one_way_to_write():
    assert dump_json({"b": [1, 2.5, None], "a": "\u00e4"}) == '{"a":"ä","b":[1,2.5,null]}'.encode()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"{}}", "not JSON"),
        (b"[1, 2", "not JSON"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": 1, "a": 1}', "'a' twice"),
        (b'{"a": {"b": 1, "c": 2, "b": 3}}', "'b' twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": 1e999}', "1e999"),
        (b'{"a": 9007199254740993}', "2\\^53"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b"[" * 30 + b"]" * 30, "deeper"),
        (b"[" * 100_000 + b"]" * 100_000, "deeper"),
        (b'{"a":' * 50_000, "deeper|not JSON"),
    ],
)
def test_text_that_is_refused(text, says):
    with pytest.raises(ModelFormatError, match=says):
        parse_json(text)


@pytest.mark.parametrize(
    "value",
    [
        {"a": float("nan")},
        {"a": (1, 2)},
        {1: "a"},
        {"a": np.float32(1)},
        {"a": b"bytes"},
        {"a": {1, 2}},
        {"a": 2**60},
        {"a": "\ud800"},
    ],
)
def test_values_that_are_refused(value):
    with pytest.raises(ModelFormatError, match="header"):
        dump_json(value)
