"""Encodings of weights: hand-computed values, round trips, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeid.runtime.encoding import (
    ENCODINGS,
    Dense,
    Int8,
    encode_float16,
    encode_float32,
    encode_int8,
)
from edgeid.runtime.errors import GraphError

WEIGHTS = hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=2, max_dims=4, max_side=4),
    elements=st.floats(-1000, 1000, width=32),
)


def test_int8_by_hand():
    tensor = encode_int8(np.array([[127, -63.5, 0], [0, 0, 0], [1.27, 0.004, -1.27]], np.float32))
    assert tensor.values.tolist() == [[127, -64, 0], [0, 0, 0], [127, 0, -127]]
    assert tensor.scale.tolist() == [1.0, 1.0, np.float32(1.27) / np.float32(127)]
    assert tensor.decode()[0].tolist() == [127, -64, 0]
    assert tensor.nbytes == 9 + 12


@given(WEIGHTS)
def test_int8_errs_by_half_a_step_of_its_channel_at_most(weight):
    tensor = encode_int8(weight)
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    bound = (largest / 254 * 1.0001 + 1e-30).reshape(-1, *[1] * (weight.ndim - 1))
    assert tensor.decode().dtype == np.float32
    assert (np.abs(tensor.decode() - weight) <= bound).all()


@given(WEIGHTS)
def test_every_encoding_is_rebuilt_from_its_parts(weight):
    for tensor in (encode_float32(weight), encode_float16(weight), encode_int8(weight)):
        kind = ENCODINGS[tensor.encoding]
        again = kind.from_parts(tensor.shape, tensor.parts())
        assert again.shape == weight.shape
        assert np.array_equal(again.decode(), tensor.decode())


def test_float32_is_kept_as_it_is():
    weight = np.array([1e-45, -0.0, 3.4e38], np.float32)
    assert encode_float32(weight).decode().tobytes() == weight.tobytes()


def test_float16_rounds_and_says_where_it_ends():
    assert encode_float16(np.array([2049.0])).decode().tolist() == [2048.0]
    with pytest.raises(GraphError, match="65504"):
        encode_float16(np.array([65520.0]))


@pytest.mark.parametrize("encode", [encode_float32, encode_float16, encode_int8])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused(encode, bad):
    with pytest.raises(GraphError):
        encode(np.array([[1.0, bad]], np.float32))


@pytest.mark.parametrize("shape", [(3,), ()])
def test_int8_needs_a_channel_axis_and_values(shape):
    with pytest.raises(GraphError, match="two axes"):
        encode_int8(np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (1,) * 7])
def test_empty_and_deep_shapes_are_refused(shape):
    with pytest.raises(GraphError):
        encode_float32(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("values", "scale"),
    [
        (np.array([[-128]], np.int8), np.ones(1, np.float32)),
        (np.array([[1]], np.int8), np.zeros(1, np.float32)),
        (np.array([[1]], np.int8), -np.ones(1, np.float32)),
        (np.array([[1]], np.int8), np.array([np.nan], np.float32)),
        (np.array([[1]], np.int8), np.array([3e38], np.float32)),
        (np.array([[1]], np.int8), np.ones(2, np.float32)),
        (np.array([[1]], np.int8), np.ones(1, np.float64)),
        (np.array([[1]], np.int16), np.ones(1, np.float32)),
    ],
)
def test_int8_parts_that_cannot_be(values, scale):
    with pytest.raises(GraphError):
        Int8(values, scale)


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        (Dense, {}),
        (Dense, {"values": np.zeros((2, 2), np.int8)}),
        (Dense, {"values": np.zeros((2, 3), np.float32)}),
        (Dense, {"values": np.zeros((2, 2), np.float32), "more": np.zeros(1, np.float32)}),
        (Int8, {"values": np.zeros((2, 2), np.int8)}),
        (Int8, {"values": np.zeros((4, 1), np.int8), "scale": np.ones(4, np.float32)}),
    ],
)
def test_parts_that_do_not_make_the_shape(kind, parts):
    with pytest.raises(GraphError):
        kind.from_parts((2, 2), parts)
