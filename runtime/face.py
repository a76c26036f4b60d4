"""The face front end: image -> one face, five points, an aligned crop, its quality.

    detect -> check that the candidate looks like a face -> five points -> second, closer look ->
    similarity transform to 112x112 grey -> quality

``FaceSpec`` is the part of it that travels in the model file, so that a network sees on the
device what it saw in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from . import alignment
from .alignment import align, similarity, to_grey
from .detection import Box, Detection, Detector, make_detector, overlap
from .errors import ImageError, InputError, ModelFormatError, NoFaceError, SeveralFacesError
from .face_quality import FaceLimits, FaceQuality, measure
from .image import ImageSource, load_image

__all__ = [
    "FaceFrontEnd",
    "FaceLimits",
    "FaceQuality",
    "FaceSample",
    "FaceSpec",
    "align",
    "network_input",
    "similarity",
]

Image = NDArray[np.uint8]
Points = NDArray[np.float32]
Locate = Callable[[Image], Points]

# Two looks at each candidate, displaced against each other: (scale, degrees, right, down), in
# pixels of the landmark crop. On a face both give the same points; on anything else the points
# tend to stay in the middle of the crop and so move with it.
_FIRST_LOOKS = ((0.88, 0.0, 4.0, 3.0), (1.12, 0.0, -4.0, -3.0))
_SECOND_LOOKS = ((0.95, -5.0, 2.0, -2.0), (1.05, 5.0, -2.0, 2.0))
# In inter-ocular distances. True faces of the training crops: 99 % below 0.20.
_MAX_DISAGREEMENT = 0.22
_MAX_CANDIDATES = 6


@dataclass(frozen=True)
class FaceSpec:
    """How an aligned crop becomes the network's input, and what quality is asked for.

    Attributes:
        size: side of the aligned crop; the template fixes it at 112.
        channels: 1 (grey) or 3.
        crop: (top, left, height, width), the part of the crop the network sees.
        mean, scale: input = (grey level - mean) * scale.
        limits: see ``FaceLimits``.

    Raises:
        ModelFormatError: a value is of the wrong type or out of range.
    """

    size: int = alignment.ALIGNED_SIZE
    channels: int = 1
    crop: tuple[int, int, int, int] = (0, 8, 112, 96)
    mean: float = 127.5
    scale: float = 1 / 128
    limits: FaceLimits = field(default_factory=FaceLimits)

    def __post_init__(self) -> None:
        whole = (self.size, self.channels, *self.crop)
        if any(type(v) is not int for v in whole) or len(self.crop) != 4:
            raise ModelFormatError(f"face size, channels and crop must be integers, not {whole}")
        if self.size != alignment.ALIGNED_SIZE or self.channels not in (1, 3):
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
        if not isinstance(self.limits, FaceLimits):
            raise ModelFormatError(f"face limits are a {type(self.limits).__name__}")

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "crop": list(self.crop)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FaceSpec:
        """The reverse of ``to_dict``: every key must be there, and no other.

        Raises:
            ModelFormatError: a key is missing, unknown, or its value is wrong.
        """
        known = {f.name for f in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != known:
            got = sorted(values) if isinstance(values, Mapping) else values
            raise ModelFormatError(f"face section must have exactly {sorted(known)}, not {got!r}")
        if not isinstance(values["crop"], list | tuple):
            raise ModelFormatError(f"face crop is {values['crop']!r}: four integers are needed")
        limits = FaceLimits.from_dict(values["limits"])
        return cls(**{**values, "crop": tuple(values["crop"]), "limits": limits})


@dataclass(frozen=True, eq=False)
class FaceSample:
    """One face: aligned grey crop (112, 112), box (x, y, w, h) and points (5, 2) in the image."""

    crop: Image
    box: Box
    points: Points
    quality: FaceQuality


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A detection with its first points, and how much it weighs among the others."""

    box: Box
    points: Points
    weight: float


