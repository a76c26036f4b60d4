"""Bit-packing and the encoding Indexed: values by hand, round trips, refusals."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeid.runtime.encoding import ENCODINGS, Indexed
from edgeid.runtime.errors import GraphError, ModelError
from edgeid.runtime.format import ModelFile, dump_model, read_model
from edgeid.runtime.graph import Entry, Gemm, Graph
from edgeid.runtime.indexed import index_bits, make_indexed
from edgeid.runtime.packing import pack_bits, packed_size, unpack_bits

VALUES = np.array([-0.5, 0.0, 0.25, 2.0], np.float32)


def test_three_bits_by_hand():
    # 1, 2, 3, 4, 5, 6, 7, 0, 1 from the lowest bit on:
    # 100 010 11|0 001 101 0|11 111 000| 100 ..... read upwards in each byte
    packed = pack_bits(np.array([1, 2, 3, 4, 5, 6, 7, 0, 1]), 3)
    assert packed.tolist() == [0b11010001, 0b01011000, 0b00011111, 0b00000001]


@pytest.mark.parametrize(("bits", "byte"), [(1, 0b1), (4, 0b1), (8, 0b1)])
def test_one_index_takes_whole_bytes(bits, byte):
    assert pack_bits(np.array([1]), bits).tolist() == [byte]


@given(st.data(), st.integers(1, 14), st.integers(1, 70))
def test_packing_is_one_large_number(data, bits, count):
    """Oracle: the stream is the little-endian integer sum of index_i * 2^(i b)."""
    indices = data.draw(hnp.arrays(np.uint16, count, elements=st.integers(0, 2**bits - 1)))
    number = sum(int(index) << (i * bits) for i, index in enumerate(indices))
    packed = pack_bits(indices, bits)
    assert packed.tobytes() == number.to_bytes(packed_size(count, bits), "little")
    assert unpack_bits(packed, bits, count).tolist() == indices.tolist()


@pytest.mark.parametrize("bits", [1, 5, 12])
def test_packing_goes_on_beyond_a_block(bits):
    indices = np.random.default_rng(3).integers(0, 1 << bits, 8 * (1 << 15) * 2 + 13)
    assert np.array_equal(unpack_bits(pack_bits(indices, bits), bits, indices.size), indices)


@pytest.mark.parametrize("bits", [0, -1, 15, 64])
def test_other_widths_are_refused(bits):
    with pytest.raises(GraphError, match=r"1\.\.14 bits"):
        pack_bits(np.array([0]), bits)


@pytest.mark.parametrize("index", [-1, 8])
def test_indices_that_do_not_fit(index):
    with pytest.raises(GraphError, match="3 bits"):
        pack_bits(np.array([0, index]), 3)


@pytest.mark.parametrize(
    ("packed", "bits", "count"),
    [
        (np.zeros(2, np.uint8), 3, 2),
        (np.zeros(0, np.uint8), 3, 2),
        (np.zeros(1, np.int8), 3, 2),
        (np.zeros((1, 1), np.uint8), 3, 2),
        (np.array([0b01000000], np.uint8), 3, 2),
        (np.array([0, 0b10000000], np.uint8), 5, 3),
    ],
)
def test_packed_arrays_that_cannot_be(packed, bits, count):
    with pytest.raises(GraphError):
        unpack_bits(packed, bits, count)


def test_decode_by_hand():
    tensor = make_indexed(VALUES, np.array([[3, 0], [1, 2], [2, 2]]))
    assert tensor.decode().tolist() == [[2.0, -0.5], [0.0, 0.25], [0.25, 0.25]]
    assert tensor.indices.tolist() == [0b10010011, 0b1010]
    assert (tensor.bits, tensor.nbytes) == (2, 4 * 4 + 2)


@pytest.mark.parametrize(("size", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (8195, 14)])
def test_index_bits(size, bits):
    assert index_bits(size) == bits


@given(
    st.data(),
    st.integers(1, 40),
    hnp.array_shapes(min_dims=1, max_dims=4, max_side=5),
    st.sampled_from([np.float16, np.float32]),
)
def test_round_trip(data, size, shape, kind):
    values = st.floats(-100, 100, width=16)
    dictionary = data.draw(hnp.arrays(kind, size, elements=values))
    indices = data.draw(hnp.arrays(np.int64, shape, elements=st.integers(0, size - 1)))
    tensor = make_indexed(dictionary, indices)
    again = ENCODINGS["indexed"].from_parts(tensor.shape, tensor.parts(), bits=tensor.bits)
    assert again.decode().dtype == np.float32
    assert again.shape == shape
    assert again.decode().tolist() == dictionary.astype(np.float32)[indices].tolist()


ONE = np.zeros(1, np.uint8)


@pytest.mark.parametrize(
    ("dictionary", "indices", "shape", "bits", "says"),
    [
        (VALUES, ONE, (2, 2), 1, "1..2 values, not 4"),
        (VALUES[:0], ONE, (2, 2), 2, "not 0"),
        (VALUES[None], ONE, (2, 2), 2, "shape"),
        (VALUES.astype(np.float64), ONE, (2, 2), 2, "float64"),
        (np.array([0, np.nan], np.float32), ONE, (2, 2), 1, "NaN"),
        (np.array([0, np.inf], np.float16), ONE, (2, 2), 1, "NaN or infinity"),
        (VALUES[:3], np.array([0b11], np.uint8), (2, 2), 2, "index 3 is beyond .* 3 values"),
        (VALUES, ONE, (2, 3), 2, "6 indices of 2 bits take 2 bytes"),
        (VALUES, np.zeros(2, np.uint8), (2, 2), 2, "take 1 bytes"),
        (VALUES[:2], np.array([0b10000], np.uint8), (2, 2), 1, "not zero"),
        (VALUES, ONE, (0, 2), 2, "empty"),
        (VALUES, ONE, (1,) * 7, 2, "axes"),
        (VALUES, ONE, (2, 2), 15, "bits"),
        (VALUES, ONE, (2, 2), 0, "bits"),
    ],
)
def test_parts_that_cannot_be(dictionary, indices, shape, bits, says):
    with pytest.raises(GraphError, match=says):
        Indexed(dictionary, indices, shape, bits)


@pytest.mark.parametrize("parts", [{}, {"dictionary": VALUES}, {"indices": ONE}])
def test_parts_that_are_missing(parts):
    with pytest.raises(GraphError, match="parts"):
        Indexed.from_parts((2, 2), parts, bits=2)


def test_parts_of_the_wrong_type():
    with pytest.raises(GraphError, match="parts"):
        Indexed.from_parts((2, 2), {"dictionary": VALUES, "indices": ONE.astype(np.int8)}, bits=2)


def model(tensor) -> ModelFile:
    layer = Gemm("fc", ("x",), "y", "w", None)
    return ModelFile(Graph((Entry("face", "x", (2,), "y"),), (layer,), {"w": tensor}))


def test_through_a_file(rewrite):
    tensor = make_indexed(VALUES[:3], np.array([[2, 0], [1, 2]]))
    data = dump_model(model(tensor))
    read = read_model(data).graph.tensors["w"]
    assert isinstance(read, Indexed)
    assert read.decode().tolist() == [[0.25, -0.5], [0.0, 0.25]]
    assert dump_model(model(read)) == data
    assert dump_model(read_model(rewrite(data, lambda _: None))) == data


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"attributes": {}}, "missing"),
        ({"attributes": {"bits": 2, "more": 1}}, "unknown"),
        ({"attributes": {"bits": "2"}}, "whole number"),
        ({"attributes": {"bits": True}}, "whole number"),
        ({"attributes": {"bits": 1}}, "last 4 bits .* not zero"),
        ({"attributes": {"bits": 3}}, "4 indices of 3 bits take 2 bytes"),
        ({"attributes": {"bits": 2**30}}, "bits"),
        ({"attributes": {"bits": -2}}, "bits"),
        ({"shape": [2, 3]}, "6 indices of 2 bits"),
        ({"shape": [1 << 13, 1 << 13]}, "67108864 indices"),
        ({"parts": {"dictionary": 0}}, "parts"),
        ({"parts": {"dictionary": 0, "indices": 0}}, "parts"),
        ({"parts": {"dictionary": 1, "indices": 0}}, "parts"),
        ({"encoding": "codebook"}, "attributes|unknown"),
    ],
)
def test_hostile_headers(rewrite, change, says):
    data = dump_model(model(make_indexed(VALUES[:3], np.array([[2, 0], [1, 2]]))))
    with pytest.raises(ModelError, match=says):
        read_model(rewrite(data, lambda header: header["tensors"]["w"].update(change)))


def test_hostile_indices(rewrite):
    tensor = make_indexed(VALUES[:3], np.array([[2, 0], [1, 2]]))
    data = dump_model(model(tensor))
    assert data.count(tensor.indices.tobytes() + bytes(63)) == 1
    for bad in (0b11111111, 0b00000011):
        damaged = data.replace(tensor.indices.tobytes() + bytes(63), bytes([bad]) + bytes(63))
        with pytest.raises(GraphError, match=r"tensor 'w': index 3 is beyond"):
            read_model(rewrite(damaged, lambda _: None))
