"""Weights made of codewords: product quantisation along the input channels (NeuralMerger).

A convolution weight (out, in, height, width) is cut along its input channels into
sub-vectors of length r, one at every kernel position; a fully connected weight (out, in)
is a 1x1 convolution. The sub-vectors that read the same r channels form a sub-space, and
each sub-space has a codebook of K codewords. A weight stores which codeword each of its
sub-vectors is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.errors import GraphError
from edgeid.runtime.packing import check_packed, pack_bits, unpack_bits
from edgeid.runtime.tensor import (
    FloatArray,
    Tensor,
    all_finite,
    check_shape,
    need_parts,
    need_values,
)

CODEWORDS = (16, 32, 64, 256)
LENGTHS = (2, 4, 8)


@dataclass(frozen=True, eq=False)
class Codebook(Tensor):
    """Codewords of each sub-space, and bit-packed indices of log2(K) bits.

    Two tensors may hold the same codewords; a file then stores them once. They may have more
    sub-spaces than the weight needs, so that a narrower layer shares those of a wider one.

    Attributes:
        codewords: (sub-spaces, K, r) int8 in -127..127, float16 or float32; K is 16, 32, 64
            or 256, r is 2, 4 or 8.
        scale: (sub-spaces,) float32, positive; codeword = int8 * scale. None for floats.
        indices: packed (``packing``), in the order (sub-space, kernel row, kernel column,
            output channel), which is the order in which a look-up kernel reads them.
        weight_shape: (out, in, height, width) or (out, in). Where r does not divide ``in``,
            the last codewords reach beyond it, and what is beyond is dropped.
    """

    codewords: NDArray[np.int8] | NDArray[np.float16] | NDArray[np.float32]
    scale: FloatArray | None
    indices: NDArray[np.uint8]
    weight_shape: tuple[int, ...]

    encoding: ClassVar[str] = "codebook"

    def __post_init__(self) -> None:
        _check_form(self.codewords, self.weight_shape)
        check_packed(self.indices, self.bits, _index_count(self.weight_shape, self.length))
        self._check_codewords()

    def _check_codewords(self) -> None:
        if self.scale is None:
            if self.codewords.dtype not in (np.float32, np.float16):
                raise GraphError(f"{self.codewords.dtype} codewords need a scale, or floats none")
            need_values(self.codewords, self.codewords.shape, "codewords")
            return
        need_parts(self.parts(), codewords="int8", scale="float32", indices="uint8")
        need_values(self.scale, (len(self.codewords),), "scales")
        if self.scale.min() <= 0:
            raise GraphError(f"scales must be positive, the smallest is {self.scale.min()}")
        if float(self.scale.max()) * 127 > float(np.finfo(np.float32).max):
            raise GraphError(f"scale {self.scale.max()} decodes beyond float32")
        if self.codewords.min() == -128:
            raise GraphError("int8 codewords lie in -127..127, found -128")

    @property
    def length(self) -> int:
        """Length r of a sub-vector."""
        return int(self.codewords.shape[2])

    @property
    def bits(self) -> int:
        """Bits of one index, log2(K)."""
        return int(self.codewords.shape[1]).bit_length() - 1

    @property
    def shape(self) -> tuple[int, ...]:
        return self.weight_shape

    def decode_codewords(self) -> FloatArray:
        """(sub-spaces, K, r) as float32."""
        if self.scale is None:
            return self.codewords.astype(np.float32, copy=False)
        return np.multiply(self.codewords, self.scale[:, None, None], dtype=np.float32)

    def unpack_indices(self) -> NDArray[np.uint16]:
        """(sub-spaces of the weight, height, width, out)."""
        shape = index_shape(self.weight_shape, self.length)
        flat = unpack_bits(self.indices, self.bits, int(np.prod(shape)))
        return flat.reshape(shape)

    def decode(self) -> FloatArray:
        # one sub-space after the other: the padding of all at once could be 8 times the weight
        channels, length = self.weight_shape[1], self.length
        height, width = self.weight_shape[2:] or (1, 1)
        weight = np.empty((self.weight_shape[0], channels, height, width), np.float32)
        tables = self.decode_codewords()
        for space, indices in enumerate(self.unpack_indices()):
            part = weight[:, space * length : (space + 1) * length]
            vectors = tables[space, :, : part.shape[1]][indices]  # (height, width, out, channels)
            part[:] = vectors.transpose(2, 3, 0, 1)
        return weight.reshape(self.weight_shape)

    def parts(self) -> dict[str, NDArray[Any]]:
        parts: dict[str, NDArray[Any]] = {"codewords": self.codewords, "indices": self.indices}
        return parts if self.scale is None else parts | {"scale": self.scale}

    @classmethod
    def from_parts(
        cls, shape: tuple[int, ...], parts: Mapping[str, NDArray[Any]], **attributes: int
    ) -> Self:
        kind = parts["codewords"].dtype.name if "codewords" in parts else "int8"
        dtypes = {"codewords": kind, "indices": "uint8"}
        need_parts(parts, **dtypes | ({"scale": "float32"} if kind == "int8" else {}))
        scale = parts.get("scale")
        return cls(parts["codewords"], scale, parts["indices"], shape, **attributes)


def _check_form(codewords: NDArray[Any], shape: tuple[int, ...]) -> None:
    check_shape(shape, "codebook weight")
    if len(shape) not in (2, 4):
        raise GraphError(f"a codebook makes weights of 2 or 4 axes, not {shape}")
    if codewords.ndim != 3:
        raise GraphError(f"codewords have 3 axes, found shape {codewords.shape}")
    spaces, count, length = codewords.shape
    if count not in CODEWORDS or length not in LENGTHS:
        raise GraphError(
            f"a codebook has {CODEWORDS} codewords of length {LENGTHS}, found {count} of {length}"
        )
    if spaces < sub_spaces(shape, length):
        raise GraphError(
            f"{spaces} sub-spaces of length {length}; {shape} needs {sub_spaces(shape, length)}"
        )


def sub_spaces(shape: tuple[int, ...], length: int) -> int:
    """How many sub-spaces a weight of (out, in, ...) has."""
    return -(-shape[1] // length)


def index_shape(shape: tuple[int, ...], length: int) -> tuple[int, int, int, int]:
    """(sub-spaces, height, width, out) of the indices of a weight (out, in[, height, width])."""
    height, width = shape[2:] or (1, 1)
    return sub_spaces(shape, length), height, width, shape[0]


def _index_count(shape: tuple[int, ...], length: int) -> int:
    return int(np.prod(index_shape(shape, length)))


def quantise_codewords(codewords: FloatArray) -> tuple[NDArray[np.int8], FloatArray]:
    """Float (sub-spaces, K, r) -> int8 and the scale max|c| / 127 of each sub-space.

    A sub-space of zeros takes the scale 1. The error is at most half a scale.
    """
    if not all_finite(codewords):
        raise GraphError("codewords hold NaN or infinity")
    largest = np.abs(codewords).max(axis=(1, 2)).astype(np.float32)
    # below this a scale would be denormal and lose its precision: the sub-space counts as zero
    smallest = 127 * np.finfo(np.float32).tiny
    scale = np.where(largest > smallest, largest / np.float32(127), np.float32(1))
    values = np.clip(np.rint(codewords / scale[:, None, None]), -127, 127)
    return values.astype(np.int8), scale


def make_codebook(
    codewords: NDArray[Any],
    indices: NDArray[np.integer],
    shape: tuple[int, ...],
    scale: FloatArray | None = None,
) -> Codebook:
    """Store a weight as codewords. Hand the same arrays to two weights that share them.

    Args:
        codewords: (sub-spaces, K, r), float32 or float16; or int8 with its scale, as
            ``quantise_codewords`` gives them.
        indices: (sub-spaces, height, width, out), see ``index_shape``.
        shape: of the weight.
        scale: (sub-spaces,) of int8 codewords.

    Raises:
        GraphError: they do not fit together.
    """
    _check_form(codewords, shape)
    needed = index_shape(shape, codewords.shape[2])
    if indices.shape != needed:
        raise GraphError(f"indices have shape {indices.shape}, weight {shape} needs {needed}")
    bits = codewords.shape[1].bit_length() - 1
    return Codebook(codewords, scale, pack_bits(indices, bits), shape)