class FaceFrontEnd:
    """Reads faces from images.

    Args:
        spec: quality limits and the network's view.
        locate: landmark crops uint8 (N, 96, 96) -> points float32 (N, 5, 2) in their pixels; not
            called for detections that bring points of their own.
        detector: a detector, None or "haar", or the path of a YuNet file.
    """

    def __init__(
        self, spec: FaceSpec, locate: Locate, detector: Detector | str | None = None
    ) -> None:
        self.spec = spec
        self._locate = locate
        self._detector = make_detector(detector)

    def read(
        self,
        image: ImageSource,
        checks: bool = True,
        several: Literal["refuse", "largest"] = "refuse",
    ) -> FaceSample:
        """The face in an image.

        Every face weighs its area times the square of its centrality (1 in the middle of the
        image, 0 in a corner). The heaviest is the one that is read. Another face is a rival when
        it weighs at least 0.4 of that: a bystander half as tall behind the user is none, two
        people side by side are.

        Args:
            image: see ``load_image``.
            checks: whether the quality limits must be kept; with False the quality is only
                measured.
            several: "refuse" an image with rivals, or take the "largest" (heaviest) face anyhow.

        Raises:
            ImageError: see ``load_image``.
            NoFaceError: no face was found.
            SeveralFacesError: a rival was found.
            FaceTooSmallError, FaceExposureError, FaceBlurredError, FacePoseError: a limit of
                ``spec.limits`` is not kept.
        """
        if several not in ("refuse", "largest"):
            raise InputError(f"several={several!r}: 'refuse' or 'largest' is needed")
        picture = load_image(image)
        grey = to_grey(picture)
        found = self._candidates(picture, grey)
        if not found:
            height, width = grey.shape
            raise NoFaceError(
                f"no face was found in the {width} x {height} image: "
                "face the camera, in good light, nearer to it"
            )
        rivals = [c for c in found if c.weight >= 0.4 * found[0].weight]
        if several == "refuse" and len(rivals) > 1:
            raise SeveralFacesError(
                f"{len(rivals)} faces of similar size were found: one person at a time"
            )
        sample = self._sample(grey, found[0], len(found))
        if checks:
            self.spec.limits.check(sample.quality)
        return sample

    def _candidates(self, picture: Image, grey: Image) -> list[_Candidate]:
        """The faces found with the least effort that finds any, heaviest first."""
        for effort in range(self._detector.efforts):
            found = self._plausible(grey, self._detector.detect(picture, effort))
            if found:
                return found
        return []

    def _plausible(self, grey: Image, detections: Sequence[Detection]) -> list[_Candidate]:
        """The detections on whose points two looks agree, each face once, heaviest first."""
        weights = [(_weight(d.box, grey.shape), d) for d in detections]
        kept: list[_Candidate] = []
        for weight, d in sorted(weights, key=lambda w: -w[0])[:_MAX_CANDIDATES]:
            points = d.points
            if points is None:
                points, disagreement = self._look(grey, alignment.box_to_crop(d.box), _FIRST_LOOKS)
                if disagreement > _MAX_DISAGREEMENT:
                    continue
            box = d.box if d.points is not None else _face_box(points)
            if all(overlap(box, other.box) < 0.5 for other in kept):
                kept.append(_Candidate(d.box, points, weight))
        return kept

    def _sample(self, grey: Image, face: _Candidate, faces: int) -> FaceSample:
        crop = align(grey, face.points)
        return FaceSample(crop, face.box, face.points, measure(crop, face.points, faces))

    def _look(
        self, grey: Image, matrix: NDArray[np.float64], looks: Sequence[tuple[float, ...]]
    ) -> tuple[Points, float]:
        """Mean points (5, 2) of several looks, and how far apart they are (eye distances)."""
        matrices = [_displaced(matrix, *look) for look in looks]
        crops = [alignment.cut(grey, m, alignment.LANDMARK_SIZE) for m in matrices]
        seen = self._locate(np.stack(crops))
        if seen.shape != (len(crops), 5, 2):
            raise ImageError(f"landmarks of shape {seen.shape}: ({len(crops)}, 5, 2) expected")
        back = [alignment.invert(m) for m in matrices]
        points = np.stack([alignment.apply(m, p) for m, p in zip(back, seen, strict=True)])
        mean = points.mean(0).astype(np.float32)
        apart = float(np.linalg.norm(points - mean, axis=2).mean())
        return mean, 2 * apart / _eye_distance(mean)


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


def _weight(box: Box, shape: tuple[int, ...]) -> float:
    """Area times squared centrality, see ``FaceFrontEnd.read``."""
    x, y, width, height = box
    middle = (shape[1] / 2, shape[0] / 2)
    away = math.dist((x + width / 2, y + height / 2), middle) / math.hypot(*middle)
    return width * height * max(0.05, 1 - away) ** 2


def _eye_distance(points: NDArray[Any]) -> float:
    """Eye distance as seen from the front, in the points' pixels; never 0."""
    scale = alignment.similarity_scale(similarity(alignment.TEMPLATE, points))
    return max(scale * float(alignment.TEMPLATE[1, 0] - alignment.TEMPLATE[0, 0]), 1e-3)


def _face_box(points: NDArray[Any]) -> Box:
    """The square around the points that a Haar detector would have drawn."""
    side = 2.7 * _eye_distance(points)
    x, y = points.mean(0) - (side / 2, 0.58 * side)
    return float(x), float(y), side, side


def _displaced(
    matrix: NDArray[np.float64], scale: float, degrees: float, right: float, down: float
) -> NDArray[np.float64]:
    """Another look: the crop's content enlarged and turned about its middle, then shifted."""
    along = scale * math.cos(math.radians(degrees))
    across = scale * math.sin(math.radians(degrees))
    turn = np.array([(along, -across), (across, along)])
    middle = (alignment.LANDMARK_SIZE - 1) / 2
    shift = turn @ (matrix[:, 2] - middle) + middle + (right, down)
    return np.column_stack([turn @ matrix[:, :2], shift])
