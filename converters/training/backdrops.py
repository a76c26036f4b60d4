"""Backgrounds without faces, made up from noise, shapes, stripes, letters and scraps of photos."""

from __future__ import annotations

import string
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.network_detector import SIDE

__all__ = ["backdrop"]

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]
_LETTERS = np.array(list(string.ascii_letters + string.digits))


def backdrop(
    scraps: Sequence[Bytes], rng: np.random.Generator, photos: Sequence[Bytes] = ()
) -> Bytes:
    """A grey picture (SIDE, SIDE).

    Args:
        scraps: small grey pictures to enlarge and to make quilts of.
        photos: grey face-free photos of at least SIDE pixels; half of the pictures are parts
            of one, where there are any.
    """
    if photos and rng.random() < 0.5:
        return _part(photos[int(rng.integers(len(photos)))], rng)
    kind = rng.random()
    if kind < 0.15:
        picture = _noise(rng)
    elif kind < 0.45:
        picture = _leaves(rng)
    elif kind < 0.55:
        picture = _stripes(rng)
    elif kind < 0.65:
        picture = _enlarged(scraps[0])
    elif kind < 0.85:
        picture = _quilt(scraps, rng)
    else:
        picture = _ramp(rng)
    if rng.random() < 0.4:
        share = np.float32(rng.uniform(0.2, 0.6))
        picture = (1 - share) * picture + share * _noise(rng)
    if rng.random() < 0.35:
        picture = _shapes(picture, int(rng.integers(1, 12)), rng)
    if rng.random() < 0.12:
        picture = _letters(picture, rng)
    levels = np.clip(picture, 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        levels = np.asarray(cv2.GaussianBlur(levels, (0, 0), rng.uniform(0.8, 4)), np.uint8)
    return levels


def _part(photo: Bytes, rng: np.random.Generator) -> Bytes:
    side = int(rng.uniform(0.25, 1.0) * min(photo.shape))
    top, left = (int(rng.integers(0, full - side + 1)) for full in photo.shape)
    part = photo[top : top + side, left : left + side]
    if rng.random() < 0.5:
        part = part[:, ::-1]
    resized = cv2.resize(np.ascontiguousarray(part), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return np.asarray(resized, np.uint8)


def _enlarged(picture: Bytes) -> Floats:
    large = cv2.resize(np.ascontiguousarray(picture), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    return np.asarray(large, np.float32)


def _noise(rng: np.random.Generator) -> Floats:
    """Noise of several grains, each twice as coarse as the one before."""
    picture = np.full((SIDE, SIDE), rng.uniform(40, 215), np.float32)
    slope = rng.uniform(0.9, 2.2)
    strength = rng.uniform(4, 50)
    for level in range(1, 7):
        side = SIDE >> level
        grain = rng.standard_normal((side, side), dtype=np.float32)
        weight = np.float32(strength * slope ** (level - 6))
        picture += weight * np.asarray(cv2.resize(grain, (SIDE, SIDE)), np.float32)
    return picture


def _ramp(rng: np.random.Generator) -> Floats:
    line = np.linspace(-1, 1, SIDE, dtype=np.float32)
    slopes = rng.uniform(-80, 80, 3).astype(np.float32)
    across, down = line[None], line[:, None]
    picture = np.float32(rng.uniform(30, 225)) + slopes[0] * across + slopes[1] * down
    return np.asarray(picture + slopes[2] * (across * down), np.float32)


def _leaves(rng: np.random.Generator) -> Floats:
    """Shapes that cover one another, sizes as in photos: many small ones, few large."""
    return _shapes(_ramp(rng), int(rng.integers(15, 70)), rng)


def _shapes(picture: Floats, count: int, rng: np.random.Generator) -> Floats:
    picture = np.ascontiguousarray(picture)
    for _ in range(count):
        at = tuple(int(v) for v in rng.integers(0, SIDE, 2))
        size = SIDE * 0.5 * rng.uniform(0.06, 1) ** 2
        axes = (max(1, int(size)), max(1, int(size * rng.uniform(0.3, 1))))
        grey, angle = float(rng.uniform(0, 255)), float(rng.uniform(0, 180))
        kind = rng.random()
        if kind < 0.45:
            cv2.ellipse(picture, at, axes, angle, 0, 360, grey, -1)
        elif kind < 0.75:
            corners = cv2.boxPoints(
                ((float(at[0]), float(at[1])), (2.0 * axes[0], 2.0 * axes[1]), angle)
            )
            cv2.fillConvexPoly(picture, corners.astype(np.int32), grey)
        elif kind < 0.85:
            cv2.ellipse(picture, at, axes, angle, 0, 360, grey, int(rng.integers(1, 5)))
        else:
            end = tuple(int(v) for v in rng.integers(0, SIDE, 2))
            cv2.line(picture, at, end, grey, int(rng.integers(1, 8)))
    return picture


def _stripes(rng: np.random.Generator) -> Floats:
    """One or two waves, soft or hard: blinds, tiles, cloth."""
    line = np.arange(SIDE, dtype=np.float32)
    picture = np.full((SIDE, SIDE), rng.uniform(60, 195), np.float32)
    for _ in range(rng.integers(1, 3)):
        across, down = rng.uniform(-0.8, 0.8, 2) * rng.uniform(0.05, 1)
        wave = np.sin(across * line[None] + down * line[:, None] + rng.uniform(0, 6))
        if rng.random() < 0.5:
            wave = np.sign(wave)
        picture += np.float32(rng.uniform(10, 70)) * wave.astype(np.float32)
    return picture


def _quilt(scraps: Sequence[Bytes], rng: np.random.Generator) -> Floats:
    """Scraps side by side, mirrored and turned so that no two places look alike."""
    rows = int(rng.integers(2, 7))
    side = -(-SIDE // rows)
    picture = np.empty((rows * side, rows * side), np.float32)
    tiles = [cv2.resize(np.ascontiguousarray(scrap), (side, side)) for scrap in scraps]
    for row in range(rows):
        for column in range(rows):
            tile = np.rot90(tiles[int(rng.integers(len(tiles)))], int(rng.integers(4)))
            place = picture[row * side : (row + 1) * side, column * side : (column + 1) * side]
            place[:] = tile * rng.uniform(0.5, 1.2)
    return picture[:SIDE, :SIDE]


def _letters(picture: Floats, rng: np.random.Generator) -> Floats:
    picture = np.ascontiguousarray(picture)
    size, grey = float(rng.uniform(0.3, 2.5)), float(rng.uniform(0, 255))
    step = int(26 * size)
    for baseline in range(int(rng.integers(5, 60)), SIDE, max(step, 10)):
        text = "".join(rng.choice(_LETTERS, rng.integers(4, 20)))
        at = (int(rng.integers(-20, 40)), baseline)
        cv2.putText(
            picture, text, at, cv2.FONT_HERSHEY_SIMPLEX, size, grey, int(rng.integers(1, 4))
        )
    return picture
