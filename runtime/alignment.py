"""Where a face lies: five points, the similarity transform, and crops cut with it.

Points are float arrays (5, 2) of (x, y) in pixels, pixel centres at whole numbers, in the order
left eye, right eye, nose, left mouth corner, right mouth corner; left is the image's left.
A matrix is float64 (2, 3) and maps (x, y) of one picture to (x, y) of another, as in OpenCV.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.errors import ImageError, InputError

__all__ = [
    "ALIGNED_SIZE",
    "LANDMARK_SIZE",
    "TEMPLATE",
    "align",
    "apply",
    "box_to_crop",
    "crop_shape",
    "cut",
    "invert",
    "landmark_input",
    "landmark_points",
    "points_to_crop",
    "similarity",
    "similarity_scale",
    "to_grey",
]

Matrix = NDArray[np.float64]
Image = NDArray[np.uint8]

ALIGNED_SIZE = 112
LANDMARK_SIZE = 96

TEMPLATE: Matrix = np.array(
    [(38.29, 51.70), (73.53, 51.50), (56.03, 71.74), (41.55, 92.37), (70.73, 92.20)]
)
"""The five points in the aligned 112x112 crop (ArcFace, Deng et al. 2019, section 3)."""

# A Haar box is a square 2.68 inter-ocular distances wide whose centre lies 0.22 of them above the
# mean of the five points (medians over the training crops; 5 % to 95 %: side 2.35 to 3.15). In
# template pixels (inter-ocular distance 35.24) that is a square of 94 around (56, 64).
# The landmark network looks at 1.35 times that square: every point stays inside for the boxes
# that are displaced most, and the eyes are still 27 crop pixels apart.
_BOX_CENTRE = (56.03, 64.0)
_BOX_SIDE = 94.0
_CROP_FACTOR = 1.35


def similarity(source: NDArray[Any], target: NDArray[Any]) -> Matrix:
    """The rotation, scale and shift that bring source closest to target, least squares.

    Closed form of Umeyama (1991), equations 40 to 42, without reflection.

    Args:
        source, target: (n, 2), n >= 2 points that belong together pair by pair.

    Raises:
        InputError: shapes differ, a coordinate is not finite, or all source points coincide.
    """
    a, b = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if a.ndim != 2 or a.shape != b.shape or a.shape[1] != 2 or len(a) < 2:
        raise InputError(f"points of shape {a.shape} and {b.shape}: two equal (n >= 2, 2) needed")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("points hold NaN or infinity: the landmarks are not usable")
    mean_a, mean_b = a.mean(0), b.mean(0)
    a, b = a - mean_a, b - mean_b
    spread = float((a**2).sum())
    if spread < 1e-12:
        raise InputError("all points coincide: no similarity transform is determined")
    # In two dimensions the SVD has a closed form: the dot and the cross product give the angle.
    along = float((a * b).sum()) / spread
    across = float((a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()) / spread
    turn = np.array([(along, -across), (across, along)])
    return np.column_stack([turn, mean_b - turn @ mean_a])


def similarity_scale(matrix: Matrix) -> float:
    """By how much a similarity matrix enlarges lengths."""
    return math.hypot(float(matrix[0, 0]), float(matrix[1, 0]))


def apply(matrix: Matrix, points: NDArray[Any]) -> Matrix:
    """Map points (..., 2) with a matrix (2, 3)."""
    mapped: Matrix = np.asarray(points, np.float64) @ matrix[:, :2].T + matrix[:, 2]
    return mapped


def invert(matrix: Matrix) -> Matrix:
    """The matrix that maps back."""
    back = np.linalg.inv(matrix[:, :2])
    return np.column_stack([back, -back @ matrix[:, 2]])


def crop_shape() -> Matrix:
    """The template's five points in the landmark network's 96x96 crop: its zero output."""
    return apply(_template_to_crop(), TEMPLATE)


def points_to_crop(points: NDArray[Any]) -> Matrix:
    """Image -> landmark crop, upright and centred as the five points say."""
    to_template = similarity(points, TEMPLATE)
    return _compose(_template_to_crop(), to_template)


def box_to_crop(box: tuple[float, float, float, float]) -> Matrix:
    """Image -> landmark crop around a detector's box (x, y, width, height), not rotated."""
    x, y, width, height = box
    if width <= 0 or height <= 0:
        raise InputError(f"face box {box}: width and height must be positive")
    # Boxes that are not square (YuNet's are tall) count by their area.
    scale = LANDMARK_SIZE / (_CROP_FACTOR * math.sqrt(width * height))
    middle = (LANDMARK_SIZE - 1) / 2
    centre = (x + (width - 1) / 2, y + (height - 1) / 2)
    return np.array(
        [(scale, 0.0, middle - scale * centre[0]), (0.0, scale, middle - scale * centre[1])]
    )


