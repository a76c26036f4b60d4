"""Pictures of faces to make scenes of, with boxes and points as YuNet gives them."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgeid.converters.training.faces import SIDE, is_calibration, read_faces
from edgeid.converters.training.landmark_set import mirror, read_landmark_set
from edgeid.runtime.alignment import TEMPLATE
from edgeid.runtime.errors import DataError

__all__ = ["FacePicture", "Faces", "draw_face", "read_detector_faces"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

# YuNet's boxes in pixels of the aligned crop: medians over the 3,000 landmark crops (5 % to 95 %:
# width 76 to 85, height 102 to 116, centre within 4 pixels up and down, 12 sideways as heads turn).
_BOX = (56.03, 63.4, 80.2, 109.5)


@dataclass(frozen=True)
class Faces:
    """Grey pictures of one face each, with YuNet's box (centre x, y, width, height) and points.

    ``loose`` (N, 96, 96) show twice the face's box, ``close`` (M, 112, 112) are aligned crops
    of the face alone; one of the two may be missing.
    """

    loose: Bytes
    loose_boxes: Floats
    loose_points: Floats
    close: Bytes

    def __post_init__(self) -> None:
        if not len(self.close) and not len(self.loose):
            raise DataError("there is no face to make scenes of: more people are needed")

    @classmethod
    def aligned(cls, crops: Bytes) -> Faces:
        """Of aligned crops (M, 112, 112) alone."""
        return cls(np.empty((0, 96, 96), np.uint8), np.empty((0, 4)), np.empty((0, 5, 2)), crops)


def read_detector_faces(folder: Path, held_out: bool = False) -> Faces:
    """Faces of ``landmarks.zip``, and of ``train.zip`` where there is one: of training people, or
    of those kept out of training.

    Raises:
        DataError: the files are missing or cannot be read, or hold nobody of that kind.
    """
    close = np.empty((0, SIDE, SIDE), np.uint8)
    if (folder / "train.zip").exists():
        close = read_faces(folder / "train.zip").split()[held_out].crops
    loose = read_landmark_set(folder)
    with open(folder / "landmarks.csv", newline="", encoding="utf-8") as table:
        sizes = [(float(r["box_w"]), float(r["box_h"])) for r in csv.DictReader(table)]
    kept = np.array([is_calibration(name) == held_out for name in loose.people])
    boxes = np.column_stack([np.full((len(sizes), 2), 47.5), sizes])
    return Faces(loose.pictures[kept], boxes[kept], loose.points[kept], close)


@dataclass(frozen=True)
class FacePicture:
    """One of them, perhaps mirrored."""

    picture: Bytes
    box: Floats  # centre x, y, width, height
    points: Floats

    @property
    def size(self) -> float:
        return math.sqrt(self.box[2] * self.box[3])


def draw_face(faces: Faces, rng: np.random.Generator, loose: float = 0.6) -> FacePicture:
    """A face with its surroundings, by the chance ``loose``, or an aligned one; half mirrored."""
    if (rng.random() < loose and len(faces.loose)) or not len(faces.close):
        i = int(rng.integers(len(faces.loose)))
        face = FacePicture(faces.loose[i], faces.loose_boxes[i], faces.loose_points[i])
    else:
        crop = faces.close[rng.integers(len(faces.close))]
        face = FacePicture(crop, np.array(_BOX), TEMPLATE)
    if rng.random() < 0.5:
        picture, points = mirror(face.picture, face.points)
        width = picture.shape[1] - 1
        face = FacePicture(picture, np.array([width - face.box[0], *face.box[1:]]), points)
    return face
