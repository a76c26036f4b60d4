"""The face front end: alignment geometry, the choice of a face, quality, real photographs."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeid.runtime import alignment
from edgeid.runtime.alignment import TEMPLATE, align, apply, invert, similarity
from edgeid.runtime.detection import Detection
from edgeid.runtime.errors import (
    FaceBlurredError,
    FaceExposureError,
    FacePoseError,
    FaceTooSmallError,
    ImageError,
    InputError,
    ModelFormatError,
    NoFaceError,
    QualityError,
    SeveralFacesError,
)
from edgeid.runtime.face import FaceFrontEnd, FaceLimits, FaceSpec, network_input
from edgeid.runtime.face_quality import measure, pose, sharpness
from tests.data import DATA, needs_data

Image = NDArray[np.uint8]
TEXTURE = np.random.default_rng(0).integers(60, 200, (28, 28)).astype(np.uint8)


def turned(points: Any, scale: float, degrees: float, shift: tuple[float, float]) -> Any:
    angle = math.radians(degrees)
    turn = np.array([(math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))])
    return scale * np.asarray(points) @ turn.T + shift


def painted(points: NDArray[Any], shape: tuple[int, int] = (240, 320)) -> Image:
    """A textured picture with a white square on the left eye's place and a black on the right."""
    picture = np.asarray(cv2.resize(TEXTURE, shape[::-1], interpolation=cv2.INTER_CUBIC), np.uint8)
    for (x, y), level in zip(points[:2].round().astype(int), (255, 0), strict=True):
        picture[y - 4 : y + 5, x - 4 : x + 5] = level
    return picture


class Faces:
    """A detector that knows where the faces are; the points come with the boxes."""

    efforts = 1

    def __init__(self, points: Sequence[NDArray[Any]]) -> None:
        self.points = points

    def detect(self, image: Image, effort: int = 0) -> list[Detection]:  # noqa: ARG002
        found = []
        for points in self.points:
            side = 94.0 * similarity(TEMPLATE, points)[0, 0]
            x, y = np.asarray(points).mean(0) - side * 0.55
            box = (float(x), float(y), side, side)
            found.append(Detection(box, 1.0, np.asarray(points, np.float32)))
        return found


def front_end(*points: NDArray[Any], spec: FaceSpec | None = None) -> FaceFrontEnd:
    return FaceFrontEnd(spec or FaceSpec(), no_landmarks, Faces(points))


def no_landmarks(_: Image) -> NDArray[np.float32]:
    raise AssertionError("the detections bring points")


# Similarity transform


@pytest.mark.parametrize(
    ("scale", "degrees", "shift"), [(1, 0, (0, 0)), (2, 90, (5, -3)), (0.3, -170, (1e3, 4))]
)
def test_similarity_by_hand(scale: float, degrees: float, shift: tuple[float, float]) -> None:
    square = np.array([(0, 0), (4, 0), (4, 3), (0, 3)])
    matrix = similarity(square, turned(square, scale, degrees, shift))
    expected = turned(np.eye(2), scale, degrees, (0, 0)).T
    np.testing.assert_allclose(matrix[:, :2], expected, atol=1e-9)
    np.testing.assert_allclose(matrix[:, 2], shift, atol=1e-9)


