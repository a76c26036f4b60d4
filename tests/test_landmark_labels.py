"""The landmark set out of photos: geometry by hand, what is left out, and the real detector."""

import zipfile

import cv2
import numpy as np
import pytest

pytest.importorskip("tqdm")

from edgeid.cli import main
from edgeid.converters.training.landmark_labels import label_photos
from edgeid.converters.training.landmark_set import read_landmark_set
from edgeid.runtime.detection import Detection
from edgeid.runtime.errors import DataError

from .data import DATA, needs_data

POINTS = np.array([[88, 92], [112, 92], [100, 104], [90, 116], [110, 116]], np.float32)


class FakeDetector:
    """The same faces in every photo."""

    efforts = 1

    def __init__(self, *found):
        self.found = found

    def detect(self, _image, _effort=0):
        return list(self.found)


def photo(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.random.default_rng(seed).integers(0, 256, (20, 20), np.uint8)
    picture = cv2.resize(picture, (200, 200), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(path), cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR))
    return picture


def test_a_face_of_48_pixels_is_cut_out_as_it_is(tmp_path):
    picture = photo(tmp_path / "photos" / "ann" / "1.png")
    # a box of 40 x 48 whose middle is (100, 104): the crop begins at (52, 56)
    detector = FakeDetector(Detection((80, 80, 40, 48), 0.9, POINTS))
    assert label_photos(tmp_path / "photos", detector, tmp_path / "out") == 1
    found = read_landmark_set(tmp_path / "out")
    assert found.people == ("ann",)
    np.testing.assert_allclose(found.points[0], POINTS - (52, 56), atol=0.02)
    difference = found.pictures[0].astype(int) - picture[56:152, 52:148]
    assert np.abs(difference).mean() < 3  # JPEG
    line = (tmp_path / "out" / "landmarks.csv").read_text().splitlines()[1]
    assert line.split(",")[:4] == ["00000.jpg", "ann/1.png", "40.00", "48.00"]


def test_a_larger_face_is_scaled(tmp_path):
    photo(tmp_path / "photos" / "ann" / "1.png")
    large = Detection((40, 40, 80, 96), 0.9, POINTS)  # twice as large: scale 1/2
    label_photos(tmp_path / "photos", FakeDetector(large), tmp_path / "out")
    points = read_landmark_set(tmp_path / "out").points[0]
    np.testing.assert_allclose(points[1] - points[0], (12, 0), atol=0.02)
    # pixel centres: the middle of the box, corner (80, 88), is the crop's corner (48, 48)
    np.testing.assert_allclose(
        points[0], (88.5 - 80) / 2 + 48 - 0.5 + np.array([0, -2.0]), atol=0.02
    )


def test_small_faces_and_those_without_points_are_left_out(tmp_path):
    photo(tmp_path / "photos" / "ann" / "1.png")
    small = Detection((80, 80, 18, 20), 0.9, POINTS)
    blind = Detection((80, 80, 40, 48), 0.9)
    with pytest.raises(DataError, match="no face was found in the 1 photos"):
        label_photos(tmp_path / "photos", FakeDetector(small, blind), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_no_photo_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("ann/1.jpg", b"no photo")
    with pytest.raises(DataError, match=r"ann/1.jpg cannot be read"):
        label_photos(tmp_path / "photos.zip", FakeDetector(), tmp_path / "out")


@needs_data
def test_the_command_labels_real_photos(tmp_path, capsys):
    with zipfile.ZipFile(DATA / "faces" / "portraits.zip") as archive:
        for name in sorted(archive.namelist())[:3]:
            archive.extract(name, tmp_path / "photos")
    yunet = DATA.parent / "models" / "yunet.onnx"
    out = tmp_path / "out"
    status = main(["label", str(tmp_path / "photos"), "--detector", str(yunet), "--out", str(out)])
    assert status == 0
    assert "3 faces with five points" in capsys.readouterr().out
    found = read_landmark_set(out)
    left, right, nose, *mouth = found.points.transpose(1, 0, 2)
    assert (left[:, 0] < right[:, 0]).all()
    assert (nose[:, 1] > left[:, 1]).all()
    assert all((corner[:, 1] > nose[:, 1]).all() for corner in mouth)