def landmark_input(crops: Image) -> NDArray[np.float32]:
    """Landmark crops (N, 96, 96) as the network takes them: float32 (N, 1, 96, 96).

    Each crop is brought to mean 0 and standard deviation 1, so exposure does not matter.
    """
    if crops.ndim != 3 or crops.shape[1:] != (LANDMARK_SIZE, LANDMARK_SIZE):
        raise ImageError(f"landmark crops of shape {crops.shape}: (N, 96, 96) needed")
    x = crops.astype(np.float32)
    mean = x.mean(axis=(1, 2), keepdims=True)
    # The floor of 8 grey levels keeps a flat crop's noise from being blown up.
    spread = np.maximum(x.std(axis=(1, 2), keepdims=True), np.float32(8))
    return np.asarray(((x - mean) / spread)[:, None], np.float32)


def landmark_points(output: NDArray[np.float32]) -> NDArray[np.float32]:
    """The network's output (N, 10) as points (N, 5, 2) in pixels of the 96x96 crop."""
    if output.ndim != 2 or output.shape[1] != 10:
        raise InputError(f"landmark network output of shape {output.shape}: (N, 10) needed")
    return (crop_shape() + 16.0 * output.reshape(-1, 5, 2)).astype(np.float32)


def align(image: Image, points: NDArray[Any]) -> Image:
    """The face as a grey 112x112 crop in which the five points lie on ``TEMPLATE``.

    Args:
        image: uint8 (H, W) grey or (H, W, 3) BGR.
        points: (5, 2) in image pixels.
    """
    if np.shape(points) != (5, 2):
        raise InputError(f"points of shape {np.shape(points)}: (5, 2) needed")
    return cut(to_grey(image), similarity(points, TEMPLATE), ALIGNED_SIZE)


def to_grey(image: Image) -> Image:
    """uint8 (H, W) of a grey or BGR image (BT.601 weights)."""
    import cv2

    if image.ndim == 2:
        return image
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), np.uint8)


def cut(grey: Image, matrix: Matrix, size: int) -> Image:
    """size x size pixels of a grey image under the similarity ``matrix`` (image -> crop).

    Bilinear; where the image is shrunk, the part that is needed is first averaged down, because
    bilinear sampling alone would skip pixels. Beyond the image its border pixels are repeated.
    """
    import cv2

    grey, matrix = _needed_part(grey, matrix, size)
    scale = similarity_scale(matrix)
    if scale < 0.8:
        width = max(1, round(grey.shape[1] * scale))
        height = max(1, round(grey.shape[0] * scale))
        factor = np.array([width / grey.shape[1], height / grey.shape[0]])
        grey = np.asarray(cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA), np.uint8)
        # Pixel centres: x_small = factor * (x + 0.5) - 0.5.
        back = np.column_stack([np.diag(1 / factor), 0.5 / factor - 0.5])
        matrix = _compose(matrix, back)
    return np.asarray(
        cv2.warpAffine(
            grey, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        ),
        np.uint8,
    )


def _needed_part(grey: Image, matrix: Matrix, size: int) -> tuple[Image, Matrix]:
    """The part of the image that the crop shows, with a margin, and the matrix from there."""
    corners = np.array([(0, 0), (size, 0), (0, size), (size, size)])
    seen = apply(invert(matrix), corners)
    margin = 2 + 2 / similarity_scale(matrix)
    height, width = grey.shape
    left, top = (
        int(v) for v in np.clip(np.floor(seen.min(0) - margin), 0, (width - 1, height - 1))
    )
    right, bottom = (int(v) for v in np.clip(np.ceil(seen.max(0) + margin), 1, (width, height)))
    part = grey[top : max(bottom, top + 1), left : max(right, left + 1)]
    shift = np.array([(1.0, 0.0, left), (0.0, 1.0, top)])
    return part, _compose(matrix, shift)


def _template_to_crop() -> Matrix:
    scale = LANDMARK_SIZE / (_CROP_FACTOR * _BOX_SIDE)
    middle = (LANDMARK_SIZE - 1) / 2
    shift = [middle - scale * centre for centre in _BOX_CENTRE]
    return np.array([(scale, 0.0, shift[0]), (0.0, scale, shift[1])])


def _compose(second: Matrix, first: Matrix) -> Matrix:
    """The matrix that maps with ``first`` and then with ``second``."""
    turn = second[:, :2] @ first[:, :2]
    return np.column_stack([turn, second[:, :2] @ first[:, 2] + second[:, 2]])
