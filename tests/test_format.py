"""The .edgeid file: round trips, and one test for each way in which a file can be wrong."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import tracemalloc
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeid.runtime.encoding import Dense, encode_float16, encode_float32, encode_int8
from edgeid.runtime.errors import (
    GraphError,
    ModelError,
    ModelFormatError,
    ModelVersionError,
    UnsupportedOperatorError,
)
from edgeid.runtime.format import ModelFile, dump_model, read_model, write_model
from edgeid.runtime.graph import Entry, Gemm, Graph, Relu

W = np.array([[1, 2], [3, 4]], np.float32)
B = np.array([5, 6], np.float32)


def tiny(**changes) -> ModelFile:
    graph = Graph(
        (Entry("face", "x", (2,), "y"),),
        (Gemm("fc", ("x",), "y", "w", "b"),),
        {"w": encode_float32(W), "b": encode_float32(B)},
    )
    golden = [{"entry": "face", "seed": 1, "embedding": [0.5, -1.25]}]
    return replace(ModelFile(graph, {"size": 112}, golden=golden, recipe=["float32"]), **changes)


def unpack(data: bytes) -> tuple[dict, bytes]:
    length, flags = struct.unpack_from("<2I", data, 12)
    assert flags == 1
    start = -(-(64 + length) // 64) * 64
    return json.loads(zlib.decompress(data[64 : 64 + length])), data[start:]


def pack(
    header: dict | bytes, blobs: bytes, version=1, length=None, flags=0, signature=0, tail=b""
):
    """A second writer, from the specification alone, that does not mind what it writes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    length = len(text) if length is None else length
    prefix = b"\x89EDGEID\n" + struct.pack("<IIII", version, length, flags, signature) + bytes(8)
    body = text + (tail or bytes(-len(text) % 64)) + blobs
    return prefix + hashlib.sha256(prefix + body).digest() + body


def reseal(data: bytes) -> bytes:
    return data[:32] + hashlib.sha256(data[:32] + data[64:]).digest() + data[64:]


def broken(change) -> bytes:
    """The tiny file with its header changed in place, and the checksum right again."""
    header, blobs = unpack(dump_model(tiny()))
    return pack(change(header) or header, blobs)


def test_the_bytes_are_those_of_the_specification():
    data = dump_model(tiny())
    assert data[:8] == bytes([0x89, 0x45, 0x44, 0x47, 0x45, 0x49, 0x44, 0x0A])
    header, blobs = unpack(data)
    assert header["blobs"] == [
        {"dtype": "float32", "offset": 0, "shape": [2]},
        {"dtype": "float32", "offset": 64, "shape": [2, 2]},
    ]
    assert blobs == struct.pack("<2f", 5, 6) + bytes(56) + struct.pack("<4f", 1, 2, 3, 4) + bytes(
        48
    )
    assert data[32:64] == hashlib.sha256(data[:32] + data[64:]).digest()
    assert zlib.decompressobj().decompress(data[64:]).startswith(b'{"blobs":[')
    assert len(data) % 64 == 0


def test_a_file_written_from_the_specification_is_read():
    header, blobs = unpack(dump_model(tiny()))
    assert dump_model(read_model(pack(header, blobs))) == dump_model(tiny())
    deflated = zlib.compress(json.dumps(header).encode(), 1)
    assert dump_model(read_model(pack(deflated, blobs, flags=1))) == dump_model(tiny())


def test_round_trip_through_a_file(tmp_path):
    path = tmp_path / "model.edgeid"
    size = write_model(tiny(), path)
    read = read_model(path)
    assert path.stat().st_size == size
    assert read.face == {"size": 112}
    assert read.golden == tiny().golden
    assert read.graph.layers == tiny().graph.layers
    assert np.array_equal(read.graph.tensors["w"].decode(), W)
    assert not read.graph.tensors["w"].decode().flags.writeable  # a view on what was read
    assert os.listdir(tmp_path) == ["model.edgeid"]


def test_equal_models_give_equal_bytes_whatever_the_order():
    graph = tiny().graph
    turned = replace(graph, tensors=dict(reversed(graph.tensors.items())))
    one = tiny(card={"a": 1, "b": 2})
    two = tiny(graph=turned, card={"b": 2, "a": 1})
    assert dump_model(one) == dump_model(two)


