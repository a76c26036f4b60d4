from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest

from edgeid.cli import main
from edgeid.inspection import inspect_model
from edgeid.runtime.errors import ModelFormatError
from edgeid.runtime.format import ModelFile, write_model


@dataclass(frozen=True)
class Report:
    """Stands for the report of a conversion."""

    def to_dict(self) -> dict[str, Any]:
        return {"bytes": 5}

    def lines(self) -> list[str]:
        return ["wrote 5 bytes"]


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

    out = tmp_path / "out.pt"
    common = ["--out", str(out), "--data", str(tmp_path), "--seed", "7", "--json"]
    for name in ("train_face", "train_voice"):
        train = create_autospec(getattr(training, name), return_value=out)
        monkeypatch.setattr(training, name, train)
        assert main(["train", name.removeprefix("train_"), "--steps", "5", *common]) == 0
        assert json.loads(capsys.readouterr().out) == {"checkpoint": str(out)}
        options = train.call_args.args[1]
        assert (options.steps, options.seed) == (5, 7)
        assert options.batch == training.TrainOptions().batch
        assert train.call_args.kwargs["data"] == tmp_path
    read = create_autospec(landmarks.read_landmark_set, return_value="data")
    train = create_autospec(landmarks.train_landmarks, return_value=(None, 3.5))
    monkeypatch.setattr(landmarks, "read_landmark_set", read)
    monkeypatch.setattr(landmarks, "train_landmarks", train)
    assert main(["train", "landmarks", "--epochs", "2", *common]) == 0
    assert json.loads(capsys.readouterr().out)["error_percent"] == 3.5
    read.assert_called_once_with(tmp_path / "faces")
    assert (train.call_args.args[1].epochs, train.call_args.args[1].seed) == (2, 7)


def test_conversion_is_forwarded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torch", reason="converting needs the extra convert")
    from edgeid.converters import convert as module

    convert = create_autospec(module.convert, return_value=Report())
    monkeypatch.setattr(module, "convert", convert)
    card = tmp_path / "card.json"
    card.write_text('{"terms": "research"}')
    line = ["convert", "--face", "f.onnx", "--voice", "v.pt", "--out", "m.edgeid"]
    assert main([*line, "--weights", "int8", "--no-calibration", "--card", str(card)]) == 0
    assert capsys.readouterr().out == "wrote 5 bytes\n"
    *paths, options = convert.call_args.args
    assert paths == [Path("f.onnx"), Path("v.pt"), None, Path("m.edgeid")]
    assert (options.weights, options.data, options.version) == ("int8", None, 1)
    assert options.card == {"terms": "research"}
    monkeypatch.setenv("EDGEID_DATA", str(tmp_path))
    assert main([*line, "--landmarks", "l.pt", "--json"]) == 0
    assert convert.call_args.args[2] == Path("l.pt")
    assert convert.call_args.args[4].data == tmp_path
    card.write_bytes(b"\xff")
    capsys.readouterr()
    assert main([*line, "--card", str(card), "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "data"


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


def test_inspect_of_a_damaged_file(model_path: Path) -> None:
    model_path.write_bytes(model_path.read_bytes()[:-1])
    with pytest.raises(ModelFormatError):
        inspect_model(model_path)
    assert main(["inspect", str(model_path)]) == 2
