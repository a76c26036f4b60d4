"""Is this face picture good enough to decide on? Figures, and limits on them.

Everything is measured on the aligned crop or on the five points, so the figures mean the same
for every camera. The limits are lenient: they keep out pictures on which a face network
guesses (defocus, darkness, profiles), not imperfect ones.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.alignment import TEMPLATE, apply, similarity
from edgeid.runtime.errors import (
    FaceBlurredError,
    FaceExposureError,
    FacePoseError,
    FaceTooSmallError,
    ModelFormatError,
    QualityError,
)

__all__ = ["FaceLimits", "FaceQuality", "measure", "pose", "sharpness"]

# The part of the aligned crop that is skin, eyes and mouth whatever the hair and background.
_INNER = (slice(24, 104), slice(20, 92))
# How far the nose tip stands out from the plane of eyes and mouth corners, in template pixels
# (inter-ocular distance 35): about half the inter-ocular distance.
_NOSE_HEIGHT = 18.0
# On the training crops the nose lies this much lower than the template's, in distances from eyes
# to mouth (median): so much is not a lowered head.
_NOSE_DROP = 0.073


@dataclass(frozen=True)
class FaceQuality:
    """What was measured.

    Attributes:
        eye_distance: pixels of the original image between the eyes; for turned faces, what it
            would be seen from the front.
        sharpness: energy of the finest structure over the crop's contrast, see ``sharpness``.
        brightness: mean grey level of the inner face, 0 to 255.
        contrast: standard deviation of the grey levels of the inner face.
        dark_fraction, bright_fraction: share of the inner face below 6 and above 249.
        yaw, pitch, roll: degrees, rough (about 10): to the image's right, up, clockwise.
        faces: faces found in the image, before one was chosen.
    """

    eye_distance: float
    sharpness: float
    brightness: float
    contrast: float
    dark_fraction: float
    bright_fraction: float
    yaw: float
    pitch: float
    roll: float
    faces: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class FaceLimits:
    """What is still accepted; the units are those of ``FaceQuality``.

    Set on 1,500 aligned training crops. Sharpness: 99.9 % of them have more than 0.10, none has
    more than 0.053 after a Gaussian blur of 4 pixels. Brightness: all are between 39 and 214.
    Yaw: 0.5 % are above 58 degrees.
    """

    min_eye_distance: float = 18.0
    min_sharpness: float = 0.06
    min_brightness: float = 30.0
    max_brightness: float = 225.0
    min_contrast: float = 12.0
    max_dark_fraction: float = 0.5
    max_bright_fraction: float = 0.4
    max_yaw: float = 60.0
    max_pitch: float = 50.0
    max_roll: float = 45.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise ModelFormatError(f"face limit {field.name} is {value!r}: a number is needed")
            if not (math.isfinite(value) and 0 <= value <= 10_000):
                raise ModelFormatError(f"face limit {field.name} is {value}: 0 to 10,000 is needed")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> FaceLimits:
        known = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != known:
            raise ModelFormatError(f"face limits must be exactly {sorted(known)}, not {values!r}")
        return cls(**values)

    def check(self, quality: FaceQuality) -> None:
        """Raise the error of the first limit that is not kept; QualityError's subclasses."""
        error = next(iter(self.failures(quality)), None)
        if error is not None:
            raise error

    def failures(self, q: FaceQuality) -> list[QualityError]:
        """One error for each limit that is not kept, the most basic first."""
        return [*self._picture(q), *self._pose(q)]

    def _picture(self, q: FaceQuality) -> list[QualityError]:
        """Size, light and sharpness."""
        return [
            *_too_low(
                q.eye_distance,
                self.min_eye_distance,
                FaceTooSmallError,
                "{:.0f} pixels between the eyes, {:.0f} needed: come closer",
            ),
            *_too_low(
                q.brightness,
                self.min_brightness,
                FaceExposureError,
                "the face is too dark (mean {:.0f} of 255, {:.0f} needed): add light",
            ),
            *_too_high(
                q.brightness,
                self.max_brightness,
                FaceExposureError,
                "the face is too bright (mean {:.0f} of 255, at most {:.0f}): less light",
            ),
            *_too_high(
                q.dark_fraction,
                self.max_dark_fraction,
                FaceExposureError,
                "{:.0%} of the face is black (at most {:.0%}): light it from the front",
            ),
            *_too_high(
                q.bright_fraction,
                self.max_bright_fraction,
                FaceExposureError,
                "{:.0%} of the face is white (at most {:.0%}): turn from the light",
            ),
            *_too_low(
                q.contrast,
                self.min_contrast,
                FaceExposureError,
                "the face has too little contrast ({:.1f} grey levels, {:.1f} needed)",
            ),
            *_too_low(
                q.sharpness,
                self.min_sharpness,
                FaceBlurredError,
                "the face is blurred (sharpness {:.3f}, {:.3f} needed): hold still, focus",
            ),
        ]

    def _pose(self, q: FaceQuality) -> list[QualityError]:
        return [
            *_too_high(
                abs(q.yaw),
                self.max_yaw,
                FacePoseError,
                "the head is turned {:.0f} degrees (at most {:.0f}): look at the camera",
            ),
            *_too_high(
                abs(q.pitch),
                self.max_pitch,
                FacePoseError,
                "the head is raised or lowered {:.0f} degrees (at most {:.0f})",
            ),
            *_too_high(
                abs(q.roll),
                self.max_roll,
                FacePoseError,
                "the head is tilted {:.0f} degrees (at most {:.0f}): hold it upright",
            ),
        ]