def test_equal_weights_are_stored_once():
    layers = (Gemm("one", ("x",), "h", "w", "b"), Gemm("two", ("h",), "y", "v", "b"))
    weights = {"w": encode_float32(W), "v": encode_float32(W.copy()), "b": encode_float32(B)}
    file = tiny(graph=Graph(tiny().graph.entries, layers, weights))
    header, _ = unpack(dump_model(file))
    assert len(header["blobs"]) == 2
    read = read_model(dump_model(file)).graph.tensors
    assert np.shares_memory(read["w"].decode(), read["v"].decode())


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abÄ☃", max_size=4), inner),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    hnp.arrays(np.float32, (3, 2), elements=st.floats(-1000, 1000, width=32)),
    st.sampled_from([encode_float32, encode_float16, encode_int8]),
    st.dictionaries(st.text("xyz", max_size=3), JSON, max_size=3),
    st.integers(1, 2**31 - 1),
)
def test_any_model_comes_back(weight, encode, card, version):
    graph = Graph(
        (Entry("voice", "x", (2,), "y"),),
        (Gemm("fc", ("x",), "h", "w", None), Relu("r", ("h",), "y")),
        {"w": encode(weight)},
    )
    data = dump_model(ModelFile(graph, card=card, recipe=[card], model_version=version))
    read = read_model(data)
    assert (read.card, read.recipe, read.model_version) == (card, [card], version)
    assert np.array_equal(read.graph.tensors["w"].decode(), graph.tensors["w"].decode())
    assert type(read.graph.tensors["w"]) is type(graph.tensors["w"])
    assert dump_model(read) == data


# -- the prefix


@pytest.mark.parametrize(
    ("data", "error", "says"),
    [
        (b"", ModelFormatError, "not an .edgeid file"),
        (b"PK\x03\x04" + bytes(100), ModelFormatError, "not an .edgeid file"),
        (b"\x89EDGEID\r\n" + bytes(100), ModelFormatError, "not an .edgeid file"),
        (b"\x89EDGEID\n", ModelFormatError, "truncated: 8 bytes"),
        (b"\x89EDGEID\n" + bytes(55), ModelFormatError, "truncated: 63 bytes"),
        (b"\x89EDGEID\n" + bytes(56), ModelVersionError, "format version 0"),
        (b"\x89EDGEID\n\x02" + bytes(55), ModelVersionError, "format version 2.*update"),
        (b"\x89EDGEID\n\x01\0\0\0" + bytes(52), ModelFormatError, "header length 0"),
        (b"\x89EDGEID\n\x01\0\0\0\xff\xff\xff\xff" + bytes(48), ModelFormatError, "4294967295"),
        (b"\x89EDGEID\n\x01\0\0\0\x00\x01\0\0" + bytes(48), ModelFormatError, "ends at 320"),
        (
            b"\x89EDGEID\n\x01\0\0\0\x02\0\0\0" + bytes(48) + b"{}" + bytes(62),
            ModelFormatError,
            "sum",
        ),
    ],
)
def test_prefix(data, error, says):
    with pytest.raises(error, match=says):
        read_model(data)


def test_reserved_fields_must_be_zero():
    header, blobs = unpack(dump_model(tiny()))
    for flags in (2, 3):
        with pytest.raises(ModelVersionError, match=f"flags {flags:#x}"):
            read_model(pack(header, blobs, flags=flags))
    with pytest.raises(ModelVersionError, match="signature length 96"):
        read_model(pack(header, blobs, signature=96))
    data = bytearray(dump_model(tiny()))
    data[24] = 1
    with pytest.raises(ModelFormatError, match="reserved"):
        read_model(reseal(bytes(data)))


def test_every_flipped_bit_is_found():
    data = dump_model(tiny())
    for position in range(len(data)):
        flipped = bytearray(data)
        flipped[position] ^= 1 << position % 8
        with pytest.raises(ModelError):
            read_model(bytes(flipped))


def test_every_truncation_and_any_addition_is_found():
    data = dump_model(tiny())
    for length in range(len(data)):
        with pytest.raises(ModelError):
            read_model(data[:length])
        with pytest.raises(ModelError):
            read_model(reseal(data[:length]))
    for more in (b"\0", bytes(64), b"x" * 64):
        with pytest.raises(ModelFormatError):
            read_model(reseal(data + more))


# -- the header


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": NaN}', "NaN"),
        (b"{}", "missing"),
        (b"[]", "expected an object"),
        (b"null", "expected an object"),
    ],
)
def test_header_text(text, says):
    with pytest.raises(ModelError, match=says):
        read_model(pack(text, b""))


def test_padding_of_the_header_must_be_zero():
    text = b"{}" + b" " * 6
    with pytest.raises(ModelFormatError, match="padding after the header"):
        read_model(pack(text, b"", tail=b"x" * 56))


