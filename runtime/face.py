"""The face front end: image -> one face, five points, an aligned crop, its quality.

    detect -> check that the candidate looks like a face -> five points -> second, closer look ->
    similarity transform to 112x112 grey -> quality

``FaceSpec`` (face_spec.py) is the part of it that travels in the model file, so that a network
sees on the device what it saw in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime import alignment
from edgeid.runtime.alignment import align, similarity, to_grey
from edgeid.runtime.detection import Box, Detection, Detector, make_detector, overlap
from edgeid.runtime.errors import ImageError, InputError, NoFaceError, SeveralFacesError
from edgeid.runtime.face_quality import FaceLimits, FaceQuality, measure
from edgeid.runtime.face_spec import FaceSpec, network_input
from edgeid.runtime.image import ImageSource, load_image

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

# Two looks at a time, displaced against each other: (scale, degrees, right, down), in pixels of the
# landmark crop. On a face both give the same points; on anything else the points tend to stay in
# the middle of the crop and so move with it.
_FIRST_LOOKS = ((0.88, 0.0, 4.0, 3.0), (1.12, 0.0, -4.0, -3.0))
_SECOND_LOOKS = ((0.95, -5.0, 2.0, -2.0), (1.05, 5.0, -2.0, 2.0))
# Log-odds of a face from the detector's votes and the disagreement of either pair of looks:
# logistic regression on 1,490 Haar boxes of the training crops, of which 262 are not the face.
# At 2 it keeps 95 % of the faces' boxes and 5 % of the others (votes alone: 70 %).
_HAAR = (4.7, 0.55, -18.0, -28.0)
# The detector network's log-odds take the place of votes, its points that of the box: the same on
# 1,414 detections in scenes of people held out and in face-free photos, of which 376 are wrong. At
# 0 they keep 94 % of the faces and 13 % of the others.
_NETWORK = (1.1, 0.7, -1.9, -8.5)
_SURE = 2.0
_LIKELY = 0.0
_POSSIBLE = -1.5
_MAX_CANDIDATES = 6


@dataclass(frozen=True, eq=False)
class FaceSample:
    """One face: aligned grey crop (112, 112), box (x, y, w, h) and points (5, 2) in the image."""

    crop: Image
    box: Box
    points: Points
    quality: FaceQuality


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A detection with its points; how much it weighs among the others; log-odds of a face."""

    box: Box
    points: Points
    weight: float
    odds: float


class FaceFrontEnd:
    """Reads faces from images.

    Args:
        spec: quality limits and the network's view.
        locate: landmark crops uint8 (N, 96, 96) -> points float32 (N, 5, 2) in their pixels; not
            called for detections that bring points of their own, unless they are rough.
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
        image, 0 in a corner). The heaviest sure one is read. Another likely face is a rival when it
        weighs at least 0.4 of that: a bystander half as tall behind the user is none, two
        people side by side are.

        Args:
            image: see ``load_image``.
            checks: whether the quality limits must be kept; with False the quality is only
                measured, and the likeliest candidate is read however unlikely it is (for
                evaluation on photos that are known to show somebody).
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
        found = self._candidates(picture, grey, _POSSIBLE if checks else -math.inf)
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

    def _candidates(self, picture: Image, grey: Image, possible: float) -> list[_Candidate]:
        """The main face, then the others.

        Detection goes on, with ever more effort, until a candidate is surely a face. When none
        is, the most likely one stands in, if it is likely enough: better a turned head that the
        quality check judges than no face at all.
        """
        found: list[_Candidate] = []
        for effort in range(self._detector.efforts):
            detections = self._detector.detect(picture, effort)[:_MAX_CANDIDATES]
            found = _distinct([*found, *(self._candidate(grey, d) for d in detections)])
            sure = [c for c in found if c.odds >= _SURE]
            if sure:
                main = max(sure, key=lambda c: c.weight)
                return [main, *(c for c in found if c is not main and c.odds >= _LIKELY)]
        return [c for c in found if c.odds >= possible][:1]

    def _candidate(self, grey: Image, d: Detection) -> _Candidate:
        weight = _weight(d.box, grey.shape)
        if d.points is not None and not d.rough:
            return _Candidate(d.box, d.points, weight, math.inf)
        if d.points is None:
            start, score, weights = alignment.box_to_crop(d.box), math.log2(max(d.score, 1)), _HAAR
        else:
            start, score, weights = alignment.points_to_crop(d.points), d.score, _NETWORK
        points, first = self._look(grey, start, _FIRST_LOOKS)
        points, second = self._look(grey, alignment.points_to_crop(points), _SECOND_LOOKS)
        odds = float(np.dot(weights, (1.0, score, first, second)))
        return _Candidate(d.box, points, weight, odds)

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


def _distinct(candidates: Sequence[_Candidate]) -> list[_Candidate]:
    """Likeliest first, each face once: points tell nested boxes apart better than the boxes."""
    kept: list[_Candidate] = []
    for c in sorted(candidates, key=lambda c: -c.odds):
        if all(overlap(_face_box(c.points), _face_box(k.points)) < 0.5 for k in kept):
            kept.append(c)
    return kept


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
