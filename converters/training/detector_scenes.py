"""Scenes that the detector learns from: faces of the training photos on made-up backgrounds.

Everything is drawn from a generator: the same seed gives the same scenes. A third show no face,
a third one face close up, as a user's photo does, and a third up to four of any size. Borders
of what is pasted in are no cue to faces, as parts of faces, scrambled ones and heads without a
face are pasted in the same way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeid.converters.training.backdrops import backdrop
from edgeid.converters.training.decoys import paste_decoy, scraps
from edgeid.converters.training.face_pictures import FacePicture, Faces, draw_face
from edgeid.converters.training.pasting import face_mask, paste, relit, turned, worn
from edgeid.runtime.alignment import apply, to_grey
from edgeid.runtime.detection import Box, overlap
from edgeid.runtime.image import load_image
from edgeid.runtime.members import Members
from edgeid.runtime.network_detector import SIDE

__all__ = ["Scene", "make_scene", "read_backgrounds"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]

_SMALLEST = 13.0  # face sizes (square root of the box's area), pixels


@dataclass(frozen=True)
class Scene:
    """A grey picture of at most ``SIDE`` by ``SIDE`` pixels and the faces in it.

    faces (n, 15): box (centre x, y, width, height), five points, and 1 where the face is to be
    found, 0 where too much of it lies outside to demand either.
    """

    picture: Bytes
    faces: Floats


def read_backgrounds(source: Path) -> list[Bytes]:
    """Photos without faces, from a folder or zip archive, as grey pictures of at least ``SIDE``.

    Raises:
        DataError, ImageError: it is missing, or a file is no image.
    """
    with Members(source) as members:
        photos = [to_grey(load_image(members.read(name))) for name in sorted(members.names)]
    return [_at_least(photo) for photo in photos]


def _at_least(photo: Bytes) -> Bytes:
    factor = max(1.0, SIDE / min(photo.shape))
    size = [math.ceil(side * factor) for side in photo.shape[::-1]]
    return np.asarray(cv2.resize(photo, size), np.uint8)


def make_scene(faces: Faces, rng: np.random.Generator, backgrounds: Sequence[Bytes] = ()) -> Scene:
    """One scene. Half of the backdrops are parts of ``backgrounds``, face-free grey photos of at
    least ``SIDE`` pixels, where there are any."""
    shape = _frame(rng)
    canvas = backdrop(scraps(faces, rng), rng, backgrounds)[: shape[0], : shape[1]].copy()
    kind = rng.random()
    sizes: list[float] = []
    if kind < 1 / 3:
        sizes = [rng.uniform(0.25, 0.85) * min(shape)]
    elif kind < 2 / 3:
        largest = rng.choice([60.0, 110.0, 0.9 * min(shape)])
        count = int(rng.integers(1, 5))
        sizes = sorted(_log_uniform(rng, _SMALLEST, largest) for _ in range(count))[::-1]
    for _ in range(rng.integers(0, 3) if sizes else rng.integers(0, 5)):
        paste_decoy(canvas, faces, rng)
    found: list[Floats] = []
    for size in sizes:
        label = _place(draw_face(faces, rng), size, canvas, found, rng)
        if label is not None:
            found.append(label)
    return Scene(_photograph(canvas, rng), _labels(found, shape))


def _frame(rng: np.random.Generator) -> tuple[int, int]:
    """Height and width of an upright, a square or a broad photo at that many pixels."""
    if rng.random() < 0.3:
        return SIDE, SIDE
    short = round(SIDE * rng.choice([0.5625, 0.75, rng.uniform(0.5, 1)]))
    return (short, SIDE) if rng.random() < 0.6 else (SIDE, short)


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(math.exp(rng.uniform(math.log(low), math.log(high))))


def _labels(found: Sequence[Floats], shape: tuple[int, ...]) -> Floats:
    """Faces with how much each counts: enough of the box has to be in the picture."""
    rows = []
    for label in found:
        x, y, w, h = label[:4]
        across = min(x + w / 2, shape[1]) - max(x - w / 2, 0)
        down = min(y + h / 2, shape[0]) - max(y - h / 2, 0)
        rows.append([*label, float(across * down > 0.75 * w * h)])
    return np.array(rows, np.float64).reshape(-1, 15)


def _place(
    face: FacePicture, size: float, canvas: Bytes, found: Sequence[Floats], rng: np.random.Generator
) -> Floats | None:
    """Paste a face so that it covers no other; its label (14,), or None where there is no room."""
    scale, angle = size / face.size, rng.normal(0, 12)
    if rng.random() < 0.15:
        angle = rng.uniform(-38, 38)
    for _ in range(6):
        full = np.array(canvas.shape[::-1], np.float64)
        margin = np.minimum(0.42 * size, 0.45 * full)
        centre = rng.uniform(margin, full - margin)
        matrix = turned(face.box[:2], centre, scale, angle)
        label = np.concatenate([centre, face.box[2:] * scale, apply(matrix, face.points).ravel()])
        if all(overlap(_corner_box(label), _corner_box(other)) < 0.1 for other in found):
            picture = worn(face, rng) if rng.random() < 0.2 else face.picture
            paste(canvas, relit(picture, scale, rng), matrix, face_mask(face, scale, rng))
            return label
    return None


def _corner_box(label: Floats) -> Box:
    x, y, w, h = (float(v) for v in label[:4])
    return x - w / 2, y - h / 2, w, h


def _photograph(canvas: Bytes, rng: np.random.Generator) -> Bytes:
    """What light and camera do: shade, gamma, blur, low resolution, noise, JPEG."""
    if rng.random() < 0.3:
        across, down = (np.linspace(-1, 1, n, dtype=np.float32) for n in canvas.shape[::-1])
        slope = rng.uniform(-0.6, 0.6, 2).astype(np.float32)
        shade = 1 + slope[0] * across[None] + slope[1] * down[:, None]
        canvas = np.clip(canvas * shade, 0, 255).astype(np.uint8)
    if rng.random() < 0.6:
        levels = np.linspace(0, 1, 256) ** math.exp(rng.normal(0, 0.4))
        levels = levels * rng.uniform(0.4, 1.2) + rng.uniform(0, 0.15)
        canvas = cv2.LUT(canvas, np.clip(255 * levels, 0, 255).astype(np.uint8)).astype(np.uint8)
    if rng.random() < 0.2:
        canvas = np.asarray(cv2.GaussianBlur(canvas, (0, 0), rng.uniform(0.4, 2.0)), np.uint8)
    if rng.random() < 0.15:
        share = rng.uniform(0.3, 0.8)
        small = cv2.resize(canvas, None, fx=share, fy=share, interpolation=cv2.INTER_AREA)
        canvas = np.asarray(cv2.resize(small, canvas.shape[::-1]), np.uint8)
    if rng.random() < 0.4:
        noise = rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(1, 14)
        canvas = np.clip(canvas + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.15:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(15, 70))]
        _, encoded = cv2.imencode(".jpg", canvas, quality)
        canvas = np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE), np.uint8)
    return canvas
