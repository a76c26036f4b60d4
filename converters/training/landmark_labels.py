"""The landmark set out of photos of one's own: faces cut out, five points marked by YuNet."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from edgeid.converters.training.landmark_set import LABEL_SHIFT, Bytes, Floats
from edgeid.runtime import alignment
from edgeid.runtime.detection import Detection, Detector
from edgeid.runtime.errors import DataError, ImageError
from edgeid.runtime.image import load_image
from edgeid.runtime.members import Members
from edgeid.runtime.replacement import replace_file

SIDE = 96  # pixels of a crop, which is twice as wide and high as the face is high
SMALLEST = 24  # pixels of a face's height: below, points are guesses
POINTS = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
COLUMNS = ("file", "source", "box_w", "box_h", *(f"{p}_{axis}" for p in POINTS for axis in "xy"))


@dataclass(frozen=True)
class LabelledFace:
    """A grey crop (96, 96), the points (5, 2) and the box (width, height) in its pixels."""

    source: str
    crop: Bytes
    points: Floats
    box: tuple[float, float]


def label_photos(photos: Path, detector: Detector, out: Path) -> int:
    """Write ``landmarks.zip`` and ``landmarks.csv`` of all faces in photos to the folder ``out``.

    Args:
        photos: folder or zip archive; the folder of a photo is who it shows, so that nobody
            is both trained and tested on.
        detector: must give points: YuNet.

    Returns:
        How many faces there are. Photos without a face are left out.

    Raises:
        DataError: there is no photo, one cannot be read, or no face is found.
    """
    rows, memory, count = [], io.BytesIO(), 0
    with Members(photos) as members, zipfile.ZipFile(memory, "w") as archive:
        names = sorted(members.names)
        for name in tqdm(names, desc="faces", unit="photo", disable=None):
            try:
                photo = load_image(members.read(name))
            except ImageError as error:
                raise DataError(f"{photos}: {name} cannot be read: {error}") from error
            for face in _faces(name, photo, detector):
                file = f"{count:05d}.jpg"
                encoded = cv2.imencode(".jpg", face.crop, [cv2.IMWRITE_JPEG_QUALITY, 95])[1]
                archive.writestr(file, encoded.tobytes())
                rows.append(_row(file, face))
                count += 1
    if not rows:
        raise DataError(f"no face was found in the {len(names):,} photos of {photos}")
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([COLUMNS, *rows])
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "landmarks.zip", memory.getvalue())
    replace_file(out / "landmarks.csv", table.getvalue().encode())
    return count


def _faces(name: str, photo: Bytes, detector: Detector) -> Iterator[LabelledFace]:
    grey = alignment.to_grey(photo)
    for found in detector.detect(photo):
        _, _, _, height = found.box
        if found.points is not None and height >= SMALLEST:
            yield _cut(name, grey, found)


def _cut(name: str, grey: Bytes, found: Detection) -> LabelledFace:
    x, y, width, height = found.box
    assert found.points is not None
    scale = SIDE / (2 * height)
    middle = np.array([x + width / 2, y + height / 2]) - 0.5  # of pixel centres
    matrix = np.column_stack([scale * np.eye(2), (SIDE - 1) / 2 - scale * middle])
    crop = alignment.cut(grey, matrix, SIDE)
    points = alignment.apply(matrix, found.points.astype(np.float64))
    return LabelledFace(name, crop, points, (width * scale, height * scale))


def _row(file: str, face: LabelledFace) -> list[str]:
    points = (face.points + LABEL_SHIFT).ravel()
    numbers = [f"{value:.2f}" for value in (*face.box, *points)]
    return [file, face.source, *numbers]