@pytest.mark.parametrize(
    ("stored", "says"),
    [
        (b"{}", "not a zlib stream"),
        (zlib.compress(b"{}")[:-1], "does not end where the header does"),
        (zlib.compress(b"{}") + b"x", "does not end where the header does"),
        (zlib.compress(b"{}")[:-1] + b"x", "not a zlib stream"),  # its Adler-32 is wrong
        (zlib.compress(b" " * ((4 << 20) + 1)), "more than 4194304 bytes"),
        (zlib.compress(b" " * (4 << 20)), "not JSON"),
        (zlib.compress(b"{}"), "missing"),
    ],
)
def test_deflated_headers(stored, says):
    with pytest.raises(ModelError, match=says):
        read_model(pack(stored, b"", flags=1))


def test_a_deflated_header_takes_no_more_memory_than_the_limit():
    bomb = pack(zlib.compress(bytes(1 << 30), 9), b"", flags=1)  # 1 MB that unpacks to 1 GiB
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError, match="more than 4194304 bytes"):
            read_model(bomb)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_a_key_too_many():
    with pytest.raises(GraphError, match=r"unknown: .*code"):
        read_model(broken(lambda h: h | {"code": "import os"}))


# -- blobs


def test_blobs_must_end_where_the_file_ends():
    header, blobs = unpack(dump_model(tiny()))
    with pytest.raises(ModelFormatError, match="its blobs end at"):
        read_model(pack(header, blobs + bytes(64)))
    with pytest.raises(ModelFormatError, match="truncated"):
        read_model(pack(header, blobs[:-64]))
    with pytest.raises(ModelFormatError, match="truncated"):
        read_model(pack(header, blobs[:-1]))


def test_a_blob_that_no_tensor_uses():
    def change(header):
        header["tensors"]["w"]["parts"]["values"] = 0
        header["tensors"]["w"]["shape"] = [2]

    with pytest.raises(ModelFormatError, match="1 of 2 blobs belong to no tensor"):
        read_model(broken(change))


def test_claimed_sizes_allocate_nothing():
    def change(header):
        header["blobs"][1]["shape"] = [1 << 13, 1 << 13]
        header["tensors"]["w"]["shape"] = [1 << 13, 1 << 13]

    data = broken(change)
    tracemalloc.start()
    try:
        with pytest.raises(ModelFormatError, match="truncated"):
            read_model(data)
        assert tracemalloc.get_traced_memory()[1] < 200_000
    finally:
        tracemalloc.stop()


def test_many_tensors_over_one_large_blob_are_refused():
    values = np.zeros(1 << 20, np.int8).reshape(1, -1)
    blob = {"dtype": "int8", "offset": 0, "shape": [1, 1 << 20]}
    scale = {"dtype": "float32", "offset": 1 << 20, "shape": [1]}
    tensor = {"encoding": "int8", "shape": [1, 1 << 20], "attributes": {}}
    header, _ = unpack(dump_model(tiny()))
    header["blobs"] = [blob, scale]
    header["tensors"] = {f"t{i}": tensor | {"parts": {"values": 0, "scale": 1}} for i in range(200)}
    data = pack(header, values.tobytes() + struct.pack("<f", 1) + bytes(60))
    with pytest.raises(ModelFormatError, match="weights in all"):
        read_model(data)


# -- tensors


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"encoding": "pickle"}, "pickle"),
        ({"encoding": None}, "encoding"),
        ({"encoding": "int8"}, "tensor 'w'.*parts"),
        ({"shape": [4]}, "shape"),
        ({"shape": [1 << 30]}, "above"),
        ({"shape": [2, -2]}, "empty"),
        ({"attributes": {"bits": 3}}, "unknown"),
        ({"attributes": []}, "object"),
        ({"parts": {}}, "parts"),
        ({"parts": [1]}, "object"),
        ({"parts": {"values": 2}}, "blob 2 of 2"),
        ({"parts": {"values": -1}}, "blob -1 of 2"),
        ({"parts": {"values": True}}, "whole number"),
        ({"parts": {"values": None}}, "whole number"),
        ({"parts": {"values": 1, "scale": 0}}, "parts"),
        ({"more": 0}, "unknown"),
    ],
)
def test_tensor_table(change, says):
    with pytest.raises(ModelError, match=says):
        read_model(broken(lambda h: h["tensors"]["w"].update(change)))


