"""Quality figures and limits: small, blurred, dark, turned faces."""

from __future__ import annotations

import math
import zipfile
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgeid.runtime.alignment import TEMPLATE, align
from edgeid.runtime.errors import (
    FaceBlurredError,
    FaceExposureError,
    FacePoseError,
    FaceTooSmallError,
)
from edgeid.runtime.face import FaceLimits
from edgeid.runtime.face_quality import measure, pose, sharpness
from tests.data import DATA, needs_data
from tests.painted_faces import MIDDLE, Image, front_end, painted, turned


def read_quality(image: Image, points: NDArray[Any] = MIDDLE) -> Any:
    return front_end(points).read(image)


def test_tiny_faces() -> None:
    points = (TEMPLATE - 56) * 0.4 + (160, 120)
    with pytest.raises(FaceTooSmallError, match="14 pixels between the eyes, 18 needed"):
        read_quality(painted(points), points)


def test_blurred_faces() -> None:
    blurred = np.asarray(cv2.GaussianBlur(painted(MIDDLE), (0, 0), 12), np.uint8)
    with pytest.raises((FaceBlurredError, FaceExposureError)):
        read_quality(blurred)


@pytest.mark.parametrize(("gain", "offset"), [(0.1, 0), (0.3, 200), (0.02, 120), (8, -200)])
def test_exposure(gain: float, offset: float) -> None:
    spoilt = np.clip(painted(MIDDLE) * float(gain) + offset, 0, 255).astype(np.uint8)
    with pytest.raises(FaceExposureError):
        read_quality(spoilt)


@pytest.mark.parametrize("degrees", [-80, 60, 170])
def test_tilted_faces(degrees: float) -> None:
    points = turned(TEMPLATE - 56, 1, degrees, (160, 120))
    with pytest.raises(FacePoseError, match=f"tilted {abs(degrees)}"):
        read_quality(painted(points), points)


def test_checks_can_be_left_out() -> None:
    sample = front_end(MIDDLE).read(painted(MIDDLE) // 20, checks=False)
    assert sample.quality.brightness < 30
    assert set(sample.quality.to_dict()) >= {"sharpness", "yaw", "faces"}


def test_pose_of_the_template() -> None:
    yaw, pitch, roll = pose(TEMPLATE)
    assert yaw == pytest.approx(0, abs=1e-6)
    assert roll == pytest.approx(0, abs=1e-6)
    assert 0 <= pitch < 15  # usual noses are a little lower than the template's


@pytest.mark.parametrize("degrees", [-40, 15, 30])
def test_pose_of_a_turned_head(degrees: float) -> None:
    """Points of a head in three dimensions, turned and seen from afar."""
    depth = np.array([0, 0, 18, 0, 0.0])
    head = np.column_stack([TEMPLATE - TEMPLATE[[0, 1, 3, 4]].mean(0), depth])
    angle = math.radians(degrees)
    seen = head[:, :2].copy()
    seen[:, 0] = head[:, 0] * math.cos(angle) + head[:, 2] * math.sin(angle)
    yaw, _, roll = pose(turned(seen, 2.5, 25, (100, 80)))
    # The template's nose is not on its axis, and the fit to it tilts a little when it moves.
    assert yaw == pytest.approx(degrees, abs=8)
    assert roll == pytest.approx(25, abs=6)


def test_sharpness_ignores_gain_and_falls_with_blur() -> None:
    crop = align(painted(MIDDLE), MIDDLE)
    assert sharpness(crop // 2) == pytest.approx(sharpness(crop), rel=0.1)
    blurred = [
        sharpness(np.asarray(cv2.GaussianBlur(crop, (0, 0), s), np.uint8)) for s in (1, 2, 4, 8)
    ]
    assert blurred == sorted(blurred, reverse=True)
    assert sharpness(np.full((112, 112), 99, np.uint8)) == 0


@needs_data
def test_limits_on_aligned_training_crops() -> None:
    """Nearly all crops pass; all fail when blurred by 4 pixels, very dark or washed out."""
    with zipfile.ZipFile(DATA / "faces" / "train.zip") as archive:
        names = [name for name in sorted(archive.namelist()) if name.endswith(".jpg")][::170]
        crops = [
            np.asarray(cv2.imdecode(np.frombuffer(archive.read(n), np.uint8), 0)) for n in names
        ]
    limits = FaceLimits(max_pitch=90)
    passed = 0
    for crop in crops:
        crop = np.asarray(cv2.resize(crop, (112, 112), interpolation=cv2.INTER_CUBIC), np.uint8)
        passed += not limits.failures(measure(crop, TEMPLATE))
        spoilt = {
            FaceBlurredError: cv2.GaussianBlur(crop, (0, 0), 4),
            FaceExposureError: crop // 10,
        }
        for kind, image in spoilt.items():
            failed = limits.failures(measure(np.asarray(image, np.uint8), TEMPLATE))
            assert any(isinstance(error, kind) for error in failed)
        washed = np.clip(crop.astype(int) * 2 + 150, 0, 255).astype(np.uint8)
        assert limits.failures(measure(washed, TEMPLATE))
    assert passed >= 0.98 * len(crops)
