"""Weights that take few distinct values: a dictionary of the values, and an index a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.errors import GraphError
from edgeid.runtime.packing import check_packed, pack_bits, unpack_bits
from edgeid.runtime.tensor import FloatArray, Tensor, check_shape, need_parts, need_values


@dataclass(frozen=True, eq=False)
class Indexed(Tensor):
    """Bit-packed indices into a dictionary of values with their signs (paper 003).

    Attributes:
        dictionary: (n,) float32 or float16, 1 <= n <= 2^bits.
        indices: packed (``packing``), in the row-major order of the weight; each below n.
        weight_shape: shape after decoding.
        bits: of one index, 1..14.
    """

    dictionary: NDArray[np.float32] | NDArray[np.float16]
    indices: NDArray[np.uint8]
    weight_shape: tuple[int, ...]
    bits: int

    encoding: ClassVar[str] = "indexed"
    attributes: ClassVar[tuple[str, ...]] = ("bits",)

    def __post_init__(self) -> None:
        count = check_shape(self.weight_shape, "indexed weight")
        if self.dictionary.dtype not in (np.float32, np.float16):
            raise GraphError(f"a dictionary is float32 or float16, not {self.dictionary.dtype}")
        check_packed(self.indices, self.bits, count)
        size = self.dictionary.size
        if not 1 <= size <= 1 << self.bits:
            raise GraphError(
                f"a dictionary for {self.bits} bits has 1..{1 << self.bits} values, not {size}"
            )
        need_values(self.dictionary, (size,), "dictionary values")
        if size < 1 << self.bits:
            largest = int(unpack_bits(self.indices, self.bits, count).max())
            if largest >= size:
                raise GraphError(f"index {largest} is beyond the dictionary of {size} values")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight_shape

    def decode(self) -> FloatArray:
        indices = unpack_bits(self.indices, self.bits, int(np.prod(self.weight_shape)))
        return self.dictionary.astype(np.float32)[indices].reshape(self.weight_shape)

    def parts(self) -> dict[str, NDArray[Any]]:
        return {"dictionary": self.dictionary, "indices": self.indices}

    @classmethod
    def from_parts(
        cls, shape: tuple[int, ...], parts: Mapping[str, NDArray[Any]], **attributes: int
    ) -> Self:
        kind = parts["dictionary"].dtype.name if "dictionary" in parts else "float32"
        need_parts(parts, dictionary=kind, indices="uint8")
        return cls(parts["dictionary"], parts["indices"], shape, **attributes)


def index_bits(size: int) -> int:
    """Bits of an index into a dictionary of ``size`` values, at least 1."""
    return max(1, (size - 1).bit_length())


def make_indexed(
    dictionary: NDArray[np.float32] | NDArray[np.float16], indices: NDArray[np.integer]
) -> Indexed:
    """Store a weight as ``dictionary[indices]``, each index in as few bits as will do.

    Raises:
        GraphError: the dictionary is empty, too large or not finite; an index is beyond it.
    """
    bits = index_bits(dictionary.size)
    return Indexed(dictionary, pack_bits(indices, bits), indices.shape, bits)
