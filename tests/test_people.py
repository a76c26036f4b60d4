"""People out of folders and archives: who is who, who is held out, what becomes network input."""

from __future__ import annotations

import zipfile

import cv2
import numpy as np
import pytest
import soundfile

pytest.importorskip("torch")

from edgeid.converters.people import read_people
from edgeid.converters.training.faces import is_calibration, read_faces
from edgeid.runtime.errors import DataError, NoFaceError
from edgeid.runtime.face import FaceSpec
from edgeid.runtime.voice import VoiceSpec

FACE, VOICE = FaceSpec(), VoiceSpec()
PEOPLE = 40


def write_crop(path, level, size=(112, 112)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full(size, level, np.uint8))


def write_speech(path, pitch, seconds=2.0):
    """Voiced enough for the speech detector: a pulse train that swells and fades."""
    path.parent.mkdir(parents=True, exist_ok=True)
    time = np.arange(int(seconds * 16000)) / 16000
    wave = sum(np.sin(2 * np.pi * pitch * k * time) / k for k in range(1, 12))
    loud = 0.5 - 0.5 * np.cos(2 * np.pi * 1.5 * time)
    noise = np.random.default_rng(0).normal(0, 1e-4, len(time))
    soundfile.write(path, (0.1 * wave * loud + noise).astype(np.float32), 16000)


def write_people(root, people, shots, takes, noise):
    """Folders ``faces`` and ``voices``: so many crops and recordings of each person."""
    rng = np.random.default_rng(0)
    for person in range(people):
        face = rng.normal(128, 40, (14, 14))
        for shot in range(shots):
            crop = np.kron(face + rng.normal(0, noise, face.shape), np.ones((8, 8)))
            path = root / "faces" / f"p{person}" / f"{shot}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), np.clip(crop, 0, 255).astype(np.uint8))
        for take in range(takes):
            name = root / "voices" / f"p{person}" / f"{take}.wav"
            write_speech(name, 100 + 4 * person + take, seconds=1.5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("people")
    for person in range(PEOPLE):
        for shot in range(2):
            write_crop(root / "faces" / f"p{person}" / f"{shot}.png", person)
        write_speech(root / "voices" / f"p{person}" / "a.wav", 100 + 3 * person)
    return root


def test_named_people_are_parted_by_person(folders):
    people = read_people(folders / "faces", [folders / "voices"], FACE, VOICE)
    known, held = (set(part.identities) for part in people.faces)
    assert known.isdisjoint(held)
    assert known | held == {f"p{n}" for n in range(PEOPLE)}
    assert held == {f"p{n}" for n in range(PEOPLE) if is_calibration(f"p{n}")}
    assert {*people.speech[1].speakers} == held
    inputs = people.training(10_000)
    assert inputs.samples["face"].shape == (2 * len(known), 1, 112, 96)
    assert inputs.samples["face"].dtype == np.float32
    levels = inputs.samples["face"][:, 0, 0, 0] * 128 + 127.5
    names = [people.faces[0].identities[label] for label in inputs.labels["face"]]
    assert names == [f"p{round(float(level))}" for level in levels]
    assert len(set(names[:30])) > 15  # the first are of many people: files lie by people
    assert inputs.samples["voice"].shape[1:] == (1, 112, 96)
    assert len(inputs.labels["voice"]) == len(inputs.samples["voice"])
    assert len(people.held_out(3).samples["face"]) == 3


def test_passes_hear_further_speech_of_those_who_are_not_held_out(folders):
    people = read_people(folders / "faces", [folders / "voices"], FACE, VOICE)
    assert people.sampler.speech.speakers == people.speech[0].speakers
    assert people.sampler.noise == ()
    (entry,) = people.fresh()
    windows = people.fresh()[entry](5, np.random.default_rng(0))
    assert entry == "voice"
    assert windows.shape == (5, 1, 112, 96)
    assert read_people(folders / "faces", [], FACE, VOICE).fresh() == {}


def test_an_archive_is_read_as_the_folder_is(folders, tmp_path):
    archive = tmp_path / "faces.zip"
    with zipfile.ZipFile(archive, "w") as new:
        for path in sorted((folders / "faces").rglob("*.png")):
            new.write(path, path.relative_to(folders / "faces").as_posix())
    left, right = read_faces(archive), read_faces(folders / "faces")
    assert left.identities == right.identities
    np.testing.assert_array_equal(left.crops, right.crops)


def test_files_of_one_folder_are_nobody_in_particular(tmp_path):
    for shot in range(20):
        write_crop(tmp_path / "faces" / f"{shot:02}.png", shot)
    people = read_people(tmp_path / "faces", [], FACE, VOICE)
    held = people.held_out(100)
    assert held.labels == {}
    assert (held.samples["face"][:, 0, 0, 0] * 128 + 127.5).round().tolist() == [0, 10]
    assert len(people.training(100).samples["face"]) == 18
    assert "voice" not in held.samples


def test_too_few_people_to_hold_one_out_are_told(tmp_path):
    names = [f"p{n}" for n in range(40) if not is_calibration(f"p{n}")][:2]
    for name in names:
        write_crop(tmp_path / name / "1.png", 9)
    with pytest.raises(DataError, match="2 faces of 2 people: too few"):
        read_people(tmp_path, [], FACE, VOICE)
    with pytest.raises(DataError, match="no such zip archive or folder"):
        read_people(tmp_path / "none", [], FACE, VOICE)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        read_people(tmp_path / "empty", [], FACE, VOICE)


def test_photos_need_a_way_to_find_the_face(tmp_path):
    write_crop(tmp_path / "a" / "1.png", 7, (240, 320))
    write_crop(tmp_path / "b" / "1.png", 8, (224, 224))
    write_crop(tmp_path / "c" / "1.png", 9, (64, 64))
    with pytest.raises(DataError, match="photo of 320 x 240 pixels"):
        read_faces(tmp_path)

    def find(_content):
        return np.full((112, 112), 3, np.uint8)

    faces = read_faces(tmp_path, find)
    assert faces.crops[:, 0, 0].tolist() == [3, 8, 9]

    def nobody(_content):
        raise NoFaceError("no face")

    assert read_faces(tmp_path, nobody).identities == ("b", "c")
    write_crop(tmp_path / "photos" / "1.png", 7, (240, 320))
    with pytest.raises(DataError, match="no face was found in any image"):
        read_faces(tmp_path / "photos", nobody)


def test_one_long_recording_does_not_crowd_out_the_others(tmp_path):
    for name in range(12):
        write_speech(tmp_path / f"{name:02}.wav", 120, 30.0 if name == 1 else 2.0)
    people = read_people(None, [tmp_path], FACE, VOICE)
    count = len(people.training(20).samples["voice"])
    assert 10 <= count <= 20
