"""Loading, splitting and augmenting face crops for training."""

from __future__ import annotations

import zipfile

import numpy as np
import pytest

cv2 = pytest.importorskip("cv2")

from edgeid.converters.training.faces import (  # noqa: E402
    FaceSet,
    augment,
    is_calibration,
    move,
    read_faces,
)
from edgeid.runtime.errors import DataError  # noqa: E402


def archive(path, members):
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(name, data)
    return path


def jpeg(size, value=128):
    return cv2.imencode(".jpg", np.full((size, size), value, np.uint8))[1].tobytes()


def test_crops_are_read_labelled_and_enlarged(tmp_path):
    path = archive(
        tmp_path / "t.zip",
        {"s/bob/1.jpg": jpeg(112, 10), "s/ann/1.jpg": jpeg(64, 200), "s/bob/2.jpg": jpeg(112, 30)},
    )
    faces = read_faces(path)
    assert faces.identities == ("s/ann", "s/bob")
    assert faces.labels.tolist() == [0, 1, 1]
    assert faces.crops.shape == (3, 112, 112)
    assert faces.crops[:, 0, 0].tolist() == [200, 10, 30]


def test_missing_empty_and_broken_archives_are_told(tmp_path):
    with pytest.raises(DataError, match="no such zip"):
        read_faces(tmp_path / "none.zip")
    with pytest.raises(DataError, match="holds no files"):
        read_faces(archive(tmp_path / "empty.zip", {}))
    with pytest.raises(DataError, match=r"s/x/1\.jpg is not an image"):
        read_faces(archive(tmp_path / "bad.zip", {"s/x/1.jpg": b"nonsense"}))


def test_split_parts_people_not_photos():
    names = tuple(f"set/{n}" for n in range(400))
    labels = np.repeat(np.arange(400), 2)
    crops = np.zeros((800, 112, 112), np.uint8)
    crops[:, 0, 0] = labels % 256
    train, held = FaceSet(crops, labels, names).split()
    assert not set(train.identities) & set(held.identities)
    assert set(train.identities) | set(held.identities) == set(names)
    assert 0.05 < len(held.identities) / 400 < 0.16
    assert all(is_calibration(name) for name in held.identities)
    original = [names.index(held.identities[label]) % 256 for label in held.labels]
    assert held.crops[:, 0, 0].tolist() == original


def test_augmentation_depends_on_its_generator_alone():
    crop = np.random.default_rng(0).integers(0, 255, (112, 112)).astype(np.uint8)
    views = [[augment(crop, np.random.default_rng(seed)) for seed in range(30)] for _ in range(2)]
    for a, b in zip(*views, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.shape == (112, 112)
        assert a.dtype == np.uint8
    assert not np.array_equal(views[0][0], views[0][1])


def test_move_by_nothing_changes_nothing():
    crop = np.random.default_rng(0).integers(0, 255, (112, 112)).astype(np.uint8)
    np.testing.assert_array_equal(move(crop, np.random.default_rng(0), 0, 0, 0), crop)


def test_a_stretched_face_keeps_its_middle_and_its_height():
    crop = np.zeros((112, 112), np.uint8)
    crop[30:80, 30] = crop[30:80, 81] = 255  # 25.5 pixels either side of the middle
    found = set()
    for seed in range(20):
        wider = move(crop, np.random.default_rng(seed), 0, 0, 0, stretch=0.2).astype(float)
        assert np.flatnonzero(wider.max(1) > 9).tolist() == [*range(30, 80)]
        left, right = (
            np.average(np.arange(56) + start, weights=wider[50, start : start + 56])
            for start in (0, 56)
        )
        assert left + right == pytest.approx(111, abs=0.1)
        found.add(round(right - 55.5, 1))
    assert min(found) < 22
    assert max(found) > 29
