"""Pictures with painted eyes, and a detector that knows where the faces are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.alignment import TEMPLATE, similarity
from edgeid.runtime.detection import Detection
from edgeid.runtime.face import FaceFrontEnd, FaceSpec

Image = NDArray[np.uint8]
TEXTURE = np.random.default_rng(0).integers(60, 200, (28, 28)).astype(np.uint8)


def turned(points: Any, scale: float, degrees: float, shift: tuple[float, float]) -> Any:
    angle = math.radians(degrees)
    turn = np.array([(math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))])
    return scale * np.asarray(points) @ turn.T + shift


def painted(points: NDArray[Any], shape: tuple[int, int] = (240, 320)) -> Image:
    """A textured picture with a white square on the left eye's place and a black on the right."""
    picture = np.asarray(cv2.resize(TEXTURE, shape[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)
    for (x, y), level in zip(points[:2].round().astype(int), (255, 0), strict=True):
        picture[y - 4 : y + 5, x - 4 : x + 5] = level
    return picture


class Faces:
    """A detector that knows where the faces are; the points come with the boxes."""

    efforts = 1

    def __init__(self, points: Sequence[NDArray[Any]]) -> None:
        self.points = points

    def detect(self, image: Image, effort: int = 0) -> list[Detection]:  # noqa: ARG002
        found = []
        for points in self.points:
            side = 94.0 * similarity(TEMPLATE, points)[0, 0]
            x, y = np.asarray(points).mean(0) - side * 0.55
            box = (float(x), float(y), side, side)
            found.append(Detection(box, 1.0, np.asarray(points, np.float32)))
        return found


def front_end(*points: NDArray[Any], spec: FaceSpec | None = None) -> FaceFrontEnd:
    return FaceFrontEnd(spec or FaceSpec(), no_landmarks, Faces(points))


def no_landmarks(_: Image) -> NDArray[np.float32]:
    raise AssertionError("the detections bring points")


MIDDLE = TEMPLATE - 56 + (160, 120)
