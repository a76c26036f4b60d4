"""Face detectors behind one small protocol.

``NetworkDetector`` (network_detector.py) is the default where the model file has a network for it.
``HaarDetector`` needs nothing beyond OpenCV 4, whose wheels carry the cascades; ``YuNetDetector``
needs a file of its own. All answer in pixels of the image they were given; large images are
scaled down for the search only.

A detector works in efforts: effort 0 finds nearly every face of a cooperative user; the further
ones look harder, cost more and are wrong more often, so they are worth it only when the ones
before found no face.
"""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.alignment import apply, invert, to_grey
from edgeid.runtime.errors import MissingExtraError, ModelError

__all__ = [
    "Box",
    "Detection",
    "Detector",
    "HaarDetector",
    "YuNetDetector",
    "make_detector",
    "overlap",
    "suppress",
]

Image = NDArray[np.uint8]
Box = tuple[float, float, float, float]
_Pass = Callable[[Image], "list[Detection]"]


@dataclass(frozen=True, eq=False)
class Detection:
    """One face: box (x, y, width, height) in pixels, a score to rank by, perhaps five points.

    Scores compare within one detector only: Haar counts agreeing windows, YuNet gives 0 to 1, the
    detector network log-odds. ``rough`` points say where to look for better ones.
    """

    box: Box
    score: float
    points: NDArray[np.float32] | None = None
    rough: bool = False


class Detector(Protocol):
    """Finds faces; safe to use from several threads."""

    @property
    def efforts(self) -> int:
        """How many efforts there are, at least 1."""

    def detect(self, image: Image, effort: int = 0) -> list[Detection]:
        """Faces in a uint8 (H, W) or (H, W, 3) BGR image, best first, none inside another."""


