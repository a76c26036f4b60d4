"""Bit-packing: indices of a few bits each, without gaps.

Index number i takes the bits i * b .. i * b + b - 1 of the stream, its lowest bit first;
bit j of the stream is bit j % 8 (counted from the lowest) of byte j // 8. What is left of
the last byte is zero.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.errors import GraphError

MAX_BITS = 14
"""Enough for 12 bits of magnitude, a sign, and the zero that has none."""

_GROUPS = 1 << 15  # of 8 indices at once: bounds the working memory


def packed_size(count: int, bits: int) -> int:
    """Bytes of ``count`` indices; raises GraphError unless bits is 1..14."""
    if not 1 <= bits <= MAX_BITS:
        raise GraphError(f"indices have 1..{MAX_BITS} bits, not {bits}")
    return -(-count * bits // 8)


def pack_bits(indices: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    """Pack indices (any shape, read in row-major order) into a (bytes,) uint8 array.

    Raises:
        GraphError: an index is negative or needs more bits.
    """
    size = packed_size(indices.size, bits)
    flat = np.ascontiguousarray(indices).reshape(-1)
    if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < 1 << bits:
        raise GraphError(f"indices {flat.min()}..{flat.max()} do not fit into {bits} bits")
    packed = np.empty(size, np.uint8)
    place = np.arange(bits, dtype=np.uint16)
    for start in range(0, flat.size, 8 * _GROUPS):  # whole bytes: 8 indices are b bytes
        some = flat[start : start + 8 * _GROUPS].astype(np.uint16)
        stream = ((some[:, None] >> place) & 1).astype(np.uint8)
        part = np.packbits(stream, bitorder="little")
        packed[start * bits // 8 :][: part.size] = part
    return packed


def unpack_bits(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint16]:
    """The (count,) indices that ``pack_bits`` packed.

    Raises:
        GraphError: the array is not one of ``packed_size`` bytes, or the bits that are left
            of the last byte are not zero.
    """
    check_packed(packed, bits, count)
    indices = np.empty(count, np.uint16)
    for start in range(0, count, 8 * _GROUPS):
        some = indices[start : start + 8 * _GROUPS]
        groups = -(-some.size // 8)
        # two bytes more than a group has: an index may begin in a byte and end two later
        wide = np.zeros(groups * bits + 2, np.uint32)
        part = packed[start * bits // 8 :][: groups * bits]
        wide[: part.size] = part
        for position in range(min(8, some.size)):
            byte, shift = divmod(position * bits, 8)
            low, middle, high = (wide[byte + k :: bits][:groups] for k in range(3))
            value = (low | middle << 8 | high << 16) >> shift & ((1 << bits) - 1)
            target = some[position::8]
            target[:] = value[: target.size]
    return indices


def check_packed(packed: NDArray[np.uint8], bits: int, count: int) -> None:
    """Raise GraphError unless the array can be ``count`` packed indices."""
    size = packed_size(count, bits)
    if packed.dtype != np.uint8 or packed.shape != (size,):
        raise GraphError(
            f"{count} indices of {bits} bits take {size} bytes of uint8, "
            f"found {packed.dtype} {packed.shape}"
        )
    spare = 8 * size - count * bits
    if spare and int(packed[-1]) >> (8 - spare):
        raise GraphError(f"the last {spare} bits after the indices are not zero")
