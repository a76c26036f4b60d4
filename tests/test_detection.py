"""Detectors: geometry on hand-made boxes, and both of them on real photographs."""

from __future__ import annotations

import threading
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgeid.runtime.detection import (
    Box,
    Detection,
    Detector,
    HaarDetector,
    YuNetDetector,
    make_detector,
    overlap,
    suppress,
)
from edgeid.runtime.errors import ModelError
from edgeid.runtime.image import load_image
from tests.data import DATA, needs_data

YUNET = DATA.parent / "models" / "yunet.onnx"
needs_yunet = pytest.mark.skipif(not YUNET.is_file(), reason=f"no detector model {YUNET}")


def portraits(count: int) -> list[NDArray[np.uint8]]:
    with zipfile.ZipFile(DATA / "faces" / "portraits.zip") as archive:
        names = sorted(archive.namelist())[:: 320 // count]
        return [load_image(archive.read(name)) for name in names[:count]]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 10, 10), (0, 0, 10, 10), 1.0),
        ((0, 0, 10, 10), (2, 2, 5, 5), 1.0),  # one inside the other
        ((0, 0, 10, 10), (5, 0, 10, 10), 0.5),
        ((0, 0, 10, 10), (5, 5, 10, 10), 0.25),
        ((0, 0, 10, 10), (10, 0, 10, 10), 0.0),  # they touch
        ((0, 0, 10, 10), (30, 30, 5, 5), 0.0),
    ],
)
def test_overlap(a: Box, b: Box, expected: float) -> None:
    assert overlap(a, b) == pytest.approx(expected)
    assert overlap(b, a) == pytest.approx(expected)


def test_suppress_keeps_the_better_of_two() -> None:
    big, nested, apart = (
        Detection((0, 0, 100, 100), 9),
        Detection((30, 60, 40, 40), 3),
        Detection((200, 0, 50, 50), 5),
    )
    assert suppress([nested, apart, big]) == [big, apart]
    assert suppress([]) == []


def test_make_detector() -> None:
    assert isinstance(make_detector(), HaarDetector)
    assert isinstance(make_detector("haar"), HaarDetector)
    own = HaarDetector()
    assert make_detector(own) is own
    with pytest.raises(ModelError, match=r"no detector model absent\.onnx"):
        make_detector("absent.onnx")


def test_unusable_model(tmp_path: Path) -> None:
    file = tmp_path / "broken.onnx"
    file.write_bytes(b"not a model")
    with pytest.raises(ModelError, match="not a YuNet model"):
        YuNetDetector(file)


@pytest.mark.parametrize("shape", [(16, 16), (16, 900, 3), (700, 40), (120, 120, 3)])
@pytest.mark.parametrize("level", [0, 128, 255])
def test_nothing_in_flat_images(shape: tuple[int, ...], level: int) -> None:
    detector = make_detector()
    for effort in range(detector.efforts):
        assert detector.detect(np.full(shape, level, np.uint8), effort) == []


@needs_data
@needs_yunet
@pytest.mark.parametrize("which", ["haar", str(YUNET)])
def test_coordinates_follow_the_image(which: str) -> None:
    """A face moves and grows with the image, also when the search runs on a smaller copy."""
    detector = make_detector(which)
    for image in portraits(4):
        plain = detector.detect(image)
        if not plain:
            continue
        moved = np.pad(image, ((60, 0), (90, 0), (0, 0)), mode="edge")
        large = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
        box = np.array(plain[0].box)
        for other, expected in (
            (detector.detect(moved), np.add(box, (90, 60, 0, 0))),
            (detector.detect(np.asarray(large, np.uint8)), box * 4),
        ):
            assert overlap(other[0].box, tuple(expected)) > 0.8
            assert other[0].box[2] == pytest.approx(expected[2], rel=0.25)


@needs_data
@needs_yunet
def test_haar_agrees_with_yunet() -> None:
    haar, yunet = HaarDetector(), YuNetDetector(YUNET)
    agree = 0
    for image in portraits(20):
        found, expected = haar.detect(image), yunet.detect(image)
        assert expected
        assert expected[0].points is not None
        x, y, width, height = expected[0].box
        assert (
            (expected[0].points > (x, y)) & (expected[0].points < (x + width, y + height))
        ).all()
        agree += bool(found) and overlap(found[0].box, expected[0].box) > 0.6
    assert agree >= 17  # 96 % over the whole set


@needs_data
def test_one_detector_in_several_threads() -> None:
    detector: Detector = HaarDetector()
    images = portraits(3)
    expected = [[d.box for d in detector.detect(image)] for image in images]
    answers: list[bool] = []

    def work(i: int) -> None:
        answers.append([d.box for d in detector.detect(images[i % 3])] == expected[i % 3])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 6
