"""EdgeID's own face detector: one small network out of the model file, run by its engine.

The network sees a grey picture of 256x256 pixels and answers for every cell of 16x16 pixels: is a
face's centre here, its box, and its five points. One map for faces of all sizes, as in CenterNet
(Zhou et al. 2019, "Objects as points"), is enough where few faces are wanted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.alignment import apply, invert, similarity_scale, to_grey
from edgeid.runtime.detection import Detection, overlap, suppress
from edgeid.runtime.errors import ImageError, ModelError, ModelFormatError
from edgeid.runtime.graph import Graph

__all__ = [
    "CELL",
    "INPUT_SHAPE",
    "OUTPUT_SHAPE",
    "SIDE",
    "UNIT",
    "NetworkDetector",
    "answers",
    "cell_centres",
    "check_detector",
    "decode",
    "detector_input",
    "mirrored",
    "shrunk",
]

Image = NDArray[np.uint8]
Floats = NDArray[np.float32]
Matrix = NDArray[np.float64]
Run = Callable[[Floats], Floats]
View = tuple[Image, Matrix]

SIDE = 256
"""Pixels of the network's picture, both ways; images are scaled to fit its upper left corner."""
CELL = 16
UNIT = 64.0
"""Face size, the square root of the box's area, at which the network's log size is 0."""
INPUT_SHAPE = (1, SIDE, SIDE)
OUTPUT_SHAPE = (15, SIDE // CELL, SIDE // CELL)
"""Log-odds of a face; box centre's x and y from the cell's centre, in face sizes; log width and
log height of the box over ``UNIT``; x and y of five points like the centre."""

# Log-odds from which a face is one, by effort. The first was chosen on 148 scenes with one large
# face of people held out, of which it finds exactly one in 140, and on 468 face-free photos, in 2
# of which it finds one; a single look at its best did so in 138 and in none, at 0.75 in 137 and 4.
_ODDS = (0.75, -1.0)
_UNSEEN = -4.0  # log-odds of what one of two looks has missed
_MOST = 64  # cells of a picture that are read, best first
_LOG_SIZES = (math.log(4 / UNIT), math.log(4 * SIDE / UNIT))  # faces of 4 to 1024 pixels
_MIRRORED = (0, 1, 2, 3, 4, 7, 8, 5, 6, 9, 10, 13, 14, 11, 12)  # eyes and mouth corners
_FARTHEST = 4.0  # from a cell to what it tells of, in face sizes
_TILT = 28.0  # degrees
_TILE = 0.6  # of the image's sides


class NetworkDetector:
    """Finds faces with the detector network of a model; scores are its log-odds of a face.

    Effort 0 looks at the whole image twice, the second time with a margin, and takes the mean of
    the two. Effort 1 is content with less and with one look: it tilts the image both ways too, and
    searches its four corners, in which faces are larger.

    Args:
        run: pictures float32 (N, 1, 256, 256) -> maps (N, 15, 16, 16); safe to call from
            several threads, as engines are.
    """

    def __init__(self, run: Run) -> None:
        self._run = run

    @property
    def efforts(self) -> int:
        return len(_ODDS)

    def detect(self, image: Image, effort: int = 0) -> list[Detection]:
        grey = to_grey(image)
        views = _whole_views(grey)
        if effort == 0:
            first, second = (suppress(found) for found in self._looks(views, _UNSEEN))
            return [d for d in suppress(_agreed(first, second)) if d.score >= _ODDS[0]]
        views += _other_views(grey, *views[0])
        return suppress(d for found in self._looks(views, _ODDS[1]) for d in found)

    def _looks(self, views: Sequence[View], odds: float) -> list[list[Detection]]:
        """What is found in each view, in pixels of the image."""
        maps = answers(self._run, [picture for picture, _ in views])
        return [
            [_placed(d, matrix) for d in decode(found, odds)]
            for (_, matrix), found in zip(views, maps, strict=True)
        ]


def answers(run: Run, pictures: Sequence[Image]) -> Floats:
    """The network's maps (N, 15, rows, columns) of grey pictures: the mean of what it answers to
    each and, seen in a mirror, to its mirror image. A quarter fewer false faces than one answer.

    Raises:
        ModelError: ``run`` gives another shape.
    """
    x = detector_input(pictures)
    maps = run(np.concatenate([x, x[..., ::-1]]))
    if maps.shape != (2 * len(x), *OUTPUT_SHAPE):
        raise ModelError(f"detector maps {maps.shape}: {(2 * len(x), *OUTPUT_SHAPE)} are needed")
    return (maps[: len(x)] + mirrored(maps[len(x) :])) / np.float32(2)


def mirrored(maps: Floats) -> Floats:
    """The maps (N, 15, rows, columns) of the mirror images: left and right change places."""
    turned = maps[:, _MIRRORED, :, ::-1].copy()
    turned[:, [1, *range(5, 15, 2)]] *= -1
    return turned


def check_detector(graph: Graph, entry: str) -> None:
    """Raise ModelFormatError unless an entry of a valid graph has the shapes of a detector."""
    given = graph.entry(entry).shape
    shape = graph.infer_shapes(entry)[graph.entry(entry).output]
    if given != INPUT_SHAPE or shape != OUTPUT_SHAPE:
        raise ModelFormatError(
            f"the {entry} network takes {given} and gives {shape}: {INPUT_SHAPE} and "
            f"{OUTPUT_SHAPE} are needed"
        )


def _whole(grey: Image) -> View:
    """The image at the network's size, and the matrix from there to the image."""
    picture, scale = shrunk(grey)
    return picture, _zoom(1 / scale, 0, 0)


def _agreed(first: Sequence[Detection], second: Sequence[Detection]) -> list[Detection]:
    """Every face of two looks, with the mean of its log-odds; ``_UNSEEN`` where it is missing."""
    left = list(second)
    found = []
    for d in first:
        other = next((o for o in left if overlap(d.box, o.box) > 0.5), None)
        if other is not None:
            left.remove(other)
        odds = _UNSEEN if other is None else other.score
        found.append(replace(d, score=(d.score + odds) / 2))
    return found + [replace(d, score=(d.score + _UNSEEN) / 2) for d in left]


def _whole_views(grey: Image) -> list[View]:
    """The whole image, and with a margin around it."""
    import cv2

    whole, out = _whole(grey)
    margin = SIDE // 5
    framed = cv2.copyMakeBorder(whole, *(margin,) * 4, cv2.BORDER_REPLICATE)
    picture, inward = _whole(np.asarray(framed, np.uint8))
    inward[:, 2] -= margin
    return [(whole, out), (picture, _compose(out, inward))]


def _other_views(grey: Image, whole: Image, out: Matrix) -> list[View]:
    """The image tilted both ways, and its four corners."""
    import cv2

    views = []
    height, width = whole.shape
    for degrees in (-_TILT, _TILT):
        centre = ((width - 1) / 2, (height - 1) / 2)
        matrix = np.array(cv2.getRotationMatrix2D(centre, degrees, 1.0), np.float64)
        turned = cv2.warpAffine(whole, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        views.append((np.asarray(turned, np.uint8), _compose(out, invert(matrix))))
    height, width = (max(1, math.ceil(_TILE * side)) for side in grey.shape)
    for top in (0, grey.shape[0] - height):
        for left in (0, grey.shape[1] - width):
            picture, part = _whole(grey[top : top + height, left : left + width])
            views.append((picture, part + np.array([(0, 0, left), (0, 0, top)])))
    return views


def _zoom(scale: float, right: float, down: float) -> Matrix:
    """Pixel centres lie at whole numbers: the corner at (-0.5, -0.5) stays where it is."""
    shift = (scale - 1) / 2
    return np.array([(scale, 0.0, shift + right), (0.0, scale, shift + down)])


def _compose(second: Matrix, first: Matrix) -> Matrix:
    turn = second[:, :2] @ first[:, :2]
    return np.column_stack([turn, second[:, :2] @ first[:, 2] + second[:, 2]])


def _placed(d: Detection, matrix: Matrix) -> Detection:
    """The detection under a similarity; its box stays upright."""
    x, y, width, height = d.box
    cx, cy = apply(matrix, np.array([x + (width - 1) / 2, y + (height - 1) / 2])).tolist()
    scale = similarity_scale(matrix)
    width, height = width * scale, height * scale
    points = None if d.points is None else apply(matrix, d.points).astype(np.float32)
    box = (cx - (width - 1) / 2, cy - (height - 1) / 2, width, height)
    return Detection(box, d.score, points, rough=d.rough)


def shrunk(grey: Image) -> tuple[Image, float]:
    """A grey image scaled, up or down, so that its longer side is ``SIDE``; and the scale."""
    import cv2

    if grey.ndim != 2 or not grey.size:
        raise ImageError(f"image of shape {grey.shape}: (height, width) needed")
    scale = SIDE / max(grey.shape)
    if scale == 1:
        return grey, 1.0
    size = [max(1, math.floor(side * scale + 0.5)) for side in grey.shape[::-1]]
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(grey, size, interpolation=kind), np.uint8), scale


def detector_input(pictures: Sequence[Image]) -> Floats:
    """Grey pictures of at most ``SIDE`` pixels as the network takes them (N, 1, SIDE, SIDE).

    Each is brought to mean 0 and standard deviation 1, so exposure does not matter; what is
    beyond it is 0.
    """
    import cv2

    x = np.zeros((len(pictures), *INPUT_SHAPE), np.float32)
    for canvas, picture in zip(x[:, 0], pictures, strict=True):
        height, width = picture.shape
        mean, spread = (float(v[0, 0]) for v in cv2.meanStdDev(picture))
        # The floor of 8 grey levels keeps a flat image's noise from being blown up.
        levels = ((np.arange(256) - mean) / max(spread, 8.0)).astype(np.float32)
        canvas[:height, :width] = cv2.LUT(picture, levels)
    return x


def cell_centres() -> Floats:
    """x and y of every cell's centre (2, rows, columns), in pixels of the network's picture."""
    rows, columns = OUTPUT_SHAPE[1:]
    y, x = np.mgrid[:rows, :columns]
    return np.stack([x, y]).astype(np.float32) * CELL + (CELL - 1) / 2


def decode(maps: Floats, odds: float) -> list[Detection]:
    """Faces of one map (15, rows, columns), in pixels of the network's picture.

    Every cell whose log-odds reach ``odds`` gives one; those of one face overlap.

    Raises:
        ModelError: a value is NaN or infinite.
    """
    flat = maps.reshape(15, -1).astype(np.float64)
    if not np.isfinite(flat).all():
        raise ModelError("the detector network gave a value that is not finite")
    chosen = np.flatnonzero(flat[0] >= odds)
    chosen = chosen[np.argsort(-flat[0, chosen], kind="stable")][:_MOST]
    found = flat[:, chosen]
    sides = UNIT * np.exp(np.clip(found[3:5], *_LOG_SIZES))
    offsets = np.clip(found[[1, 2, *range(5, 15)]], -_FARTHEST, _FARTHEST)
    places = offsets.reshape(6, 2, -1) * np.sqrt(sides.prod(0))
    places = (places + cell_centres().reshape(2, -1)[:, chosen]).transpose(2, 0, 1)
    return [
        Detection(
            (x - (width - 1) / 2, y - (height - 1) / 2, width, height),
            odds_here,
            place[1:].astype(np.float32),
            rough=True,
        )
        for place, (x, y), (width, height), odds_here in zip(
            places, places[:, 0].tolist(), sides.T.tolist(), found[0].tolist(), strict=True
        )
    ]