def _too_low(value: float, limit: float, kind: type[QualityError], text: str) -> list[QualityError]:
    return [kind(text.format(value, limit))] if value < limit else []


def _too_high(
    value: float, limit: float, kind: type[QualityError], text: str
) -> list[QualityError]:
    return [kind(text.format(value, limit))] if value > limit else []


def measure(crop: NDArray[np.uint8], points: NDArray[Any], faces: int = 1) -> FaceQuality:
    """The quality of an aligned crop (112, 112) whose points (5, 2) are in the original image."""
    inner = crop[_INNER]
    to_image = similarity(TEMPLATE, points)
    scale = math.hypot(to_image[0, 0], to_image[1, 0])
    yaw, pitch, roll = pose(points)
    return FaceQuality(
        eye_distance=scale * float(TEMPLATE[1, 0] - TEMPLATE[0, 0]),
        sharpness=sharpness(crop),
        brightness=float(inner.mean()),
        contrast=float(inner.std()),
        dark_fraction=float((inner < 6).mean()),
        bright_fraction=float((inner > 249).mean()),
        yaw=yaw,
        pitch=pitch,
        roll=roll,
        faces=faces,
    )


def sharpness(crop: NDArray[np.uint8]) -> float:
    """Variance of the Laplacian over the variance of the grey levels, in the inner face.

    The Laplacian (Pech-Pacheco et al. 2000) is taken at half the crop's resolution: small faces,
    which hold no finer structure, then pass, and pixel noise counts less. Dividing by the
    variance makes the figure independent of contrast and exposure.
    """
    import cv2

    half = cv2.resize(crop, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    half = np.asarray(half, np.float32)
    inner = tuple(slice(part.start // 2, part.stop // 2) for part in _INNER)
    laplacian = np.asarray(cv2.Laplacian(half, cv2.CV_32F), np.float32)
    # One grey level of rounding noise must not look like structure in a flat crop.
    return float(laplacian[inner].var() / (half[inner].var() + 4.0))


def pose(points: NDArray[Any]) -> tuple[float, float, float]:
    """Yaw, pitch and roll in degrees from five points, by weak perspective.

    The nose stands out from the plane of the other four points: turning the head moves it
    sideways between them, nodding moves it up and down. Both are taken relative to the distance
    from the eyes to the mouth, after the tilt has been removed.
    """
    to_template = similarity(points, TEMPLATE)
    roll = -math.degrees(math.atan2(to_template[1, 0], to_template[0, 0]))
    upright, usual = apply(to_template, points), TEMPLATE
    sideways, height = _nose(upright)
    usual_sideways, usual_height = _nose(usual)
    length = float(usual[3:, 1].mean() - usual[:2, 1].mean())
    yaw = _arcsine((sideways - usual_sideways) * length / _NOSE_HEIGHT)
    pitch = _arcsine((usual_height + _NOSE_DROP - height) * length / _NOSE_HEIGHT)
    return yaw, pitch, roll


def _nose(points: NDArray[Any]) -> tuple[float, float]:
    """The nose sideways of, and along, the line from eyes to mouth, in lengths of that line."""
    eyes, mouth = points[:2].mean(0), points[3:].mean(0)
    axis = mouth - eyes
    length = max(float(axis @ axis), 1e-6)
    offset = points[2] - eyes
    across = float(offset[0] * axis[1] - offset[1] * axis[0])
    return across / length, float(offset @ axis) / length


def _arcsine(value: float) -> float:
    return math.degrees(math.asin(min(1.0, max(-1.0, value))))
