"""What looks a little like a face and is none: the detector's hard cases."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeid.converters.training.face_pictures import FacePicture, Faces, draw_face
from edgeid.converters.training.pasting import face_mask, paste, relit, soft_ellipse, turned

__all__ = ["paste_decoy", "scraps"]

Bytes = NDArray[np.uint8]


def scraps(faces: Faces, rng: np.random.Generator) -> list[Bytes]:
    """Pieces too small to be a face: natural texture for backgrounds."""
    pieces = []
    for _ in range(4):
        face = draw_face(faces, rng, 0.5)
        side = int(rng.integers(16, 44))
        top, left = rng.integers(0, face.picture.shape[0] - side, 2)
        pieces.append(
            np.rot90(face.picture[top : top + side, left : left + side], int(rng.integers(4)))
        )
    return pieces


def paste_decoy(canvas: Bytes, faces: Faces, rng: np.random.Generator) -> None:
    """Something with a face's light and texture that is none."""
    face = draw_face(faces, rng, 0.5)
    kind = rng.random()
    angle = rng.uniform(-40, 40)
    if kind < 0.3:
        picture = _piece(face, rng)
        face = FacePicture(picture, np.array([47.5, 47.5, 60, 80]), face.points)
    elif kind < 0.5:
        picture = _scrambled(face, rng)
    elif kind < 0.8:
        picture = _emptied(face, rng)
    else:
        picture, angle = face.picture, angle + 180
    size = float(np.exp(rng.uniform(np.log(13.0), np.log(230.0))))
    matrix = turned(face.box[:2], rng.uniform(0, canvas.shape[::-1]), size / face.size, angle)
    mask = face_mask(face, size / face.size, rng)
    paste(canvas, relit(picture, size / face.size, rng), matrix, mask)


def _piece(face: FacePicture, rng: np.random.Generator) -> Bytes:
    """An eye, a cheek, hair: a third of the face enlarged."""
    side = round(rng.uniform(0.25, 0.45) * face.size)
    limit = face.picture.shape[0] - side
    left, top = (
        int(v)
        for v in np.clip(
            face.box[:2] + rng.uniform(-0.6, 0.6, 2) * face.box[2:] - side / 2, 0, limit
        )
    )
    part = np.rot90(face.picture[top : top + side, left : left + side], int(rng.integers(4)))
    return np.asarray(cv2.resize(part, (96, 96), interpolation=cv2.INTER_CUBIC), np.uint8)


def _scrambled(face: FacePicture, rng: np.random.Generator) -> Bytes:
    """The face's quarters in other places, each turned over."""
    picture = face.picture.copy()
    x, y, w, h = face.box
    half_w, half_h = int(w / 2) - 1, int(h / 2) - 1
    left, top = max(int(x) - half_w, 0), max(int(y) - half_h, 0)
    places = [
        (
            slice(top + i * half_h, top + (i + 1) * half_h),
            slice(left + j * half_w, left + (j + 1) * half_w),
        )
        for i in (0, 1)
        for j in (0, 1)
    ]
    quarters = [face.picture[place] for place in places]
    order = rng.permutation(4)
    if (order == np.arange(4)).sum() > 1:
        order = np.array([3, 2, 1, 0])
    for place, i in zip(places, order, strict=True):
        quarter = quarters[i][::-1] if rng.random() < 0.7 else quarters[i][:, ::-1]
        part = picture[place]
        part[:] = cv2.resize(np.ascontiguousarray(quarter), part.shape[1::-1])
    return picture


def _emptied(face: FacePicture, rng: np.random.Generator) -> Bytes:
    """The head with the face wiped away."""
    side = face.picture.shape[0]
    few = round(rng.uniform(4, 12))
    coarse = cv2.resize(face.picture, (few, few), interpolation=cv2.INTER_AREA)
    soft = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    grain = rng.normal(0, rng.uniform(0, 8), soft.shape)
    share = soft_ellipse(side, face.box[:2], face.box[2:] * 0.52, 5.0).astype(np.float32) / 255
    mixed = face.picture + share * (soft + grain - face.picture)
    return np.asarray(np.clip(mixed, 0, 255), np.uint8)
