"""What every stored weight has, and the checks that encodings share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.errors import GraphError

FloatArray = NDArray[np.float32]
MAX_RANK = 6
MAX_ELEMENTS = 1 << 27  # of one tensor, decoded


def check_shape(shape: tuple[int, ...], where: str) -> int:
    """Number of values of a stored shape; raises GraphError outside the limits."""
    if not 1 <= len(shape) <= MAX_RANK:
        raise GraphError(f"{where}: {len(shape)} axes, allowed are 1..{MAX_RANK}")
    if min(shape) < 1 or max(shape) > MAX_ELEMENTS or math.prod(shape) > MAX_ELEMENTS:
        raise GraphError(f"{where}: shape {shape} is empty or above {MAX_ELEMENTS} values")
    return math.prod(shape)


def all_finite(array: NDArray[Any]) -> bool:
    """Whether a non-empty float array has neither NaN nor infinity, without a copy of it."""
    # minimum and maximum carry NaN along, so two scalars tell
    return math.isfinite(float(array.min())) and math.isfinite(float(array.max()))


class Tensor(ABC):
    """A stored weight."""

    encoding: ClassVar[str]
    attributes: ClassVar[tuple[str, ...]] = ()
    """Names of the whole numbers (bits, sub-vector length ...) that the encoding needs
    beside its parts; each is an attribute of the object and an argument of from_parts."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape after decoding."""

    @abstractmethod
    def decode(self) -> FloatArray:
        """The weight as float32; may be a read-only view on what is stored."""

    @abstractmethod
    def parts(self) -> dict[str, NDArray[Any]]:
        """The arrays to store, by name."""

    @classmethod
    @abstractmethod
    def from_parts(
        cls, shape: tuple[int, ...], parts: Mapping[str, NDArray[Any]], **attributes: int
    ) -> Self:
        """Build from stored arrays; raises GraphError where they do not make ``shape``."""

    @property
    def nbytes(self) -> int:
        """Bytes of the parts."""
        return sum(part.nbytes for part in self.parts().values())


def need_parts(parts: Mapping[str, NDArray[Any]], **dtypes: str) -> None:
    """Raise GraphError unless there are exactly these parts, of these dtypes."""
    found = {name: part.dtype.name for name, part in parts.items()}
    if found != dtypes:
        raise GraphError(f"the encoding needs the parts {dtypes}, found {found}")


def need_values(part: NDArray[Any], shape: tuple[int, ...], what: str) -> None:
    """Raise GraphError unless the part has the shape and is finite."""
    if part.shape != shape:
        raise GraphError(f"{what} have shape {part.shape}, need {shape}")
    if part.dtype.kind == "f" and not all_finite(part):
        raise GraphError(f"{what} hold NaN or infinity")
