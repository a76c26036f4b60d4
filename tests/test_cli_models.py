from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import numpy as np
import pytest

from edgeid.cli import main
from edgeid.inspection import inspect_model
from edgeid.runtime.codebook import make_codebook
from edgeid.runtime.errors import ModelFormatError
from edgeid.runtime.face_spec import FaceSpec
from edgeid.runtime.format import ModelFile, write_model
from edgeid.runtime.graph import Entry, Gemm, Graph


@pytest.fixture
def model_path(fake_model: Any, tmp_path: Path) -> Path:
    file: ModelFile = fake_model.file
    model = ModelFile(file.graph, calibration=file.calibration, card={"terms": "research"})
    path = tmp_path / "tiny.edgeid"
    write_model(model, path)
    return path


def test_training_is_forwarded_with_the_options_given(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="training needs the extra convert")
    from edgeid.converters.training import landmarks, training
    from edgeid.converters.training.training_loop import TrainOptions

    out = tmp_path / "out.pt"
    common = ["--out", str(out), "--data", str(tmp_path), "--seed", "7", "--json"]
    for name in ("train_face", "train_voice"):
        train = create_autospec(getattr(training, name), return_value=out)
        monkeypatch.setattr(training, name, train)
        assert main(["train", name.removeprefix("train_"), "--steps", "5", *common]) == 0
        assert json.loads(capsys.readouterr().out) == {"checkpoint": str(out)}
        options = train.call_args.args[1]
        assert (options.steps, options.seed) == (5, 7)
        assert options.batch == TrainOptions().batch
        assert train.call_args.kwargs["data"] == tmp_path
    read = create_autospec(landmarks.read_landmark_set, return_value="data")
    train = create_autospec(landmarks.train_landmarks, return_value=(None, 3.5))
    monkeypatch.setattr(landmarks, "read_landmark_set", read)
    monkeypatch.setattr(landmarks, "train_landmarks", train)
    assert main(["train", "landmarks", "--epochs", "2", *common]) == 0
    assert json.loads(capsys.readouterr().out)["error_percent"] == 3.5
    read.assert_called_once_with(tmp_path / "faces")
    assert (train.call_args.args[1].epochs, train.call_args.args[1].seed) == (2, 7)


def test_detector_training_is_forwarded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="training needs the extra convert")
    from edgeid.converters.training import detector, face_pictures
    from edgeid.converters.training.detector_check import Recall

    read = create_autospec(face_pictures.read_detector_faces, side_effect=["faces", "held out"])
    found = Recall(faces=10, found=9, false=1, scenes=20, error=4.0)
    train = create_autospec(detector.train_detector, return_value=(None, found))
    monkeypatch.setattr(face_pictures, "read_detector_faces", read)
    monkeypatch.setattr(detector, "train_detector", train)
    out = tmp_path / "out.pt"
    line = ["train", "detector", "--out", str(out), "--data", str(tmp_path), "--steps", "3"]
    assert main(line) == 0
    assert "9 of 10 faces found and 1 that are none, in 20 scenes" in capsys.readouterr().out
    faces, held_out, options, path, backgrounds = train.call_args.args
    assert (faces, held_out, options.steps, path, backgrounds) == ("faces", "held out", 3, out, ())
    assert [call.kwargs for call in read.call_args_list] == [{}, {"held_out": True}]


def test_summary_counts_what_is_in_the_file(model_path: Path) -> None:
    summary = inspect_model(model_path)
    (entry,) = summary.entries
    assert (entry.name, entry.input, entry.output) == ("face", (2,), (2,))
    assert (entry.layers, entry.weights) == (1, 4)
    (encoding,) = summary.encodings
    assert (encoding.encoding, encoding.tensors, encoding.bytes) == ("float32", 1, 16)
    assert summary.operators == {"Gemm": 1}
    assert summary.bytes == model_path.stat().st_size
    point = next(p for p in summary.calibration if (p.kind, p.fmr) == ("face", 1e-3))
    assert point.threshold == pytest.approx(0.6)
    assert (point.impostors, point.people) == (30_000, 50)
    unsupported = next(p for p in summary.calibration if (p.kind, p.fmr) == ("voice", 1e-4))
    assert unsupported.threshold is None


def test_summary_counts_shared_codebooks_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    tables = rng.integers(-127, 128, (2, 16, 4), dtype=np.int8)
    scale = np.ones(2, np.float32)
    tensors = {
        name: make_codebook(tables, rng.integers(16, size=(2, 1, 1, 8)), (8, 8), scale * number)
        for number, name in enumerate("ab", 1)
    }
    layers = (Gemm("one", ("x",), "h", "a", None), Gemm("two", ("h",), "y", "b", None))
    path = tmp_path / "shared.edgeid"
    write_model(ModelFile(Graph((Entry("face", "x", (8,), "y"),), layers, tensors)), path)
    (encoding,) = inspect_model(path).encodings
    assert (encoding.encoding, encoding.tensors, encoding.weights) == ("codebook", 2, 128)
    indices, scales = 2 * 8 // 2, 2 * 4  # 4 bits each; of each weight
    assert encoding.bytes == tables.nbytes + 2 * (indices + scales)


def test_inspect_prints_a_table_and_on_demand_the_card(
    model_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(model_path)]) == 0
    text = capsys.readouterr().out
    assert "\nentry  input  output  layers  weights\nface   2      2       1       4\n" in text
    assert "unsupported" in text
    assert "terms: research" not in text
    assert main(["inspect", str(model_path), "--card"]) == 0
    assert "terms: research" in capsys.readouterr().out
    assert main(["inspect", str(model_path), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["card"] == {"terms": "research"}
    assert record["encodings"][0]["weights"] == 4


def test_a_recipe_is_shown_step_by_step_and_steers_no_terminal(
    fake_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = [
        {"pass": "zipper", "blocks": 8, "balance": False, "grouping": None},
        {"pass": "codebook", "calibration": {"steps": 5}, "layers": []},
        {"pass": "\x1b[31m", "entries": ["face", "voice"]},
    ]
    path = tmp_path / "m.edgeid"
    write_model(ModelFile(fake_model.file.graph, recipe=steps), path)
    assert main(["inspect", str(path)]) == 0
    text = capsys.readouterr().out
    assert "  1 zipper: balance false, blocks 8\n" in text
    assert "  2 codebook: calibration (steps 5)\n" in text
    assert "  3 ?[31m: entries face voice\n" in text


@pytest.mark.parametrize("mirror", [False, True])
def test_inspect_tells_that_faces_are_mirrored(
    fake_model: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], mirror: bool
) -> None:
    path = tmp_path / "m.edgeid"
    write_model(ModelFile(fake_model.file.graph, face=FaceSpec(mirror=mirror).to_dict()), path)
    assert main(["inspect", str(path)]) == 0
    assert ("mirror image" in capsys.readouterr().out) == mirror


def test_inspect_of_a_damaged_file(model_path: Path) -> None:
    model_path.write_bytes(model_path.read_bytes()[:-1])
    with pytest.raises(ModelFormatError):
        inspect_model(model_path)
    assert main(["inspect", str(model_path)]) == 2
