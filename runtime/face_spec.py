"""What of the face front end travels in the model file: how a crop becomes a network's input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.alignment import ALIGNED_SIZE, to_grey
from edgeid.runtime.errors import ImageError, ModelFormatError
from edgeid.runtime.face_quality import FaceLimits

__all__ = ["FaceSpec", "network_input"]

Image = NDArray[np.uint8]


@dataclass(frozen=True)
class FaceSpec:
    """How an aligned crop becomes the network's input, and what quality is asked for.

    Attributes:
        size: side of the aligned crop; the template fixes it at 112.
        channels: 1 (grey) or 3.
        crop: (top, left, height, width), the part of the crop the network sees.
        mean, scale: input = (grey level - mean) * scale.
        mirror: whether the network sees the mirror image too, and the embedding is the mean of
            both; a face takes two inferences then. Files without the key mean no.
        limits: see ``FaceLimits``.

    Raises:
        ModelFormatError: a value is of the wrong type or out of range.
    """

    size: int = ALIGNED_SIZE
    channels: int = 1
    crop: tuple[int, int, int, int] = (0, 8, 112, 96)
    mean: float = 127.5
    scale: float = 1 / 128
    mirror: bool = False
    limits: FaceLimits = field(default_factory=FaceLimits)

    def __post_init__(self) -> None:
        whole = (self.size, self.channels, *self.crop)
        if any(type(v) is not int for v in whole) or len(self.crop) != 4:
            raise ModelFormatError(f"face size, channels and crop must be integers, not {whole}")
        if self.size != ALIGNED_SIZE or self.channels not in (1, 3):
            raise ModelFormatError(
                f"face size {self.size} with {self.channels} channels: 112 with 1 or 3 is needed"
            )
        top, left, height, width = self.crop
        if min(top, left) < 0 or min(height, width) < 1:
            raise ModelFormatError(f"face crop {self.crop} has a negative or empty side")
        if top + height > self.size or left + width > self.size:
            raise ModelFormatError(f"face crop {self.crop} reaches beyond {self.size} pixels")
        for name, value in (("mean", self.mean), ("scale", self.scale)):
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ModelFormatError(f"face {name} is {value!r}: a number is needed")
            if not math.isfinite(value) or abs(value) > 255:
                raise ModelFormatError(f"face {name} is {value}: -255 to 255 is needed")
        if self.scale <= 0:
            raise ModelFormatError(f"face scale is {self.scale}: a positive number is needed")
        if not isinstance(self.mirror, bool):
            raise ModelFormatError(f"face mirror is {self.mirror!r}: true or false is needed")
        if not isinstance(self.limits, FaceLimits):
            raise ModelFormatError(f"face limits are a {type(self.limits).__name__}")

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "crop": list(self.crop)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FaceSpec:
        """The reverse of ``to_dict``: every key but ``mirror`` must be there, and no other.

        Raises:
            ModelFormatError: a key is missing, unknown, or its value is wrong.
        """
        known = {f.name for f in fields(cls)}
        if not isinstance(values, Mapping) or {*values, "mirror"} != known:
            got = sorted(values) if isinstance(values, Mapping) else values
            raise ModelFormatError(f"face section must have exactly {sorted(known)}, not {got!r}")
        if not isinstance(values["crop"], list | tuple):
            raise ModelFormatError(f"face crop is {values['crop']!r}: four integers are needed")
        limits = FaceLimits.from_dict(values["limits"])
        return cls(**{**values, "crop": tuple(values["crop"]), "limits": limits})


def network_input(crops: Image, spec: FaceSpec) -> NDArray[np.float32]:
    """Aligned crops as the face network takes them: float32 (N, channels, height, width).

    Args:
        crops: uint8 (N, 112, 112) grey or (N, 112, 112, 3) BGR. Grey is repeated for a network of
            three channels, which gets R, G, B; colour is turned to grey for one of one.
    """
    crops = np.asarray(crops)
    shape = (spec.size, spec.size)
    if crops.dtype != np.uint8 or crops.shape[1:] not in (shape, (*shape, 3)):
        raise ImageError(
            f"crops of {crops.dtype} {crops.shape}: uint8 (N, {spec.size}, {spec.size}) needed"
        )
    top, left, height, width = spec.crop
    part = crops[:, top : top + height, left : left + width]
    if part.ndim == 4 and spec.channels == 1:
        part = np.stack([to_grey(np.ascontiguousarray(p)) for p in part])
    if part.ndim == 3:
        planes = np.repeat(part[:, None], spec.channels, axis=1)
    else:
        planes = part[..., ::-1].transpose(0, 3, 1, 2)
    x = (planes.astype(np.float32) - np.float32(spec.mean)) * np.float32(spec.scale)
    return np.ascontiguousarray(x)
