"""The raw part of a file: where its arrays may lie, and the table that says so."""

from __future__ import annotations

import numpy as np
import pytest

from edgeid.runtime.blobs import BlobWriter, read_blobs
from edgeid.runtime.errors import ModelError, ModelFormatError

TABLE = [
    {"dtype": "float32", "offset": 0, "shape": [2]},
    {"dtype": "float32", "offset": 64, "shape": [2, 2]},
]
FIRST = np.array([5, 6], "<f4").tobytes() + bytes(56)
DATA = FIRST + np.array([1, 2, 3, 4], "<f4").tobytes() + bytes(48)


def test_by_hand():
    writer = BlobWriter()
    assert writer.add(np.array([5, 6], np.float32)) == 0
    assert writer.add(np.array([[1, 2], [3, 4]], np.float32)) == 1
    assert (writer.table, b"".join(writer.chunks), writer.size) == (TABLE, DATA, 128)
    first, second = read_blobs(TABLE, b"x" * 64 + DATA, 64)
    assert (first.tolist(), second.tolist()) == ([5, 6], [[1, 2], [3, 4]])


def test_equal_arrays_are_one_blob_and_others_are_not():
    writer = BlobWriter()
    ones = np.ones((2, 2), np.float32)
    assert [writer.add(a) for a in (ones, ones.T.copy(), ones.reshape(4))] == [0, 0, 1]
    assert writer.add(np.ones((2, 2), np.float16)) == 2


@pytest.mark.parametrize("dtype", ["<f4", ">f4", "<f2", ">f2", "i1", "u1"])
def test_arrays_come_back_whatever_their_order_in_memory(dtype):
    writer = BlobWriter()
    array = np.arange(12).reshape(3, 4).astype(dtype).T
    writer.add(array)
    (read,) = read_blobs(writer.table, b"".join(writer.chunks), 0)
    assert np.array_equal(read, array)
    assert not read.flags.writeable


def test_other_types_are_refused():
    with pytest.raises(ModelFormatError, match="float64"):
        BlobWriter().add(np.zeros(2))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"dtype": "float64"}, "float64"),
        ({"dtype": None}, "dtype"),
        ({"dtype": ["float32"]}, "dtype"),
        ({"offset": 128}, "end at 64"),
        ({"offset": 0}, "end at 64"),
        ({"offset": 60}, "end at 64"),
        ({"offset": -64}, "end at 64"),
        ({"offset": True}, "whole number"),
        ({"offset": 64.0}, "whole number"),
        ({"shape": [2, 100]}, "truncated"),
        ({"shape": []}, "axes"),
        ({"shape": [1] * 7}, "axes"),
        ({"shape": [0, 4]}, "empty"),
        ({"shape": [-2, -2]}, "empty"),
        ({"shape": [2**31, 2]}, "whole number"),
        ({"shape": [2**30, 2**30, 2**30, 2**30]}, "above"),
        ({"shape": [2, True]}, "whole number"),
        ({"shape": "2"}, "list"),
        ({"shape": None}, "list"),
        ({"more": 1}, "unknown"),
    ],
)
def test_tables_that_cannot_be(change, says):
    with pytest.raises(ModelError, match=says):
        read_blobs([TABLE[0], TABLE[1] | change], DATA, 0)


@pytest.mark.parametrize("table", [None, {}, [1], [{}], [TABLE[0]] * 70_000])
def test_tables_of_the_wrong_form(table):
    with pytest.raises(ModelError):
        read_blobs(table, DATA, 0)


def test_padding_must_be_zero():
    with pytest.raises(ModelFormatError, match="padding after byte 80"):
        read_blobs(TABLE, DATA[:-1] + b"\1", 0)