def test_similarity_of_two_points_by_hand() -> None:
    """(0,0)-(1,0) onto (1,1)-(1,3): twice as long, a quarter turn, shifted by (1,1)."""
    matrix = similarity(np.array([(0, 0), (1, 0)]), np.array([(1, 1), (1, 3)]))
    np.testing.assert_allclose(matrix, [(0, -2, 1), (2, 0, 1)], atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_similarity_is_the_least_squares_one(seed: int) -> None:
    """OpenCV's estimator without outliers, and the normal equations, give the same."""
    rng = np.random.default_rng(seed)
    source = rng.normal(0, 30, (5, 2))
    target = turned(source, 1.7, 33, (8, 9)) + rng.normal(0, 2, (5, 2))
    found = similarity(source, target)
    rows = [[(x, -y, 1, 0), (y, x, 0, 1)] for x, y in source]
    a, b, c, d = np.linalg.lstsq(np.concatenate(rows), target.ravel(), rcond=None)[0]
    np.testing.assert_allclose(found, [(a, -b, c), (b, a, d)], atol=1e-8)
    robust, inliers = cv2.estimateAffinePartial2D(source, target, ransacReprojThreshold=100)
    assert inliers.all()
    np.testing.assert_allclose(found, robust, atol=0.02)


@given(st.floats(0.05, 20), st.floats(-179, 179), st.floats(-500, 500), st.integers(0, 2**32 - 1))
def test_similarity_maps_back(scale: float, degrees: float, shift: float, seed: int) -> None:
    points = TEMPLATE + np.random.default_rng(seed).normal(0, 3, TEMPLATE.shape)
    moved = turned(points, scale, degrees, (shift, -shift))
    matrix = similarity(moved, points)
    np.testing.assert_allclose(apply(matrix, moved), points, atol=1e-6)
    np.testing.assert_allclose(apply(invert(matrix), points), moved, atol=1e-5 * max(1, scale))


@pytest.mark.parametrize(
    ("source", "target"),
    [
        (np.zeros((5, 2)), TEMPLATE),
        (np.full((5, 2), np.nan), TEMPLATE),
        (TEMPLATE, TEMPLATE * np.inf),
        (TEMPLATE[:4], TEMPLATE),
        (TEMPLATE[:1], TEMPLATE[:1]),
        (TEMPLATE.ravel(), TEMPLATE.ravel()),
    ],
)
def test_similarity_refuses(source: NDArray[Any], target: NDArray[Any]) -> None:
    with pytest.raises(InputError):
        similarity(source, target)


# Alignment


def test_aligned_already() -> None:
    picture = painted(TEMPLATE, (112, 112))
    np.testing.assert_array_equal(align(picture, TEMPLATE), picture)


@pytest.mark.parametrize(("scale", "degrees"), [(1.0, 0), (1.4, 20), (0.9, -35), (1.2, 90)])
def test_points_land_on_the_template(scale: float, degrees: float) -> None:
    points = turned(TEMPLATE - 56, scale, degrees, (160, 120))
    crop = align(painted(points), points)
    assert crop.shape == (112, 112)
    assert crop.dtype == np.uint8
    assert crop[52, 38] > 245
    assert crop[52, 74] < 10


def test_colour_is_turned_to_grey() -> None:
    colour = np.random.default_rng(2).integers(0, 256, (112, 112, 3)).astype(np.uint8)
    grey = np.asarray(cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY), np.uint8)
    np.testing.assert_array_equal(align(colour, TEMPLATE), align(grey, TEMPLATE))


@pytest.mark.parametrize("shrink", [2, 3, 5.5, 12])
def test_shrinking_averages(shrink: float) -> None:
    """A fine checkerboard shrinks to its mean; sampling alone would leave stripes."""
    side = int(112 * shrink) + 40
    board = np.asarray(np.indices((side, side)).sum(0) % 2 * 200, np.uint8)
    crop = align(board, TEMPLATE * shrink + 10)
    assert abs(float(crop.mean()) - 100) < 2
    assert crop.std() < 15


@pytest.mark.parametrize("shrink", [1, 1.3, 2, 3.7, 8])
def test_shrinking_does_not_shift(shrink: float) -> None:
    """The centre of a soft blob stays where the points say, to a tenth of a pixel."""
    side = int(112 * shrink) + 30
    x, y = (TEMPLATE[2] + 0.5) * shrink - 0.5 + 7
    rows, columns = np.mgrid[:side, :side]
    blob = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * (5 * shrink) ** 2))
    crop = align(blob.astype(np.uint8), (TEMPLATE + 0.5) * shrink - 0.5 + 7).astype(float)
    rows, columns = np.mgrid[:112, :112]
    centre = [(crop * columns).sum() / crop.sum(), (crop * rows).sum() / crop.sum()]
    np.testing.assert_allclose(centre, TEMPLATE[2], atol=0.1)


def test_faces_beyond_the_border() -> None:
    assert align(painted(TEMPLATE, (112, 112)), TEMPLATE - 60).shape == (112, 112)
    assert align(np.zeros((16, 16), np.uint8), TEMPLATE + 5000).shape == (112, 112)


def test_align_refuses_other_points() -> None:
    with pytest.raises(InputError, match=r"\(5, 2\)"):
        align(np.zeros((112, 112), np.uint8), TEMPLATE[:4])


# Landmark crops