class HaarDetector:
    """Boosted cascades of Haar features (Viola and Jones 2001; Lienhart and Maydt 2002).

    The orders below come from the training crops: on 1,000 of them effort 0 finds 96.2 %, the
    tilted search brings 18 of the 38 that are missing, the lenient ones another 10. Local
    equalisation (CLAHE) finds 0.7 % more than none, global equalisation none more.

    Args:
        longest_side: images are searched at no more than this many pixels.
        smallest_face: side of the smallest box, as a share of the image's shorter side.
    """

    def __init__(self, longest_side: int = 512, smallest_face: float = 0.1) -> None:
        self._longest_side = longest_side
        self._smallest_face = smallest_face
        self._close = _cascade("haarcascade_frontalface_alt2.xml")
        self._loose = _cascade("haarcascade_frontalface_default.xml")
        self._profile = _cascade("haarcascade_profileface.xml")
        # A CascadeClassifier keeps its scratch images in itself.
        self._lock = threading.Lock()

    @property
    def efforts(self) -> int:
        return 5

    def detect(self, image: Image, effort: int = 0) -> list[Detection]:
        passes: Sequence[_Pass] = (
            self._upright, self._tilted, self._sideways, self._lenient, self._last
        )  # fmt: skip
        small, scale = _scaled_down(to_grey(image), self._longest_side)
        # Faces that touch the border are missed; with a margin they are not.
        margin = 0 if effort == 0 else min(small.shape) // 6
        with self._lock:
            found = passes[effort](_equalised(small, margin))
        return suppress(_moved(d, -margin, 1 / scale) for d in found)

    def _upright(self, grey: Image) -> list[Detection]:
        return self._search(self._close, grey, 1.1, 4)

    def _tilted(self, grey: Image) -> list[Detection]:
        return [d for angle in (20, -20) for d in self._turned(grey, angle)]

    def _sideways(self, grey: Image) -> list[Detection]:
        """Faces turned to the left and, in the mirror, to the right, in boxes as if frontal."""
        width = grey.shape[1]
        left = [_frontal(d, -1) for d in self._search(self._profile, grey, 1.1, 3)]
        mirrored = np.ascontiguousarray(grey[:, ::-1])
        found = self._search(self._profile, mirrored, 1.1, 3)
        right = [replace(d, box=(width - d.box[0] - d.box[2], *d.box[1:])) for d in found]
        return [*left, *(_frontal(d, 1) for d in right)]

    def _lenient(self, grey: Image) -> list[Detection]:
        return self._search(self._loose, grey, 1.05, 3)

    def _last(self, grey: Image) -> list[Detection]:
        return self._search(self._close, grey, 1.03, 1)

    def _search(self, cascade: Any, grey: Image, step: float, neighbours: int) -> list[Detection]:
        side = max(24, round(self._smallest_face * min(grey.shape)))
        boxes, votes = cascade.detectMultiScale2(
            grey, scaleFactor=step, minNeighbors=neighbours, minSize=(side, side)
        )
        return [
            Detection((float(x), float(y), float(w), float(h)), float(v))
            for (x, y, w, h), v in zip(boxes, np.ravel(votes), strict=True)
        ]

    def _turned(self, grey: Image, angle: float) -> list[Detection]:
        """Search a copy turned by an angle; the boxes come back upright, around their centres."""
        import cv2

        height, width = grey.shape
        matrix = np.array(cv2.getRotationMatrix2D((width / 2, height / 2), angle, 1.0), np.float64)
        turned = cv2.warpAffine(grey, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        back = invert(matrix)
        found = []
        for d in self._search(self._close, np.asarray(turned, np.uint8), 1.1, 3):
            x, y, w, h = d.box
            cx, cy = apply(back, np.array([x + w / 2, y + h / 2]))
            found.append(Detection((cx - w / 2, cy - h / 2, w, h), d.score))
        return found


def _frontal(d: Detection, direction: int) -> Detection:
    """The box a frontal cascade would draw where the profile cascade drew ``d``.

    Medians over the turned faces of the landmark crops: the profile box is 3.6 eye distances
    wide, and the face's points lie 0.6 of them ahead of its centre and 0.35 below it.
    """
    x, y, width, height = d.box
    eyes = width / 3.6
    side = 2.68 * eyes
    cx, cy = x + width / 2 + direction * 0.6 * eyes, y + height / 2 + 0.13 * eyes
    return replace(d, box=(cx - side / 2, cy - side / 2, side, side))


class YuNetDetector:
    """YuNet (Wu et al. 2023), a small CNN that gives five points with every box.

    Args:
        path: the ONNX file for OpenCV 4's ``FaceDetectorYN``.
        longest_side: images are searched at no more than this many pixels.

    Raises:
        ModelError: there is no such file, or OpenCV cannot use it.
    """

    def __init__(self, path: str | os.PathLike[str], longest_side: int = 320) -> None:
        import cv2

        if not Path(path).is_file():
            raise ModelError(
                f"there is no detector model {path}: give a YuNet ONNX file, or 'haar'"
            )
        try:
            self._net = cv2.FaceDetectorYN.create(str(path), "", (320, 320), 0.5, 0.3, 50)
        except cv2.error as error:
            raise ModelError(f"{path} is not a YuNet model OpenCV can use: {error.err}") from error
        self._longest_side = longest_side
        self._lock = threading.Lock()

    @property
    def efforts(self) -> int:
        return 2

    def detect(self, image: Image, effort: int = 0) -> list[Detection]:
        import cv2

        colour = cv2.cvtColor(image, cv2.COLOR_GRAY2BGR) if image.ndim == 2 else image
        small, scale = _scaled_down(np.asarray(colour, np.uint8), self._longest_side)
        with self._lock:
            self._net.setInputSize((small.shape[1], small.shape[0]))
            self._net.setScoreThreshold((0.8, 0.5)[effort])
            _, rows = self._net.detect(small)
        if rows is None:
            return []
        # Columns: box, five points (right eye of the person first: the image's left), score.
        found = (Detection(_box(r[:4]), float(r[14]), r[4:14].reshape(5, 2)) for r in rows)
        return suppress(_moved(d, 0, 1 / scale) for d in found)


def make_detector(which: str | os.PathLike[str] | Detector | None = None) -> Detector:
    """None or "haar": HaarDetector; a path: YuNetDetector; a detector: itself."""
    if which is None or which == "haar":
        return HaarDetector()
    if isinstance(which, str | os.PathLike):
        return YuNetDetector(which)
    return which


def suppress(found: Iterable[Detection]) -> list[Detection]:
    """Best first, without those that lie for the most part on a better one."""
    kept: list[Detection] = []
    for d in sorted(found, key=lambda d: -d.score):
        if all(overlap(d.box, other.box) < 0.5 for other in kept):
            kept.append(d)
    return kept


def overlap(a: Box, b: Box) -> float:
    """The common area over the smaller box's area, 0 to 1: 1 when one lies in the other."""
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / min(a[2] * a[3], b[2] * b[3])


def _cascade(name: str) -> Any:
    import cv2

    try:
        # OpenCV's type stubs leave its data folder out.
        folder = cv2.data.haarcascades  # type: ignore[attr-defined]
        cascade = cv2.CascadeClassifier(os.path.join(folder, name))
    except AttributeError:
        raise MissingExtraError(
            f"OpenCV {cv2.__version__} has no Haar cascades: "
            'pip install "opencv-python-headless>=4.10,<5", or give a YuNet model as detector'
        ) from None
    if cascade.empty():
        raise MissingExtraError(
            f"OpenCV's file {name} is missing: reinstall opencv-python-headless"
        )
    return cascade


def _equalised(grey: Image, margin: int) -> Image:
    import cv2

    local = cv2.createCLAHE(2.0, (4, 4)).apply(grey)
    if margin:
        local = cv2.copyMakeBorder(local, *(margin,) * 4, cv2.BORDER_REPLICATE)
    return np.asarray(local, np.uint8)


def _scaled_down(image: Image, longest_side: int) -> tuple[Image, float]:
    """The image at no more than longest_side pixels, and the scale that was applied."""
    import cv2

    scale = longest_side / max(image.shape[:2])
    if scale >= 1:
        return image, 1.0
    size = [max(1, math.floor(side * scale + 0.5)) for side in image.shape[1::-1]]
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8), scale


def _moved(d: Detection, shift: float, scale: float) -> Detection:
    """The detection in pixels of the original image: shifted, then scaled about pixel corners."""
    x, y, width, height = d.box
    box = ((x + shift) * scale, (y + shift) * scale, width * scale, height * scale)
    points = None if d.points is None else (d.points + shift + 0.5) * scale - 0.5
    return replace(d, box=box, points=points)


def _box(row: NDArray[np.float32]) -> Box:
    x, y, width, height = (float(v) for v in row)
    return x, y, width, height
