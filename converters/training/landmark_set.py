"""The pictures the landmark network learns from, and how they are displaced and spoilt for it.

The crops are cut as the device cuts them (``edgeid.runtime.alignment``), around boxes displaced
as a Haar detector's are.
"""

from __future__ import annotations

import csv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime import alignment
from edgeid.runtime.errors import DataError
from edgeid.runtime.image import load_image

__all__ = ["LandmarkSet", "augment", "displaced", "mirror", "read_landmark_set"]

Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]

_MIRRORED = (1, 0, 2, 4, 3)
# The set's points count from the pixels' corners of a larger picture: they lie 0.27 pixels right of
# what a network trained on the crops and their mirror images finds, which cannot prefer a side.
# Downwards the same shift must be there, where no mirror shows it.
LABEL_SHIFT = 0.27


@dataclass(frozen=True)
class LandmarkSet:
    """Grey face pictures (N, 96, 96), points (N, 5, 2) in their pixels, and who each one is."""

    pictures: Bytes
    points: Floats
    people: tuple[str, ...]

    def split(self, held_out: float, seed: int) -> tuple[LandmarkSet, LandmarkSet]:
        """(training part, held-out part); nobody is in both."""
        names = sorted(set(self.people))
        order = np.random.default_rng(seed).permutation(len(names))
        kept = {names[i] for i in order[: round(held_out * len(names))]}
        outside = np.array([person in kept for person in self.people])
        return self.where(~outside), self.where(outside)

    def where(self, mask: NDArray[np.bool_]) -> LandmarkSet:
        """The rows for which the mask (N,) is true."""
        people = tuple(p for p, use in zip(self.people, mask, strict=True) if use)
        return LandmarkSet(self.pictures[mask], self.points[mask], people)


def read_landmark_set(faces: Path) -> LandmarkSet:
    """Read ``landmarks.zip`` and ``landmarks.csv`` from a folder."""
    try:
        with open(faces / "landmarks.csv", newline="", encoding="utf-8") as table:
            rows = list(csv.DictReader(table))
        with zipfile.ZipFile(faces / "landmarks.zip") as archive:
            files = [archive.read(row["file"]) for row in rows]
        points = np.array([_row_points(row) for row in rows])
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"landmark set in {faces} cannot be read: {error}") from error
    pictures = [alignment.to_grey(load_image(file)) for file in files]
    people = tuple(row["source"].rpartition("/")[0] for row in rows)
    return LandmarkSet(np.stack(pictures), points, people)


def _row_points(row: dict[str, str]) -> list[tuple[float, float]]:
    names = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
    return [
        (float(row[f"{name}_x"]) - LABEL_SHIFT, float(row[f"{name}_y"]) - LABEL_SHIFT)
        for name in names
    ]


def mirror(picture: Bytes, points: Floats) -> tuple[Bytes, Floats]:
    """Picture and points seen in a mirror; left and right points change places."""
    turned = points[list(_MIRRORED)].copy()
    turned[:, 0] = picture.shape[1] - 1 - turned[:, 0]
    return np.ascontiguousarray(picture[:, ::-1]), turned


def augment(picture: Bytes, points: Floats, rng: np.random.Generator) -> tuple[Bytes, Floats]:
    """A landmark crop (96, 96) with its points (5, 2), randomly displaced, turned and spoilt."""
    if rng.random() < 0.5:
        picture, points = mirror(picture, points)
    # Half of the crops are as loose as a detector's box, half as close as a second look.
    loose = 1.0 if rng.random() < 0.5 else 0.4
    matrix = displaced(alignment.points_to_crop(points), loose, rng)
    crop = alignment.cut(picture, matrix, alignment.LANDMARK_SIZE)
    return _spoil(crop, rng), alignment.apply(matrix, points)


def displaced(matrix: Floats, loose: float, rng: np.random.Generator) -> Floats:
    """The crop's matrix with the scatter of a detector's boxes.

    Measured for Haar boxes on the training crops: 0.07 inter-ocular distances (2 pixels) in
    position and 9 % in size; about twice that is drawn, and 12 degrees of tilt.
    """
    scale = float(np.exp(rng.normal(0, 0.14 * loose)))
    angle = float(np.radians(rng.normal(0, 12 * loose)))
    turn = scale * np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    middle = np.full(2, (alignment.LANDMARK_SIZE - 1) / 2)
    shift = rng.normal(0, 4.0 * loose, 2)
    return np.column_stack([turn @ matrix[:, :2], turn @ (matrix[:, 2] - middle) + middle + shift])


def _spoil(crop: Bytes, rng: np.random.Generator) -> Bytes:
    """Gain, gamma, blur or sharpening, noise and a covered patch."""
    import cv2

    x: NDArray[np.floating] = crop.astype(np.float32)
    kind = rng.random()
    if kind < 0.25:
        x = np.asarray(cv2.GaussianBlur(x, (0, 0), rng.uniform(0.5, 2.5)), np.float32)
    elif kind < 0.65:
        # The set's pictures are smaller than the crop; the device's are often larger, so sharper.
        soft = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.8, 1.6))
        x = x + rng.uniform(0.3, 2.0) * (x - np.asarray(soft, np.float32))
    x = 255 * (np.clip(x, 0, 255) / 255) ** float(np.exp(rng.normal(0, 0.35)))
    slope = rng.normal(0, 40, 2)
    ramp = np.linspace(-0.5, 0.5, x.shape[0])
    x = x * rng.uniform(0.4, 1.3) + slope[0] * ramp[None] + slope[1] * ramp[:, None]
    x = x + rng.normal(0, rng.uniform(0, 8), x.shape)
    if rng.random() < 0.25:
        top, left = rng.integers(0, 80, 2)
        x[top : top + rng.integers(8, 24), left : left + rng.integers(8, 24)] = rng.uniform(0, 255)
    return np.asarray(np.clip(x, 0, 255), np.uint8)
