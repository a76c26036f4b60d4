"""How often detectors find one face, none or several, also where there is none, and how fast."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.intervals import binomial_rate
from edgeid.runtime.detection import Detector
from edgeid.runtime.errors import NoFaceError, QualityError
from edgeid.runtime.face import FaceFrontEnd
from edgeid.runtime.image import load_image

Image = NDArray[np.uint8]


def share(count: int, total: int) -> dict[str, float | int]:
    """In percent, with the Clopper-Pearson interval."""
    rate = binomial_rate(count, total)
    low, high = (round(100 * v, 2) for v in (rate.low, rate.high))
    return {"percent": round(100 * rate.value, 2), "low": low, "high": high, "of": total}


def found_exactly_one(detector: Detector, photos: Mapping[str, Image]) -> dict[str, Any]:
    """Photos of one person each: what the detector finds at its first effort."""
    counts = Counter(min(len(detector.detect(photo)), 2) for photo in photos.values())
    return {
        "exactly one": share(counts[1], len(photos)),
        "none": counts[0],
        "several": counts[2],
    }


def false_faces(
    detector: Detector, front_end: FaceFrontEnd, photos: Mapping[str, Image]
) -> dict[str, Any]:
    """Photos without a face: those with a detection at the first effort, how many there are, and
    those that the front end, with all its efforts, would take for a face."""
    counts = {name: len(detector.detect(photo)) for name, photo in photos.items()}
    read = [name for name, photo in photos.items() if _reads(front_end, photo)]
    return {
        "photos with a false face": share(sum(n > 0 for n in counts.values()), len(photos)),
        "false faces per 100": round(100 * sum(counts.values()) / len(photos), 2),
        "read by the front end": share(len(read), len(photos)),
        "which": sorted(name for name, count in counts.items() if count)[:20],
        "which are read": sorted(read)[:20],
    }


def _reads(front_end: FaceFrontEnd, photo: Image) -> bool:
    """Whether a face is found, whatever its quality."""
    try:
        front_end.read(photo, several="largest")
    except NoFaceError:
        return False
    except QualityError:
        return True
    return True


def milliseconds(
    detectors: Mapping[str, Detector], photos: Sequence[Image], rounds: int = 5
) -> dict[str, float]:
    """Median of an image at 640x480, first effort, the detectors taking turns."""
    import cv2

    images = [np.asarray(cv2.resize(photo, (640, 480)), np.uint8) for photo in photos]
    seconds: dict[str, list[float]] = {name: [] for name in detectors}
    for _ in range(rounds):
        for image in images:
            for name, detector in detectors.items():
                start = time.perf_counter()
                detector.detect(image)
                seconds[name].append(time.perf_counter() - start)
    return {name: round(1e3 * statistics.median(taken), 2) for name, taken in seconds.items()}


def read_folder(folder: Path) -> dict[str, Image]:
    """Every image of a folder and those below it, by name."""
    endings = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in endings)
    return {str(path.relative_to(folder)): load_image(path) for path in paths}
