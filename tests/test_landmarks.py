"""The landmark network: shapes, augmentation that keeps points on the picture, training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from edgeid.converters.training.landmark_set import LandmarkSet, augment, mirror, read_landmark_set
from edgeid.converters.training.landmarks import (
    LandmarkNetwork,
    LandmarkTraining,
    load_landmarks,
    mean_error,
    train_landmarks,
)
from edgeid.runtime import alignment
from edgeid.runtime.errors import DataError
from tests.data import DATA, needs_data

# 96x96 picture whose face is as large as in the real set.
POINTS = (alignment.TEMPLATE - 56) * 0.46 + 48


def dotted(points: NDArray[np.float64]) -> NDArray[np.uint8]:
    """A dark picture with a soft bright dot on each point."""
    y, x = np.mgrid[:96, :96]
    dots = [np.exp(-((x - px) ** 2 + (y - py) ** 2) / 4) for px, py in points]
    return np.asarray(20 + 220 * np.clip(sum(dots), 0, 1), np.uint8)


def small_set(count: int = 6) -> LandmarkSet:
    rng = np.random.default_rng(3)
    points = np.stack([POINTS + rng.normal(0, 2, 2) for _ in range(count)])
    people = tuple(f"set/{i // 2}" for i in range(count))
    return LandmarkSet(np.stack([dotted(p) for p in points]), points, people)


def test_network_shape_and_size() -> None:
    network = LandmarkNetwork().eval()
    assert network(torch.zeros(3, 1, 96, 96)).shape == (3, 10)
    assert 50_000 < sum(p.numel() for p in network.parameters()) < 150_000


def test_untrained_network_gives_the_mean_face() -> None:
    with torch.no_grad():
        output = LandmarkNetwork().eval()(torch.randn(2, 1, 96, 96)).numpy()
    points = alignment.landmark_points(output)
    np.testing.assert_allclose(points, np.stack([alignment.crop_shape()] * 2), atol=3)


def test_mirror_swaps_sides() -> None:
    picture, points = mirror(dotted(POINTS), POINTS)
    np.testing.assert_array_equal(picture, dotted(POINTS)[:, ::-1])
    assert points[0, 0] < points[1, 0]  # the left eye is still the image's left one
    assert points[0] == pytest.approx((95 - POINTS[1, 0], POINTS[1, 1]))
    again = mirror(picture, points)
    np.testing.assert_array_equal(again[0], dotted(POINTS))
    np.testing.assert_allclose(again[1], POINTS)


def test_augmented_points_stay_on_the_picture() -> None:
    """Wherever a point goes, the brightest spot goes with it."""
    rng = np.random.default_rng(5)
    off = []
    for _ in range(40):
        crop, points = augment(dotted(POINTS), POINTS, rng)
        assert crop.shape == (96, 96)
        smooth = cv2.GaussianBlur(crop, (0, 0), 1.5)
        for x, y in points.round().astype(int):
            if 10 <= x < 86 and 10 <= y < 86:
                around = smooth[y - 6 : y + 7, x - 6 : x + 7]
                peak = np.unravel_index(np.argmax(around), around.shape)
                off.append(np.hypot(peak[0] - 6, peak[1] - 6))
    assert len(off) > 150
    assert np.median(off) < 1.5  # patches hide some


def test_augmentation_is_seeded() -> None:
    one, two = (augment(dotted(POINTS), POINTS, np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_array_equal(one[1], two[1])


def test_split_keeps_people_apart() -> None:
    training, held_out = small_set(20).split(0.3, seed=1)
    assert len(training.people) + len(held_out.people) == 20
    assert len(held_out.people) == 6
    assert not set(training.people) & set(held_out.people)


def test_training_lowers_the_error_and_resumes(tmp_path: Path) -> None:
    data = small_set(16)
    options = LandmarkTraining(epochs=2, batch=8, held_out=0.15, seed=2)
    path = tmp_path / "landmarks.pt"
    network, _ = train_landmarks(data, options, path)
    same = load_landmarks(path)
    x = torch.from_numpy(alignment.landmark_input(data.pictures))
    with torch.no_grad():
        assert torch.equal(network(x), same(x))
    # The checkpoint says that all is done; a second call trains nothing more.
    again, _ = train_landmarks(data, options, path)
    with torch.no_grad():
        assert torch.equal(network(x), again(x))
    with pytest.raises(DataError, match="other options"):
        train_landmarks(data, replace(options, seed=3), path)


def test_one_step_lowers_the_loss() -> None:
    from edgeid.converters.training.landmarks import landmark_loss

    torch.manual_seed(0)
    network = LandmarkNetwork().train()
    x, target = torch.randn(8, 1, 96, 96), torch.randn(8, 10) * 0.3
    optimizer = torch.optim.SGD(network.parameters(), 1e-5)
    before = landmark_loss(network(x), target)
    before.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    assert float(landmark_loss(network(x), target).detach()) < float(before.detach())


def test_loss_by_hand() -> None:
    """|d| = 1 pixel: 4 ln 2; |d| = 16 pixels: 16 - (4 - 4 ln 5)."""
    from edgeid.converters.training.landmarks import landmark_loss

    for pixels, expected in ((1, 4 * np.log(2)), (16, 12 + 4 * np.log(5))):
        found = torch.full((1, 10), pixels / 16)
        assert float(landmark_loss(found, torch.zeros(1, 10))) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_unreadable_networks(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "landmarks.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"landmarks\.pt"):
        load_landmarks(path)


def test_another_network_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    with pytest.raises(DataError, match="does not hold a landmark network"):
        load_landmarks(path)


def test_missing_set(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_landmark_set(tmp_path)


@needs_data
def test_real_set() -> None:
    data = read_landmark_set(DATA / "faces")
    assert data.pictures.shape == (3000, 96, 96)
    assert data.points.shape == (3000, 5, 2)
    assert (data.points[:, 0, 0] < data.points[:, 1, 0]).all()  # left is the image's left
    _, held_out = data.split(0.15, seed=1)
    few = held_out.where(np.arange(len(held_out.people)) < 40)
    # Knowing nothing, from displaced boxes: the mean face.
    assert 8 < mean_error(LandmarkNetwork(), few, looks=1) < 25
