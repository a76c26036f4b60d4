"""How a weight is stored: one class an encoding, all with the same few members.

An encoding keeps its data in named arrays (``parts``), says which shape they decode to,
and checks the parts it is built from. A file stores the parts as they are. A new encoding
is one more class and one more item of ``ENCODINGS``; parts that are equal (a codebook
that two layers share) are stored once by the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.codebook import Codebook
from edgeid.runtime.errors import GraphError
from edgeid.runtime.indexed import Indexed
from edgeid.runtime.tensor import (
    MAX_ELEMENTS,
    MAX_RANK,
    FloatArray,
    Tensor,
    all_finite,
    check_shape,
    need_parts,
    need_values,
)

__all__ = [
    "ENCODINGS",
    "MAX_ELEMENTS",
    "MAX_RANK",
    "Codebook",
    "Dense",
    "FloatArray",
    "Indexed",
    "Int8",
    "Tensor",
    "all_finite",
    "check_shape",
    "encode_float16",
    "encode_float32",
    "encode_int8",
]


@dataclass(frozen=True, eq=False)
class Dense(Tensor):
    """Plain values, float32 or float16."""

    array: NDArray[np.float32] | NDArray[np.float16]

    encoding: ClassVar[str] = "dense"

    def __post_init__(self) -> None:
        if self.array.dtype not in (np.float32, np.float16):
            raise GraphError(f"dense weights are float32 or float16, not {self.array.dtype}")
        check_shape(self.array.shape, "dense weight")
        need_values(self.array, self.array.shape, "dense weights")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    def decode(self) -> FloatArray:
        return self.array.astype(np.float32, copy=False)

    def parts(self) -> dict[str, NDArray[Any]]:
        return {"values": self.array}

    @classmethod
    def from_parts(
        cls, shape: tuple[int, ...], parts: Mapping[str, NDArray[Any]], **attributes: int
    ) -> Self:
        kind = parts["values"].dtype.name if "values" in parts else "float32"
        need_parts(parts, values=kind)
        if parts["values"].shape != shape:
            raise GraphError(f"dense weights have shape {parts['values'].shape}, need {shape}")
        return cls(parts["values"], **attributes)


@dataclass(frozen=True, eq=False)
class Int8(Tensor):
    """Symmetric 8-bit values -127..127 with one positive scale an output channel (axis 0)."""

    values: NDArray[np.int8]
    scale: FloatArray

    encoding: ClassVar[str] = "int8"

    def __post_init__(self) -> None:
        need_parts(self.parts(), values="int8", scale="float32")
        check_shape(self.values.shape, "int8 weight")
        need_values(self.scale, (self.values.shape[0],), "scales")
        if self.scale.min() <= 0:
            raise GraphError(f"int8 scales must be positive, the smallest is {self.scale.min()}")
        if self.values.min() == -128:
            raise GraphError("int8 weights lie in -127..127, found -128")
        largest = float(self.scale.max()) * 127
        if largest > float(np.finfo(np.float32).max):
            raise GraphError(f"int8 scale {self.scale.max()} decodes beyond float32")

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape

    def decode(self) -> FloatArray:
        scale = self.scale.reshape(-1, *[1] * (self.values.ndim - 1))
        return np.multiply(self.values, scale, dtype=np.float32)

    def parts(self) -> dict[str, NDArray[Any]]:
        return {"values": self.values, "scale": self.scale}

    @classmethod
    def from_parts(
        cls, shape: tuple[int, ...], parts: Mapping[str, NDArray[Any]], **attributes: int
    ) -> Self:
        need_parts(parts, values="int8", scale="float32")
        if parts["values"].shape != shape:
            raise GraphError(f"int8 weights have shape {parts['values'].shape}, need {shape}")
        return cls(parts["values"], parts["scale"], **attributes)


ENCODINGS: dict[str, type[Tensor]] = {
    kind.encoding: kind for kind in (Dense, Int8, Indexed, Codebook)
}


def encode_float32(array: NDArray[Any]) -> Dense:
    """Store as float32; raises GraphError on NaN or infinity."""
    return Dense(np.ascontiguousarray(array, dtype=np.float32))


def encode_float16(array: NDArray[Any]) -> Dense:
    """Store rounded to float16; raises GraphError where a value is beyond +-65504."""
    largest = float(np.abs(array).max())
    if not largest <= 65504:
        raise GraphError(f"float16 reaches 65504, the weight reaches {largest}: use float32")
    return Dense(np.ascontiguousarray(array, dtype=np.float16))


def encode_int8(array: NDArray[Any]) -> Int8:
    """Store as int8 with the scale max|w| / 127 of each output channel (axis 0).

    An all-zero channel takes the scale 1. The rounding error is at most half a scale.

    Raises:
        GraphError: fewer than two axes (keep biases and slopes in float), NaN or infinity.
    """
    weight = np.asarray(array, dtype=np.float32)
    if weight.ndim < 2:
        raise GraphError(f"int8 needs two axes or more, got shape {weight.shape}: use float32")
    check_shape(weight.shape, "int8 weight")
    need_values(weight, weight.shape, "weights")
    rows = weight.reshape(len(weight), -1)
    largest = np.abs(rows).max(axis=1)
    # below this a scale would be denormal and lose its precision: the channel counts as zero
    smallest = 127 * np.finfo(np.float32).tiny
    scale = np.where(largest > smallest, largest / np.float32(127), np.float32(1))
    values = np.clip(np.rint(rows / scale[:, None]), -127, 127).astype(np.int8)
    return Int8(values.reshape(weight.shape), scale)
