"""The similarity transform and the crops cut with it."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgeid.runtime import alignment
from edgeid.runtime.alignment import TEMPLATE, align, apply, invert, similarity
from edgeid.runtime.errors import (
    ImageError,
    InputError,
)
from tests.painted_faces import painted, turned


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
