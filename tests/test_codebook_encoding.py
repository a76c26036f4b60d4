"""The encoding Codebook: a weight by hand, round trips, sharing, refusals."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeid.runtime.codebook import (
    Codebook,
    index_shape,
    make_codebook,
    quantise_codewords,
    sub_spaces,
)
from edgeid.runtime.encoding import ENCODINGS, encode_float32
from edgeid.runtime.errors import GraphError, ModelError
from edgeid.runtime.format import ModelFile, dump_model, read_model
from edgeid.runtime.graph import Entry, Gemm, Graph
from edgeid.runtime.reference import ReferenceEngine


def numbered(spaces: int, count: int, length: int, kind=np.float32):
    """Codeword k of sub-space s holds s + k/100 at its first place, and 10 more at each next."""
    s, k, d = np.ogrid[:spaces, :count, :length]
    return (s + k / 100 + 10 * d).astype(kind)


def test_gemm_by_hand():
    # in = 3, r = 2: sub-space 0 is columns 0 and 1, sub-space 1 column 2 and the padding
    indices = np.array([[5, 0], [15, 1]]).reshape(2, 1, 1, 2)  # sub-space, 1, 1, out
    tensor = make_codebook(numbered(2, 16, 2), indices, (2, 3))
    expected = [[0.05, 10.05, 1.15], [0.00, 10.00, 1.01]]
    assert np.array_equal(tensor.decode(), np.array(expected, np.float32))
    # low nibble first: 5, 0 | 15, 1
    assert tensor.indices.tolist() == [0x05, 0x1F]
    assert (tensor.bits, tensor.length) == (4, 2)


def test_conv_by_hand():
    # one output, two inputs (one sub-space of r = 2), 1 x 3 kernel with codewords 1, 2, 3
    tensor = make_codebook(numbered(1, 16, 2), np.array([[[[1], [2], [3]]]]), (1, 2, 1, 3))
    expected = [[[[0.01, 0.02, 0.03]], [[10.01, 10.02, 10.03]]]]
    assert np.array_equal(tensor.decode(), np.array(expected, np.float32))


def test_int8_codewords_by_hand():
    codewords = np.zeros((2, 16, 2), np.float32)
    codewords[0, 3] = [254, -1]  # scale 2: 127 and -0.5, which rounds to the even 0
    codewords[0, 4] = [3, 5]  # 1.5 and 2.5 both round to the even 2
    values, scale = quantise_codewords(codewords)
    assert scale.tolist() == [2, 1]  # the sub-space of zeros takes 1
    assert values[0, 3:5].tolist() == [[127, 0], [2, 2]]
    tensor = make_codebook(values, np.array([3, 4, 0, 0]).reshape(2, 1, 1, 2), (2, 4), scale)
    assert tensor.decode().tolist() == [[254, 0, 0, 0], [4, 4, 0, 0]]
    # 2 sub-spaces of 16 x 2 bytes, 2 scales, 4 indices of half a byte
    assert tensor.nbytes == 64 + 8 + 2


FORMS = st.tuples(
    st.integers(1, 5),  # out
    st.integers(1, 11),  # in
    st.sampled_from([(), (1, 1), (3, 3), (2, 1)]),
    st.sampled_from([16, 32, 64, 256]),
    st.sampled_from([2, 4, 8]),
    st.integers(0, 2),  # sub-spaces more than needed
    st.integers(0, 2**32 - 1),
)


def drawn(form, kind="int8"):
    out, channels, kernel, count, length, more, seed = form
    rng = np.random.default_rng(seed)
    shape = (out, channels, *kernel)
    spaces = -(-channels // length) + more
    codewords = rng.standard_normal((spaces, count, length)).astype(np.float32)
    values, scale = quantise_codewords(codewords) if kind == "int8" else (codewords, None)
    values = values if kind == "int8" else codewords.astype(kind)
    indices = rng.integers(0, count, index_shape(shape, length))
    return make_codebook(values, indices, shape, scale), indices


@settings(deadline=None)
@given(FORMS, st.sampled_from(["int8", "float16", "float32"]))
def test_each_weight_is_the_place_of_its_codeword(form, kind):
    """Oracle: one weight at a time, from the definition."""
    tensor, indices = drawn(form, kind)
    table = tensor.codewords.astype(np.float32)
    if tensor.scale is not None:
        table = table * tensor.scale[:, None, None]
    weight = tensor.decode()
    assert (weight.dtype, weight.shape) == (np.float32, tensor.shape)
    four = weight.reshape(*weight.shape[:2], *(weight.shape[2:] or (1, 1)))
    for (o, i, y, x), value in np.ndenumerate(four):
        space, place = divmod(i, tensor.length)
        assert value == table[space, indices[space, y, x, o], place]


@settings(deadline=None)
@given(FORMS, st.sampled_from(["int8", "float16", "float32"]))
def test_round_trip(form, kind):
    tensor, indices = drawn(form, kind)
    again = ENCODINGS["codebook"].from_parts(tensor.shape, tensor.parts())
    assert isinstance(again, Codebook)
    assert np.array_equal(again.unpack_indices(), indices)
    assert np.array_equal(again.decode(), tensor.decode())


@settings(deadline=None)
@given(FORMS)
def test_int8_codewords_err_by_half_a_step_at_most(form):
    rng = np.random.default_rng(form[-1])
    codewords = rng.standard_normal((3, form[3], form[4])).astype(np.float32) * np.float32(7)
    values, scale = quantise_codewords(codewords)
    decoded = values * scale[:, None, None]
    assert (np.abs(decoded - codewords) <= scale[:, None, None] * 0.5001).all()


def pair(one, two) -> ModelFile:
    layers = (Gemm("a", ("x",), "h", "w", None), Gemm("b", ("h",), "y", "v", None))
    graph = Graph((Entry("face", "x", (one.shape[1],), "y"),), layers, {"w": one, "v": two})
    return ModelFile(graph)


def shared():
    """A weight (8, 24) and a narrower one (6, 8) that uses the first of its 6 sub-spaces."""
    rng = np.random.default_rng(4)
    values, scale = quantise_codewords(rng.standard_normal((6, 16, 4)).astype(np.float32))
    wide = make_codebook(values, rng.integers(0, 16, (6, 1, 1, 8)), (8, 24), scale)
    narrow = make_codebook(values, rng.integers(0, 16, (2, 1, 1, 6)), (6, 8), scale)
    return wide, narrow


def test_a_shared_codebook_is_stored_once(rewrite):
    wide, narrow = shared()
    data = dump_model(pair(wide, narrow))
    headers = []
    rewrite(data, lambda header: headers.append(header))
    parts = [headers[0]["tensors"][name]["parts"] for name in "wv"]
    assert parts[0]["codewords"] == parts[1]["codewords"]
    assert parts[0]["scale"] == parts[1]["scale"]
    assert len(headers[0]["blobs"]) == 4
    read = read_model(data).graph.tensors
    assert np.shares_memory(read["w"].parts()["codewords"], read["v"].parts()["codewords"])
    assert np.array_equal(read["v"].decode(), narrow.decode())
    assert dump_model(read_model(data)) == data


def test_engines_run_it():
    wide, narrow = shared()
    x = np.random.default_rng(1).standard_normal((3, 24)).astype(np.float32)
    y = ReferenceEngine(pair(wide, narrow).graph).run("face", x)
    assert np.allclose(y, x @ wide.decode().T @ narrow.decode().T, atol=1e-4)
    plain = pair(encode_float32(wide.decode()), encode_float32(narrow.decode()))
    assert np.array_equal(ReferenceEngine(plain.graph).run("face", x), y)


def small(**changes) -> Codebook:
    values, scale = quantise_codewords(numbered(2, 16, 4))
    return replace(
        make_codebook(values, np.zeros((2, 1, 1, 3), np.int64), (3, 7), scale), **changes
    )


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weight_shape": (3, 9)}, "needs 3"),
        ({"weight_shape": (3, 7, 1)}, "2 or 4 axes"),
        ({"weight_shape": (3,)}, "2 or 4 axes"),
        ({"weight_shape": (3, 0)}, "empty"),
        ({"weight_shape": (4, 7)}, "8 indices of 4 bits take 4 bytes"),
        ({"weight_shape": (3, 7, 2, 2)}, "24 indices"),
        ({"codewords": np.zeros((2, 16), np.int8)}, "3 axes"),
        ({"codewords": np.zeros((2, 17, 4), np.int8)}, "found 17 of 4"),
        ({"codewords": np.zeros((2, 128, 4), np.int8)}, "found 128"),
        ({"codewords": np.zeros((2, 16, 3), np.int8)}, "16 of 3"),
        ({"codewords": np.zeros((2, 16, 16), np.int8)}, "16 of 16"),
        ({"codewords": np.zeros((1, 16, 4), np.int8)}, "1 sub-spaces"),
        ({"codewords": np.full((2, 16, 4), -128, np.int8)}, "-128"),
        ({"codewords": np.zeros((2, 16, 4), np.int16)}, "parts"),
        ({"codewords": np.zeros((2, 16, 4), np.float32)}, "parts"),
        ({"scale": None}, "int8 codewords need a scale"),
        ({"scale": np.ones(3, np.float32)}, "scales have shape"),
        ({"scale": np.ones(2, np.float64)}, "parts"),
        ({"scale": np.array([1, 0], np.float32)}, "positive"),
        ({"scale": np.array([1, -1], np.float32)}, "positive"),
        ({"scale": np.array([1, np.nan], np.float32)}, "NaN"),
        ({"scale": np.array([1, 3e38], np.float32)}, "beyond float32"),
        ({"scale": None, "codewords": np.full((2, 16, 4), np.inf, np.float32)}, "infinity"),
        ({"scale": None, "codewords": np.zeros((2, 16, 4), np.float64)}, "float64"),
        ({"indices": np.zeros(4, np.uint8)}, "take 3 bytes"),
        ({"indices": np.zeros(3, np.int8)}, "uint8"),
    ],
)
def test_parts_that_cannot_be(changes, says):
    small()
    with pytest.raises(GraphError, match=says):
        small(**changes)


def test_bits_after_the_last_index_must_be_zero():
    # 3 x 1 indices of 5 bits: bit 15 is left over
    codewords = numbered(1, 32, 4)
    tensor = make_codebook(codewords, np.zeros((1, 1, 1, 3), np.int64), (3, 4))
    with pytest.raises(GraphError, match="not zero"):
        replace(tensor, indices=np.array([0, 0x80], np.uint8))


@pytest.mark.parametrize("shape", [(2, 1, 1, 4), (2, 3), (1, 1, 1, 3)])
def test_indices_of_another_shape(shape):
    with pytest.raises(GraphError, match="needs"):
        make_codebook(numbered(2, 16, 4), np.zeros(shape, np.int64), (3, 7))


def test_indices_beyond_the_codebook():
    with pytest.raises(GraphError, match="4 bits"):
        make_codebook(numbered(2, 16, 4), np.full((2, 1, 1, 3), 16), (3, 7))


def test_codewords_that_are_not_finite():
    with pytest.raises(GraphError, match="NaN"):
        quantise_codewords(np.full((1, 16, 2), np.nan, np.float32))


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"codewords": np.zeros((2, 16, 4), np.int8)},
        {"codewords": np.zeros((2, 16, 4), np.int8), "indices": np.zeros(3, np.uint8)},
        {
            "codewords": np.zeros((2, 16, 4), np.float32),
            "indices": np.zeros(3, np.uint8),
            "scale": np.ones(2, np.float32),
        },
    ],
)
def test_parts_that_are_missing_or_too_many(parts):
    with pytest.raises(GraphError, match="parts"):
        Codebook.from_parts((3, 7), parts)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shape": [8, 25]}, "needs 7"),
        ({"shape": [1 << 13, 1 << 13]}, "sub-spaces"),
        ({"shape": [1 << 20, 24]}, "indices of 4 bits take"),
        ({"shape": [8, 24, 1]}, "axes"),
        ({"shape": [8]}, "axes"),
        ({"attributes": {"bits": 4}}, "unknown"),
        ({"parts": {}}, "parts"),
        ({"encoding": "indexed"}, "missing"),
        ({"encoding": "Codebook"}, "known are dense, int8, indexed, codebook"),
    ],
)
def test_hostile_headers(rewrite, change, says):
    data = dump_model(pair(*shared()))
    with pytest.raises(ModelError, match=says):
        read_model(rewrite(data, lambda header: header["tensors"]["w"].update(change)))


def test_a_blob_that_claims_other_codewords(rewrite):
    data = dump_model(pair(*shared()))

    def change(header):
        for blob in header["blobs"]:
            if len(blob["shape"]) == 3:
                blob["shape"] = [4, 24, 4]

    with pytest.raises(GraphError, match=r"tensor '.': .*found 24 of 4"):
        read_model(rewrite(data, change))


def test_padding_takes_no_memory():
    # one input channel of r = 8: all sub-vectors at once would be 8 times the weight
    indices = np.zeros((1, 1, 1, 1 << 20), np.uint8)
    tensor = make_codebook(numbered(1, 16, 8), indices, (1 << 20, 1))
    tracemalloc.start()
    try:
        assert tensor.decode().shape == (1 << 20, 1)
        assert tracemalloc.get_traced_memory()[1] < 5 * (4 << 20)
    finally:
        tracemalloc.stop()


def test_sub_spaces():
    assert [sub_spaces((1, n), 4) for n in (1, 4, 5, 8, 9)] == [1, 1, 2, 2, 3]
    assert index_shape((7, 9, 3, 5), 4) == (3, 3, 5, 7)
    assert index_shape((7, 9), 8) == (2, 1, 1, 7)
