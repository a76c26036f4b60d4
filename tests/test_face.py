"""The face front end: which face is read, and real photographs."""

from __future__ import annotations

import zipfile
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from edgeid.runtime import alignment
from edgeid.runtime.alignment import TEMPLATE, apply, similarity
from edgeid.runtime.detection import Detection
from edgeid.runtime.errors import (
    ImageError,
    InputError,
    NoFaceError,
    QualityError,
    SeveralFacesError,
)
from edgeid.runtime.face import FaceFrontEnd, FaceSpec
from tests.data import DATA, needs_data
from tests.painted_faces import MIDDLE, Faces, Image, front_end, painted


def test_one_face() -> None:
    sample = front_end(MIDDLE).read(painted(MIDDLE))
    assert sample.crop.shape == (112, 112)
    np.testing.assert_allclose(sample.points, MIDDLE, rtol=1e-6)
    assert sample.quality.faces == 1
    assert sample.quality.eye_distance == pytest.approx(35.24, abs=0.1)


def test_no_face() -> None:
    with pytest.raises(NoFaceError, match="320 x 240"):
        front_end().read(painted(MIDDLE))


def test_two_equal_faces() -> None:
    left, right = MIDDLE - (70, 0), np.add(MIDDLE, (70, 0))
    with pytest.raises(SeveralFacesError, match="2 faces"):
        front_end(left, right).read(painted(left))
    sample = front_end(left, right).read(painted(left), several="largest")
    assert sample.quality.faces == 2


def test_a_bystander_does_not_refuse_the_user() -> None:
    bystander = (TEMPLATE - 56) * 0.5 + (280, 60)
    sample = front_end(bystander, MIDDLE).read(painted(MIDDLE))
    np.testing.assert_allclose(sample.points, MIDDLE, rtol=1e-6)
    assert sample.quality.faces == 2


def test_the_central_one_of_two_is_read() -> None:
    corner = np.add(MIDDLE, (110, 70))
    for order in ((corner, MIDDLE), (MIDDLE, corner)):
        sample = front_end(*order).read(painted(MIDDLE), several="largest", checks=False)
        np.testing.assert_allclose(sample.points, MIDDLE, rtol=1e-6)


def test_unknown_rule() -> None:
    with pytest.raises(InputError, match="several='all'"):
        front_end(MIDDLE).read(painted(MIDDLE), several="all")  # type: ignore[arg-type]


@pytest.mark.parametrize("image", [b"", b"\xff\xd8\xff", np.zeros((9, 9), np.uint8), 3])
def test_hostile_images(image: Any) -> None:
    with pytest.raises(ImageError):
        front_end(MIDDLE).read(image)


class Boxes(Faces):
    """The same without points, as Haar answers."""

    def detect(self, image: Image, effort: int = 0) -> list[Detection]:
        assert effort == 0
        return [Detection(d.box, d.score) for d in super().detect(image)]


def test_points_come_from_the_landmark_network() -> None:
    """A locator that finds the painted eyes wherever the crop lies: both looks agree."""

    def locate(crops: Image) -> NDArray[np.float32]:
        found = []
        for crop in crops:
            eyes = [np.argwhere(crop == level).mean(0)[::-1] for level in (crop.max(), crop.min())]
            found.append(apply(similarity(TEMPLATE[:2], np.array(eyes)), TEMPLATE))
        return np.asarray(found, np.float32)

    sample = FaceFrontEnd(FaceSpec(), locate, Boxes([MIDDLE])).read(painted(MIDDLE), checks=False)
    np.testing.assert_allclose(sample.points, MIDDLE, atol=2)


def test_what_moves_with_the_crop_is_no_face() -> None:
    def mean_face(crops: Image) -> NDArray[np.float32]:
        return np.stack([alignment.crop_shape()] * len(crops)).astype(np.float32)

    with pytest.raises(NoFaceError):
        FaceFrontEnd(FaceSpec(), mean_face, Boxes([MIDDLE])).read(painted(MIDDLE))


# Real photographs through the default model


@pytest.fixture(scope="module")
def read() -> Any:
    from edgeid.runtime.model import Model, default_model

    try:
        default_model()
    except Exception as error:
        pytest.skip(f"no default model: {error}")
    return Model.load("default").read_face


def portrait_images(step: int) -> list[Image]:
    from edgeid.runtime.image import load_image

    with zipfile.ZipFile(DATA / "faces" / "portraits.zip") as archive:
        return [load_image(archive.read(n)) for n in sorted(archive.namelist())[::step]]


@needs_data
def test_portraits(read: Any) -> None:
    images = portrait_images(16)
    passed = 0
    for image in images:
        try:
            sample = read(image)
        except QualityError:
            continue
        passed += 1
        x, y, width, height = sample.box
        centre = sample.points.mean(0)
        assert x < centre[0] < x + width
        assert y < centre[1] < y + height
    assert passed >= 17  # of 20


@needs_data
def test_spoilt_portraits_are_refused(read: Any) -> None:
    refused = 0
    for image in portrait_images(80):
        height, width = image.shape[:2]
        two = np.hstack([image, image])
        tiny = cv2.resize(image, (width // 8, height // 8), interpolation=cv2.INTER_AREA)
        for spoilt in (two, image // 12, cv2.GaussianBlur(image, (0, 0), width / 25), tiny):
            with pytest.raises((QualityError, ImageError)):
                read(np.asarray(spoilt, np.uint8))
            refused += 1
        with pytest.raises(QualityError):
            read(np.zeros_like(image))
    assert refused == 16
