"""The raw part of a model file: arrays one after the other, each on a 64-byte boundary."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.encoding import check_shape
from edgeid.runtime.errors import ModelFormatError
from edgeid.runtime.layer_json import check_int, check_ints, check_keys, check_list

ALIGNMENT = 64
MAX_BLOBS = 65536
DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "|i1", "uint8": "|u1"}


def aligned(size: int) -> int:
    """``size`` rounded up to the next 64."""
    return -(-size // ALIGNMENT) * ALIGNMENT


class BlobWriter:
    """Collects arrays; arrays of equal type, shape and content are stored once."""

    def __init__(self) -> None:
        self.table: list[dict[str, Any]] = []
        self.chunks: list[bytes] = []
        self.size = 0
        self._known: dict[tuple[str, tuple[int, ...], bytes], int] = {}

    def add(self, array: NDArray[Any]) -> int:
        """Index of the blob that holds ``array``; raises ModelFormatError on other dtypes."""
        dtype = array.dtype.name
        if dtype not in DTYPES:
            raise ModelFormatError(f"blobs are {', '.join(DTYPES)}, not {dtype}")
        data = np.ascontiguousarray(array, dtype=DTYPES[dtype]).tobytes()
        key = (dtype, array.shape, hashlib.sha256(data).digest())
        if key not in self._known:
            self._known[key] = len(self.table)
            self.table.append({"dtype": dtype, "offset": self.size, "shape": list(array.shape)})
            self.chunks.append(data + bytes(aligned(len(data)) - len(data)))
            self.size += aligned(len(data))
        return self._known[key]


def read_blobs(table: object, data: bytes, start: int) -> list[NDArray[Any]]:
    """The arrays of a blob table as read-only views on ``data``, whose raw part begins at start.

    Raises:
        ModelFormatError: the blobs leave a hole, overlap, or do not end where the file ends;
            padding is not zero.
        GraphError: an item of the table is malformed.
    """
    places: list[tuple[int, str, tuple[int, ...]]] = []
    position = 0
    for index, item in enumerate(check_list(table, MAX_BLOBS, "blobs")):
        where = f"blob {index}"
        found = check_keys(item, {"dtype", "offset", "shape"}, where)
        dtype, shape = found["dtype"], check_ints(found["shape"], where)
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise ModelFormatError(f"{where}: dtype {dtype!r:.80}; known are {', '.join(DTYPES)}")
        size = check_shape(shape, where) * np.dtype(DTYPES[dtype]).itemsize
        if check_int(found["offset"], where) != position:
            raise ModelFormatError(
                f"{where}: offset {found['offset']}, but the blobs before it end at {position}"
            )
        places.append((start + position, dtype, shape))
        position = aligned(position + size)
        if start + position > len(data):  # stop at the first that reaches beyond the file
            raise ModelFormatError(
                f"{where} ends at byte {start + position}, the file at {len(data)}: truncated"
            )
    if start + position != len(data):
        raise ModelFormatError(
            f"the file has {len(data)} bytes, its blobs end at {start + position}"
        )
    return [_view(data, *place) for place in places]


def _view(data: bytes, offset: int, dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    count = math.prod(shape)
    array = np.frombuffer(data, dtype=DTYPES[dtype], count=count, offset=offset)
    end = offset + array.nbytes
    if any(data[end : aligned(end)]):
        raise ModelFormatError(f"the padding after byte {end} is not zero")
    return array.reshape(shape)
