"""Pictures of faces pasted into scenes: where they show, how they are lit, what covers them."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeid.converters.training.face_pictures import FacePicture
from edgeid.runtime.alignment import apply, similarity_scale

__all__ = ["face_mask", "paste", "relit", "soft_ellipse", "turned", "worn"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float64]


def turned(source: Floats, target: Floats, scale: float, degrees: float) -> Floats:
    """Source -> target with a turn about the two points."""
    along = scale * math.cos(math.radians(degrees))
    across = scale * math.sin(math.radians(degrees))
    turn = np.array([(along, -across), (across, along)])
    return np.column_stack([turn, target - turn @ source])


def face_mask(face: FacePicture, scale: float, rng: np.random.Generator) -> Bytes:
    """Where the face's picture shows: with its surroundings, or the face alone."""
    side = face.picture.shape[0]
    kind = rng.random()
    if side == 96 and (kind < 0.5 or scale > 2.2):
        # Large ones fill the scene: then nothing of the border is seen.
        return _window(side, 0.5, rng.uniform(0.0, 0.1))
    if kind < 0.25:
        return _window(side, rng.uniform(0.42, 0.5), rng.uniform(0.0, 0.1))
    middle, axes = face.box[:2], face.box[2:] * rng.uniform(0.5, 0.62)
    if side == 96:
        axes = axes * rng.uniform(1.0, 1.4)
    return soft_ellipse(side, middle, axes, rng.uniform(0, 9.0))


def _window(side: int, half: float, soft: float) -> Bytes:
    mask = np.zeros((side, side), np.uint8)
    inset = round(side * (0.5 - half + soft / 2))
    mask[inset : side - inset, inset : side - inset] = 255
    return _softened(mask, soft * side / 3)


def soft_ellipse(side: int, centre: Floats, axes: Floats, soft: float) -> Bytes:
    mask = np.zeros((side, side), np.uint8)
    at = (round(centre[0]), round(centre[1]))
    cv2.ellipse(mask, at, (round(axes[0]), round(axes[1])), 0, 0, 360, 255, -1)
    return _softened(mask, soft)


def _softened(mask: Bytes, soft: float) -> Bytes:
    """A slope of about so many pixels on either side of the mask's border."""
    width = 2 * round(soft) + 1
    return np.asarray(cv2.blur(mask, (width, width)), np.uint8)


def worn(face: FacePicture, rng: np.random.Generator) -> Bytes:
    """A part of the face covered: a bar over the eyes, something before the mouth, a patch."""
    picture = face.picture.copy()
    eyes = np.linalg.norm(face.points[1] - face.points[0]) + 4
    grey = int(rng.integers(0, 256))
    kind = rng.random()
    if kind < 0.35:  # dark glasses
        for x, y in face.points[:2]:
            axes = (round(0.36 * eyes), round(rng.uniform(0.2, 0.32) * eyes))
            cv2.ellipse(picture, (round(x), round(y)), axes, 0, 0, 360, grey // 3, -1)
    elif kind < 0.6:  # a scarf, a hand
        top = round(float(face.points[2, 1]) + rng.uniform(0.1, 0.5) * eyes)
        picture[max(top, 0) :] = grey
    else:
        x, y = face.box[:2] + rng.uniform(-0.5, 0.5, 2) * face.box[2:]
        across, down = (int(v) for v in rng.uniform(0.15, 0.5, 2) * eyes)
        axes = (across, down)
        cv2.ellipse(picture, (round(x), round(y)), axes, 0, 0, 360, grey, -1)
    return picture


def relit(picture: Bytes, scale: float, rng: np.random.Generator) -> Bytes:
    """Own contrast, brightness and side light; enlarged pictures sharper than they come."""
    x = picture.astype(np.float32)
    if scale > 1.2 and rng.random() < 0.7:
        soft = np.asarray(cv2.GaussianBlur(x, (0, 0), rng.uniform(0.8, 1.6)), np.float32)
        x = x + rng.uniform(0.2, 1.5) * (x - soft)
    if rng.random() < 0.7:
        middle = float(x.mean())
        x = (x - middle) * rng.uniform(0.35, 1.4) + middle + rng.normal(0, 25)
    if rng.random() < 0.4:
        ramp = np.linspace(-1, 1, x.shape[0], dtype=np.float32)
        x = x * (1 + rng.uniform(-0.7, 0.7) * ramp[None] + rng.uniform(-0.3, 0.3) * ramp[:, None])
    return np.asarray(np.clip(x, 0, 255), np.uint8)


def paste(canvas: Bytes, picture: Bytes, matrix: Floats, mask: Bytes) -> None:
    """Blend a picture into the canvas where it comes to lie under the matrix."""
    side = picture.shape[0]
    corners = apply(matrix, np.array([(0, 0), (side, 0), (0, side), (side, side)]))
    full = canvas.shape[::-1]
    left, top = (int(v) for v in np.clip(np.floor(corners.min(0)), 0, full))
    right, bottom = (int(v) for v in np.clip(np.ceil(corners.max(0)) + 1, 0, full))
    if right <= left or bottom <= top:
        return
    scale = similarity_scale(matrix)
    if scale < 0.7:  # bilinear sampling alone would skip pixels
        small = max(4, round(side * scale))
        size = (small, small)
        picture = np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA), np.uint8)
        mask = np.asarray(cv2.resize(mask, size, interpolation=cv2.INTER_AREA), np.uint8)
        factor = side / small
        turn = matrix[:, :2] * factor
        matrix = np.column_stack(
            [turn, matrix[:, :2] @ np.full(2, (factor - 1) / 2) + matrix[:, 2]]
        )
    shifted = matrix - np.array([(0, 0, left), (0, 0, top)])
    size = (right - left, bottom - top)
    kind = cv2.INTER_CUBIC if scale > 1.5 else cv2.INTER_LINEAR
    put = cv2.warpAffine(picture, shifted, size, flags=kind, borderMode=cv2.BORDER_REPLICATE)
    share = cv2.warpAffine(mask, shifted, size, flags=cv2.INTER_LINEAR).astype(np.float32) / 255
    part = canvas[top:bottom, left:right]
    part[:] = np.clip(part + share * (put.astype(np.float32) - part), 0, 255).astype(np.uint8)