def test_box_and_points_give_the_same_crop() -> None:
    """A box as Haar draws it and the face's own points frame the face alike."""
    points = TEMPLATE * 2 + (40, 30)
    centre = np.array([56.03, 64.0]) * 2 + (40, 30)
    box = (float(centre[0] - 93.5), float(centre[1] - 93.5), 188.0, 188.0)
    np.testing.assert_allclose(alignment.box_to_crop(box), alignment.points_to_crop(points))
    np.testing.assert_allclose(
        apply(alignment.points_to_crop(points), points), alignment.crop_shape(), atol=1e-9
    )


def test_landmark_input_and_output() -> None:
    crops = np.random.default_rng(1).integers(0, 256, (3, 96, 96)).astype(np.uint8)
    x = alignment.landmark_input(crops)
    assert x.shape == (3, 1, 96, 96)
    np.testing.assert_allclose(x.mean(axis=(1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(x.std(axis=(1, 2, 3)), 1, atol=1e-4)
    assert np.isfinite(alignment.landmark_input(np.zeros((1, 96, 96), np.uint8))).all()
    points = alignment.landmark_points(np.full((2, 10), 0.5, np.float32))
    np.testing.assert_allclose(points, np.stack([alignment.crop_shape() + 8] * 2), rtol=1e-6)
    with pytest.raises(ImageError):
        alignment.landmark_input(crops[:, :95])
    with pytest.raises(InputError):
        alignment.landmark_points(np.zeros((2, 8), np.float32))


# Spec and network input


def test_spec_round_trip() -> None:
    spec = FaceSpec(channels=3, crop=(0, 0, 112, 112), limits=FaceLimits(max_yaw=30))
    assert FaceSpec.from_dict(spec.to_dict()) == spec
    assert FaceSpec().crop == (0, 8, 112, 96)


@pytest.mark.parametrize(
    "change",
    [
        {"size": 96},
        {"size": 112.0},
        {"channels": 2},
        {"channels": True},
        {"crop": [0, 8, 112]},
        {"crop": [0, 20, 112, 96]},
        {"crop": [-1, 0, 112, 96]},
        {"crop": [0, 0, 0, 96]},
        {"crop": "0,8"},
        {"crop": [0, 8.0, 112, 96]},
        {"mean": float("nan")},
        {"mean": "127"},
        {"mean": None},
        {"scale": 0},
        {"scale": -1},
        {"limits": None},
        {"limits": {}},
        {"unknown": 1},
    ],
)
def test_spec_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(ModelFormatError):
        FaceSpec.from_dict({**FaceSpec().to_dict(), **change})


def test_spec_needs_every_key() -> None:
    for key in FaceSpec().to_dict():
        values = FaceSpec().to_dict()
        del values[key]
        with pytest.raises(ModelFormatError, match="exactly"):
            FaceSpec.from_dict(values)
    with pytest.raises(ModelFormatError):
        FaceLimits.from_dict({**FaceLimits().__dict__, "max_yaw": float("inf")})


def test_network_input_by_hand() -> None:
    crops = np.zeros((2, 112, 112), np.uint8)
    crops[1, 0, 8] = 255
    x = network_input(crops, FaceSpec())
    assert x.shape == (2, 1, 112, 96)
    assert x.dtype == np.float32
    assert x[0, 0, 0, 0] == -127.5 / 128
    assert x[1, 0, 0, 0] == 127.5 / 128


def test_network_input_channels() -> None:
    bgr = np.zeros((1, 112, 112, 3), np.uint8)
    bgr[..., 0] = 200
    three = FaceSpec(channels=3, crop=(0, 0, 112, 112), mean=0.0, scale=1.0)
    assert network_input(bgr, three)[0, :, 5, 5].tolist() == [0, 0, 200]  # R, G, B
    assert network_input(bgr[..., 0], three)[0, :, 5, 5].tolist() == [200, 200, 200]
    one = replace(three, channels=1)
    assert network_input(bgr, one)[0, 0, 5, 5] == pytest.approx(0.114 * 200, abs=1)


@pytest.mark.parametrize(
    "crops",
    [
        np.zeros((1, 112, 112), np.float32),
        np.zeros((112, 112), np.uint8),
        np.zeros((1, 96, 112), np.uint8),
        np.zeros((1, 112, 112, 4), np.uint8),
    ],
)
def test_network_input_refuses(crops: Any) -> None:
    with pytest.raises(ImageError):
        network_input(crops, FaceSpec())


# Which face

MIDDLE = TEMPLATE - 56 + (160, 120)


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


# Quality


def read_quality(image: Image, points: NDArray[Any] = MIDDLE) -> Any:
    return front_end(points).read(image)


def test_tiny_faces() -> None:
    points = (TEMPLATE - 56) * 0.4 + (160, 120)
    with pytest.raises(FaceTooSmallError, match="14 pixels between the eyes, 18 needed"):
        read_quality(painted(points), points)


def test_blurred_faces() -> None:
    blurred = np.asarray(cv2.GaussianBlur(painted(MIDDLE), (0, 0), 12), np.uint8)
    with pytest.raises((FaceBlurredError, FaceExposureError)):
        read_quality(blurred)


@pytest.mark.parametrize(("gain", "offset"), [(0.1, 0), (0.3, 200), (0.02, 120), (8, -200)])
def test_exposure(gain: float, offset: float) -> None:
    spoilt = np.clip(painted(MIDDLE) * float(gain) + offset, 0, 255).astype(np.uint8)
    with pytest.raises(FaceExposureError):
        read_quality(spoilt)


@pytest.mark.parametrize("degrees", [-80, 60, 170])
def test_tilted_faces(degrees: float) -> None:
    points = turned(TEMPLATE - 56, 1, degrees, (160, 120))
    with pytest.raises(FacePoseError, match=f"tilted {abs(degrees)}"):
        read_quality(painted(points), points)


def test_checks_can_be_left_out() -> None:
    sample = front_end(MIDDLE).read(painted(MIDDLE) // 20, checks=False)
    assert sample.quality.brightness < 30
    assert set(sample.quality.to_dict()) >= {"sharpness", "yaw", "faces"}


def test_pose_of_the_template() -> None:
    yaw, pitch, roll = pose(TEMPLATE)
    assert yaw == pytest.approx(0, abs=1e-6)
    assert roll == pytest.approx(0, abs=1e-6)
    assert 0 <= pitch < 15  # usual noses are a little lower than the template's


@pytest.mark.parametrize("degrees", [-40, 15, 30])
def test_pose_of_a_turned_head(degrees: float) -> None:
    """Points of a head in three dimensions, turned and seen from afar."""
    depth = np.array([0, 0, 18, 0, 0.0])
    head = np.column_stack([TEMPLATE - TEMPLATE[[0, 1, 3, 4]].mean(0), depth])
    angle = math.radians(degrees)
    seen = head[:, :2].copy()
    seen[:, 0] = head[:, 0] * math.cos(angle) + head[:, 2] * math.sin(angle)
    yaw, _, roll = pose(turned(seen, 2.5, 25, (100, 80)))
    # The template's nose is not on its axis, and the fit to it tilts a little when it moves.
    assert yaw == pytest.approx(degrees, abs=8)
    assert roll == pytest.approx(25, abs=6)


def test_sharpness_ignores_gain_and_falls_with_blur() -> None:
    crop = align(painted(MIDDLE), MIDDLE)
    assert sharpness(crop // 2) == pytest.approx(sharpness(crop), rel=0.1)
    blurred = [
        sharpness(np.asarray(cv2.GaussianBlur(crop, (0, 0), s), np.uint8)) for s in (1, 2, 4, 8)
    ]
    assert blurred == sorted(blurred, reverse=True)
    assert sharpness(np.full((112, 112), 99, np.uint8)) == 0


@needs_data
def test_limits_on_aligned_training_crops() -> None:
    """Nearly all crops pass; all fail when blurred by 4 pixels, very dark or washed out."""
    with zipfile.ZipFile(DATA / "faces" / "train.zip") as archive:
        names = [name for name in sorted(archive.namelist()) if name.endswith(".jpg")][::170]
        crops = [
            np.asarray(cv2.imdecode(np.frombuffer(archive.read(n), np.uint8), 0)) for n in names
        ]
    limits = FaceLimits(max_pitch=90)
    passed = 0
    for crop in crops:
        crop = np.asarray(cv2.resize(crop, (112, 112), interpolation=cv2.INTER_CUBIC), np.uint8)
        passed += not limits.failures(measure(crop, TEMPLATE))
        spoilt = {
            FaceBlurredError: cv2.GaussianBlur(crop, (0, 0), 4),
            FaceExposureError: crop // 10,
        }
        for kind, image in spoilt.items():
            failed = limits.failures(measure(np.asarray(image, np.uint8), TEMPLATE))
            assert any(isinstance(error, kind) for error in failed)
        washed = np.clip(crop.astype(int) * 2 + 150, 0, 255).astype(np.uint8)
        assert limits.failures(measure(washed, TEMPLATE))
    assert passed >= 0.98 * len(crops)


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