@pytest.mark.parametrize("value", [[], None, {"": {}}, {"a\0": {}}, {"w": 1}])
def test_tensors_of_the_wrong_form(value):
    with pytest.raises(ModelError):
        read_model(broken(lambda h: h | {"tensors": value}))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_must_be_finite(bad):
    header, blobs = unpack(dump_model(tiny()))
    poisoned = struct.pack("<f", bad) + blobs[4:]
    with pytest.raises(GraphError, match=r"tensor 'b': .*NaN or infinity"):
        read_model(pack(header, poisoned))


def test_weights_that_turn_bad_after_encoding_are_not_written():
    weight = W.copy()
    file = tiny(graph=replace(tiny().graph, tensors={"w": Dense(weight), "b": encode_float32(B)}))
    weight[0, 0] = np.nan
    with pytest.raises(GraphError, match="NaN"):
        dump_model(file)


# -- the graph and the other sections


def test_an_operator_outside_the_set():
    with pytest.raises(UnsupportedOperatorError, match=r"'fc'.*'Eval'.*supported: Add"):
        read_model(broken(lambda h: h["graph"]["layers"][0].update(op="Eval")))


def test_layers_are_checked_against_the_tensors():
    with pytest.raises(GraphError, match="layer 'fc'"):
        read_model(broken(lambda h: h["graph"]["entries"][0].update(shape=[3])))
    with pytest.raises(GraphError, match="no tensor 'u'"):
        read_model(broken(lambda h: h["graph"]["layers"][0].update(weight="u")))


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("face", []),
        ("voice", "x"),
        ("calibration", None),
        ("card", []),
        ("recipe", {}),
        ("golden", {}),
        ("model_version", 0),
        ("model_version", True),
        ("model_version", 1.0),
        ("model_version", 2**40),
        ("graph", None),
        ("blobs", None),
        ("blobs", {}),
    ],
)
def test_sections_of_the_wrong_type(section, value):
    with pytest.raises(ModelError):
        read_model(broken(lambda h: h | {section: value}))


@pytest.mark.parametrize(
    "change",
    [
        {"entry": "voice"},
        {"entry": 1},
        {"seed": -1},
        {"seed": True},
        {"seed": 1.5},
        {"embedding": [1.0]},
        {"embedding": [1.0, "2"]},
        {"embedding": [1.0, True]},
        {"embedding": None},
        {"more": 1},
    ],
)
def test_golden_vectors_of_the_wrong_form(change):
    with pytest.raises(ModelError):
        read_model(broken(lambda h: h["golden"][0].update(change)))


def test_sections_that_json_cannot_keep_are_not_written():
    with pytest.raises(ModelFormatError, match=r"header\.card\.a"):
        dump_model(tiny(card={"a": float("nan")}))


def test_a_header_beyond_the_limit_is_not_written():
    with pytest.raises(ModelFormatError, match="unpacks to more than 4194304"):
        dump_model(tiny(card={"text": "x" * (4 << 20)}))


# -- files


def test_writing_where_there_is_no_folder(tmp_path):
    with pytest.raises(ModelError, match="cannot write"):
        write_model(tiny(), tmp_path / "none" / "model.edgeid")
    with pytest.raises(ModelError, match="cannot write"):
        write_model(tiny(), tmp_path)


def test_reading_what_is_no_file(tmp_path):
    with pytest.raises(ModelError, match="cannot be read"):
        read_model(tmp_path / "none.edgeid")
    with pytest.raises(ModelError, match="not a regular file"):
        read_model(tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        read_model("a\0b")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelError, match="not a regular file"):
        read_model(tmp_path / "pipe")


def test_a_file_above_the_limit_is_not_read(tmp_path):
    path = tmp_path / "large.edgeid"
    with path.open("wb") as stream:
        stream.truncate((256 << 20) + 1)
    with pytest.raises(ModelFormatError, match=r"large.edgeid: 268435457 bytes"):
        read_model(path)


def test_fuzz_only_ever_raises_model_errors():
    """Random damage with the checksum made right again, so that every check is reached."""
    rng = random.Random(5)
    data = dump_model(tiny())
    accepted = 0
    for _ in range(1500):
        damaged = bytearray(data)
        for _ in range(rng.randint(1, 4)):
            damaged[rng.randrange(len(damaged))] = rng.choice(
                [0, 255, *b'0919[]{}",-e.', rng.randrange(256)]
            )
        if rng.random() < 0.2:
            del damaged[rng.randrange(len(damaged)) :]
        try:
            read_model(reseal(bytes(damaged)))
            accepted += 1
        except ModelError:
            pass
    assert accepted < 1500
