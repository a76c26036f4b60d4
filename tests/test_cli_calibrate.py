"""``edgeid calibrate``: new thresholds for a finished model, and nothing else."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch", reason="calibrating needs the extra convert")

from edgeid.cli import main
from edgeid.converters.model_scores import recalibrate
from edgeid.converters.training.faces import read_faces
from edgeid.converters.training.speech import read_speech
from edgeid.fingerprint import model_fingerprint
from edgeid.runtime.errors import CalibrationError, DataError
from edgeid.runtime.model import Model
from edgeid.runtime.score import Calibration
from edgeid.runtime.voice import VoiceSpec

from .test_people import write_people

PEOPLE = 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("users")
    write_people(root, PEOPLE, shots=5, takes=5, noise=20)
    return root


def command(folder, out, *more):
    people = ["--faces", str(folder / "faces"), "--voices", str(folder / "voices")]
    return ["calibrate", *people, "--out", str(out), *more]


def test_only_calibration_version_and_card_are_new(folder, tmp_path, capsys):
    out = tmp_path / "m.edgeid"
    assert main(command(folder, out, "--json")) == 0
    record = json.loads(capsys.readouterr().out)
    before, after = Model.load(), Model.load(out)
    assert model_fingerprint(after.file) == model_fingerprint(before.file)  # templates stay
    assert after.file.recipe == before.file.recipe
    assert after.file.model_version == before.file.model_version + 1
    assert "metrics" in before.file.card
    assert after.file.card == {k: v for k, v in before.file.card.items() if k != "metrics"}
    assert record["bytes"] == out.stat().st_size
    assert Calibration.from_dict(record["calibration"]) == after.calibration
    # everybody counts, for the networks have seen none of them
    assert after.calibration.face.people == after.calibration.voice.people == PEOPLE
    assert after.calibration.fusion is not None


def test_it_says_what_was_measured(folder, tmp_path, capsys):
    out = tmp_path / "m.edgeid"
    assert main(command(folder, out, "--model-version", "9")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"wrote {out}: {out.stat().st_size:,} bytes"
    curve = Model.load(out).calibration.face
    assert lines[1].startswith(f"  face: {curve.impostors:,} comparisons of {PEOPLE} people; at a")
    assert f"{curve.fnmr_at(max(1e-3, curve.smallest_fmr)):.1%} of genuine ones" in lines[1]
    assert Model.load(out).file.model_version == 9


@pytest.mark.parametrize("left_out", ["--faces", "--voices"])
def test_people_of_every_modality_are_needed(folder, tmp_path, capsys, left_out):
    out = tmp_path / "m.edgeid"
    out.write_bytes(b"as it was")
    line = command(folder, out, "--json")
    at = line.index(left_out)
    assert main(line[:at] + line[at + 2 :]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["message"].startswith(f"the model compares {left_out[2:]}: give samples of people")
    assert out.read_bytes() == b"as it was"


def test_what_cannot_be_calibrated_is_refused(folder, tmp_path, capsys):
    out = tmp_path / "m.edgeid"
    assert main(command(folder, out, "--model-version", "0", "--json")) == 2
    assert "version" in json.loads(capsys.readouterr().out)["error"]["message"]
    nowhere = tmp_path / "none" / "m.edgeid"
    assert main(command(folder, nowhere, "--json")) == 2  # before anybody is measured
    assert "there is no folder" in json.loads(capsys.readouterr().out)["error"]["message"]
    model = Model.load()
    faces = read_faces(folder / "faces")
    speech = read_speech([folder / "voices"], VoiceSpec())
    few = faces.subset(faces.labels < 6)
    with pytest.raises(CalibrationError, match="6 people have 4 or more samples"):
        recalibrate(model, few, speech)
    nobody = read_speech([folder / "voices" / "p1"], VoiceSpec())
    with pytest.raises(DataError, match="named by their folders"):
        recalibrate(model, faces, nobody)
    with pytest.raises(DataError, match="1 or more, got 0"):
        recalibrate(model, None, None, 0)  # before anybody is looked for
    assert not out.exists()
