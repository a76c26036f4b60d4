"""Aligned face crops for training: loading, splitting, augmenting."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from edgeid.runtime.errors import DataError, QualityError
from edgeid.runtime.members import Members

SIDE = 112  # pixels of an aligned crop
Crops = NDArray[np.uint8]  # (N, 112, 112)
CALIBRATION_SHARE = 10  # one identity in ten is kept out of training


def data_directory() -> Path:
    """The development data: ``EDGEID_DATA``, or ``../shared/data`` beside the checkout."""
    path = Path(os.environ.get("EDGEID_DATA", "../shared/data"))
    if not path.is_dir():
        raise DataError(f"no data at {path}: set EDGEID_DATA to the folder with faces/ and speech/")
    return path


def is_calibration(identity: str) -> bool:
    """Whether an identity is kept out of training, for score calibration and fusion.

    Decided by a checksum of the name, so that every step and every run agrees.
    """
    return zlib.crc32(identity.encode()) % CALIBRATION_SHARE == 0


@dataclass(frozen=True)
class FaceSet:
    """Aligned crops and who they show: ``labels[i]`` indexes ``identities``."""

    crops: Crops
    labels: NDArray[np.int64]
    identities: tuple[str, ...]

    def subset(self, keep: NDArray[np.bool_]) -> FaceSet:
        """The chosen crops, with identities renumbered."""
        used = np.unique(self.labels[keep])
        renumbered = np.searchsorted(used, self.labels[keep])
        return FaceSet(self.crops[keep], renumbered, tuple(self.identities[i] for i in used))

    @property
    def labelled(self) -> bool:
        """Whether it says who is who: crops of one folder are nobody in particular."""
        return len(self.identities) > 1

    def split(self) -> tuple[FaceSet, FaceSet]:
        """Training people and calibration people; no identity is in both."""
        held = np.array([is_calibration(name) for name in self.identities])[self.labels]
        return self.subset(~held), self.subset(held)


def read_faces(source: Path, read_photo: Callable[[bytes], Crops] | None = None) -> FaceSet:
    """Faces as 112x112 grey crops, from a folder or zip archive of images.

    The folder that an image lies in is who it shows (``[set/]identity/file.jpg``). Square
    images of up to 224 pixels are taken for aligned crops, and scaled; others are photos.

    Args:
        read_photo: finds and aligns the face in a photo. Where it raises QualityError, the
            photo is left out.

    Raises:
        DataError: the source is missing or holds no face, a file is no image, or a photo
            without ``read_photo``.
    """
    crops, names = [], []
    with Members(source) as members:
        for member in tqdm(sorted(members.names), desc=source.stem, unit="image", disable=None):
            crop = _read_crop(members, member, read_photo)
            if crop is not None:
                crops.append(crop)
                names.append(member.rpartition("/")[0])
    if not crops:
        raise DataError(f"no face was found in any image of {source}")
    identities = tuple(sorted(set(names)))
    index = {name: i for i, name in enumerate(identities)}
    labels = np.array([index[name] for name in names], np.int64)
    return FaceSet(np.stack(crops).astype(np.uint8), labels, identities)


def _read_crop(
    members: Members, name: str, read_photo: Callable[[bytes], Crops] | None
) -> Crops | None:
    content = members.read(name)
    crop = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE)
    if crop is None:
        raise DataError(f"{members.path}: {name} is not an image")
    height, width = crop.shape
    if height == width <= 2 * SIDE:
        resized = cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
        return np.asarray(resized if height != SIDE else crop, np.uint8)
    if read_photo is None:
        raise DataError(
            f"{members.path}: {name} is a photo of {width} x {height} pixels; give a landmark "
            f"network, or aligned crops of {SIDE} x {SIDE}"
        )
    try:
        return read_photo(content)
    except QualityError:
        return None


def move(
    crop: Crops,
    rng: np.random.Generator,
    shift: float,
    turn: float,
    zoom: float,
    stretch: float = 0.0,
) -> Crops:
    """Rotate by up to ``turn`` degrees, scale by 1 +- ``zoom``, shift by up to ``shift`` pixels;
    and make the face narrower or wider by up to ``stretch``, which makes it another one."""
    angle, scale = rng.uniform(-turn, turn), 1 + rng.uniform(-zoom, zoom)
    matrix = cv2.getRotationMatrix2D((55.5, 55.5), angle, scale)
    matrix[:, 2] = matrix[:, 2] + rng.uniform(-shift, shift, 2)
    if stretch:
        wider = 1 + rng.uniform(-stretch, stretch)
        matrix[0] = matrix[0] * wider
        matrix[0, 2] += 55.5 * (1 - wider)
    warped = cv2.warpAffine(crop, matrix, (112, 112), borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(warped, np.uint8)


def relight(crop: Crops, rng: np.random.Generator) -> Crops:
    """Gain, gamma and a soft shadow from one side."""
    x = crop.astype(np.float32) / 255
    x = np.clip(x * rng.uniform(0.7, 1.3) + rng.uniform(-0.1, 0.1), 0, 1) ** rng.uniform(0.7, 1.4)
    if rng.random() < 0.3:
        ramp = np.linspace(rng.uniform(0.4, 1), rng.uniform(0.8, 1.2), 112, dtype=np.float32)
        x = x * (ramp[None, :] if rng.random() < 0.7 else ramp[:, None])
        if rng.random() < 0.5:
            x = x[:, ::-1]
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


def degrade(crop: Crops, rng: np.random.Generator, share: float = 0.15) -> Crops:
    """What a poor camera does: blur, low resolution, JPEG, noise; each with chance ``share``."""
    if rng.random() < share:
        crop = cv2.GaussianBlur(crop, (0, 0), rng.uniform(0.5, 1.8))  # type: ignore[assignment]
    if rng.random() < share:
        side = int(rng.integers(40, 100))
        small = cv2.resize(crop, (side, side), interpolation=cv2.INTER_AREA)
        crop = cv2.resize(small, (112, 112), interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    if rng.random() < share:
        quality = int(rng.integers(25, 80))
        _, encoded = cv2.imencode(".jpg", crop, [cv2.IMWRITE_JPEG_QUALITY, quality])
        crop = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE)  # type: ignore[assignment]
    if rng.random() < share:
        noisy = crop + rng.normal(0, rng.uniform(2, 8), crop.shape)
        crop = np.clip(noisy, 0, 255).astype(np.uint8)
    return crop


def augment(crop: Crops, rng: np.random.Generator, strength: float = 1.0) -> Crops:
    """One training view of an aligned (112, 112) crop; ``strength`` from 0 (mirror) to 1."""
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    crop = move(crop, rng, shift=3 * strength, turn=5 * strength, zoom=0.04 * strength)
    if rng.random() < 0.5 * strength:
        crop = relight(crop, rng)
    return degrade(crop, rng, 0.15 * strength)
