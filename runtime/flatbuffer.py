"""FlatBuffers, written: tables of numbered fields, without the flatbuffers package.

The layout is https://flatbuffers.dev/internals: a table starts with the distance back to its
vtable, which says where each field lies; what a field refers to lies behind the table. Numbers
are little-endian, and everything is aligned as the schema's readers expect.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

VECTOR_ALIGNMENT = 16  # of byte vectors: kernels read constants where they lie


@dataclass(frozen=True)
class Scalar:
    """A number in a table; ``kind`` is its letter in ``struct``: b, B, i or I."""

    kind: str
    value: int


@dataclass(frozen=True)
class Table:
    """Fields by their number in the schema; those left out take the schema's default.

    A sequence is a vector of tables, an array one of bytes (uint8) or integers (int32).
    """

    fields: Mapping[int, Scalar | str | NDArray[Any] | Table | Sequence[Table]]


def pack_table(root: Table, identifier: bytes) -> bytes:
    """A file whose root is the table; ``identifier`` is its four letters. Large arrays are
    copied once."""
    layout = _Layout()
    head = bytearray(4) + identifier
    layout.append(head)
    _refer(head, 0, 0, layout.table(root))
    return b"".join(layout.parts)


class _Layout:
    """Parts one after the other; tables stay open until what they refer to has its place."""

    def __init__(self) -> None:
        self.parts: list[bytes | bytearray | memoryview] = []
        self._size = 0

    def append(
        self, part: bytes | bytearray | memoryview, alignment: int = 4, lead: int = 0
    ) -> int:
        """Its position; what lies ``lead`` bytes into it is aligned."""
        gap = -(self._size + lead) % alignment
        self.parts += [bytes(gap), part]
        position = self._size + gap
        self._size = position + len(part)
        return position

    def table(self, table: Table) -> int:
        places, size = {}, 4
        for number, value in table.fields.items():  # four bytes each, then the single ones
            if not (isinstance(value, Scalar) and struct.calcsize(value.kind) == 1):
                places[number], size = size, size + 4
        for number in table.fields:
            if number not in places:
                places[number], size = size, size + 1
        count = max(table.fields, default=-1) + 1
        vtable = struct.pack(
            f"<{count + 2}H", 4 + 2 * count, size, *(places.get(i, 0) for i in range(count))
        )
        origin = self.append(vtable, 2)
        body = bytearray(size)
        position = self.append(body)
        struct.pack_into("<i", body, 0, position - origin)
        for number, value in table.fields.items():
            place = places[number]
            if isinstance(value, Scalar):
                struct.pack_into(f"<{value.kind}", body, place, value.value)
            else:
                _refer(body, place, position + place, self._child(value))
        return position

    def _child(self, value: str | NDArray[Any] | Table | Sequence[Table]) -> int:
        if isinstance(value, Table):
            return self.table(value)
        if isinstance(value, str):
            text = value.encode()
            return self.append(struct.pack("<I", len(text)) + text + b"\0")
        if isinstance(value, np.ndarray):
            return self._array(value)
        body = bytearray(4 + 4 * len(value))
        struct.pack_into("<I", body, 0, len(value))
        position = self.append(body)
        for place, item in enumerate(value):
            at = 4 + 4 * place
            _refer(body, at, position + at, self.table(item))
        return position

    def _array(self, values: NDArray[Any]) -> int:
        alignment = VECTOR_ALIGNMENT if values.itemsize == 1 else 4
        position = self.append(struct.pack("<I", len(values)), alignment, lead=4)
        stored = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        self.append(stored.view(np.uint8).data, 1)
        return position


def _refer(body: bytearray, place: int, position: int, target: int) -> None:
    struct.pack_into("<I", body, place, target - position)
