"""All pairs of a set of images, against a loop over them."""

from __future__ import annotations

import zipfile
from itertools import combinations

import cv2
import numpy as np
import pytest

from edgeid.all_pairs import evaluate_all_pairs
from edgeid.cli import main
from edgeid.metrics import equal_error_rate
from edgeid.runtime.errors import DataError, NoFaceError

RNG = np.random.default_rng(0)


class Photo:
    def __init__(self, crop):
        self.crop = crop


class FakeModel:
    """The embedding of an image is its first row of pixels; black photos show no face."""

    calibration = None

    def embed_aligned(self, crops):
        rows = crops[:, 0, :8].astype(np.float32) - 128
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def read_face(self, image, **_options):
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_GRAYSCALE)
        if not pixels.any():
            raise NoFaceError("no face")
        return Photo(pixels)


def write(path, people):
    """``people``: who -> pictures."""
    with zipfile.ZipFile(path, "w") as archive:
        for who, pictures in people.items():
            for number, picture in enumerate(pictures):
                content = cv2.imencode(".png", picture)[1].tobytes()
                archive.writestr(f"set/{who}/{number}.png", content)
    return path


def pictures(count):
    found = []
    for _ in range(count):
        picture = np.full((112, 112), 7, np.uint8)
        picture[0, :8] = RNG.integers(60, 200, 8)
        found.append(picture)
    return found


def test_every_pair_is_scored_once(tmp_path):
    people = {"ann": pictures(3), "bob": pictures(2), "cy": pictures(1)}
    report = evaluate_all_pairs(FakeModel(), write(tmp_path / "a.zip", people), True)
    (part,) = report.parts
    assert (part.genuine, part.impostors, part.people) == (3 + 1, 15 - 4, 3)
    flat = [(who, p) for who in sorted(people) for p in people[who]]
    rows = FakeModel().embed_aligned(np.stack([p for _, p in flat])).astype(float)
    scores = [rows[i] @ rows[j] for i, j in combinations(range(6), 2)]
    same = [flat[i][0] == flat[j][0] for i, j in combinations(range(6), 2)]
    assert part.eer.value == pytest.approx(equal_error_rate(scores, same), abs=1e-6)
    assert report.samples == 6


def test_photos_without_a_face_count_as_errors(tmp_path):
    black = np.zeros((112, 112), np.uint8)
    alike = pictures(1)[0]
    people = {"ann": [alike, alike, black], "bob": pictures(2)}
    report = evaluate_all_pairs(FakeModel(), write(tmp_path / "a.zip", people), False)
    assert report.failed == 1
    # of four genuine pairs two have a face missing, and score below every impostor
    fnmr = [point.fnmr.value for point in report.parts[0].points if point.fnmr is not None]
    assert all(value >= 0.5 for value in fnmr)
    assert report.parts[0].eer.value >= 0.25


def test_sets_that_cannot_be_paired_are_refused(tmp_path):
    one = write(tmp_path / "one.zip", {"ann": pictures(1)})
    with pytest.raises(DataError, match="1 images; all pairs need 2"):
        evaluate_all_pairs(FakeModel(), one, True)
    alone = write(tmp_path / "alone.zip", {"ann": pictures(2)})
    with pytest.raises(DataError):
        evaluate_all_pairs(FakeModel(), alone, True)
    blank = write(tmp_path / "blank.zip", {"ann": [np.zeros((112, 112), np.uint8)] * 2})
    with pytest.raises(DataError, match="no face was found in any of the 2"):
        evaluate_all_pairs(FakeModel(), blank, False)


def test_the_command_wants_images(capsys):
    assert main(["eval", "faces", "--all-pairs"]) == 2
    assert "--all-pairs needs --images" in capsys.readouterr().err
