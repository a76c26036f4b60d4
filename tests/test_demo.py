"""The demo: synthetic people always, real portraits and speech where the data is."""

from __future__ import annotations

import csv
import io
import json
from importlib.resources import files
from pathlib import Path

import pytest
import soundfile

from edgeid import demo
from edgeid.cli import main
from edgeid.demo import DemoReport, Trial, run_demo, synthetic_people
from edgeid.runtime.errors import DataError

from .data import DATA, needs_data

SAMPLES = Path(str(files("edgeid") / "samples"))


def trial(who, claim, accepted):
    return Trial(who, claim, accepted, 1.0, 0.5, 0.9, 0.8, 12.0, "")


def report(*trials):
    return DemoReport("People", 1e-3, "reference", 2, (), trials)


def test_samples_are_small_labelled_and_complete():
    people = list(synthetic_people())
    assert len(people) >= 3
    assert all(len(p.images) >= 4 and len(p.audio) >= 4 for p in people)
    assert sum(path.stat().st_size for path in SAMPLES.iterdir()) <= 1.5e6
    assert json.loads((SAMPLES / "people.json").read_text())["synthetic"] is True
    for person in people:
        for recording in person.audio:
            info = soundfile.info(io.BytesIO(recording))
            assert (info.samplerate, info.channels) == (16000, 1)
            assert 2 <= info.duration <= 8


@pytest.mark.parametrize("engine", ["reference", "onnxruntime"])
def test_synthetic_people_are_told_apart(engine):
    if engine == "onnxruntime":
        pytest.importorskip("onnxruntime")
    result = run_demo(engine=engine)
    assert result.enrolled == 4
    assert not result.refused
    assert len(result.trials) == 12
    assert [t for t in result.trials if not t.right] == []
    assert result.ok


@needs_data
def test_real_people_are_told_apart(tmp_path):
    """Ten people of people.csv, through the command line."""
    for folder in ("faces", "speech"):
        (tmp_path / folder).symlink_to(DATA / folder, target_is_directory=True)
    with (DATA / "people.csv").open() as file:
        rows = list(csv.reader(file))[:11]
    with (tmp_path / "people.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    result = run_demo(tmp_path / "people.csv")
    impostors = [t for t in result.trials if t.who != t.claim]
    genuine = [t for t in result.trials if t.who == t.claim]
    assert result.enrolled >= 9
    assert len(impostors) >= 9
    assert len(genuine) >= 40
    assert not any(t.accepted for t in impostors)
    assert sum(t.accepted for t in genuine) >= 0.9 * len(genuine)


def test_the_command_prints_a_table_and_an_exit_status(monkeypatch, capsys):
    good = report(trial("ann", "ann", True), trial("ann", "bob", False))
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: good)
    assert main(["demo"]) == 0
    table = capsys.readouterr().out
    assert "who" in table
    assert "2 of 2 decisions right" in table
    assert main(["demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trials"][1]["right"] is True
    bad = report(trial("ann", "bob", True))
    monkeypatch.setattr(demo, "run_demo", lambda *_, **__: bad)
    assert main(["demo"]) == 1
    assert "<- wrong" in capsys.readouterr().out


def test_an_accepted_impostor_is_never_ok():
    genuine = [trial("ann", "ann", True)] * 99
    assert report(*genuine).ok
    assert report(*genuine, trial("ann", "ann", False)).ok
    assert not report(*genuine, trial("ann", "bob", True)).ok
    assert not report().ok


def test_missing_people_are_told(tmp_path):
    with pytest.raises(DataError):
        run_demo(tmp_path / "people.csv")
    (tmp_path / "people.csv").write_text("person,face,speaker\np,1,2\n")
    with pytest.raises(DataError, match="no archive"):
        run_demo(tmp_path / "people.csv")
