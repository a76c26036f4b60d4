"""Exporting as a whole: files, their check against the model, and what is refused."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from unittest.mock import create_autospec

import cv2
import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("ai_edge_litert")
pytest.importorskip("torch")

from edgeid.cli import main
from edgeid.converters.export import onnx_model, sample_inputs, tflite_layers
from edgeid.converters.export.agreement import Agreement, agreement, run_onnx, run_tflite
from edgeid.converters.export.entry_graph import single_entry
from edgeid.converters.export.formats import FORMATS
from edgeid.converters.export.model_export import (
    ExportOptions,
    export_model,
    export_tflite_int8,
)
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import DataError, GraphError, ModelError
from edgeid.runtime.format import read_model
from edgeid.runtime.graph import L2Normalize, merge_graphs
from edgeid.runtime.model import Model, default_model

from .networks import inputs, residual_graph

UNITS = (1, 0, 0, 0)
SAMPLES = Path(str(files("edgeid") / "samples"))


@pytest.fixture(scope="module")
def graph():
    return merge_graphs(
        face=residual_graph(1, units=UNITS, size=16),
        voice=residual_graph(2, units=UNITS, size=16, average=True),
    )


@pytest.fixture(scope="module")
def samples():
    return {"face": inputs(12, 16, seed=1), "voice": inputs(12, 16, seed=2)}


# files


@pytest.mark.parametrize("name", FORMATS)
def test_a_file_for_each_entry(name, graph, samples, tmp_path):
    out = tmp_path / "new" / "folder"
    made = export_model(graph, out, ExportOptions(name), samples)
    assert [file.path for file in made] == [out / f"{n}{FORMATS[name]}" for n in samples]
    assert sorted(out.iterdir()) == sorted(file.path for file in made)  # and nothing beside
    for file, (entry, x) in zip(made, samples.items(), strict=True):
        data = file.path.read_bytes()
        assert file.size == len(data)
        found = file.agreement[entry]
        assert found.inputs == 8
        assert found.error < (0.2 if name == "tflite-int8" else 1e-5)
        if name.startswith("onnx"):
            got = run_onnx(data, {f"{entry}_input": x})[f"{entry}_output"]
        else:
            got = run_tflite(data, x)
        assert agreement(make_engine(graph, "reference").run(entry, x), got).cosine > 0.98
        assert json.dumps(file.to_dict())
        (line,) = file.lines()
        assert f"{len(data):,} bytes" in line
        assert str(file.path) in line


@pytest.mark.parametrize("name", ["onnx", "onnx-codebook"])
def test_one_file_for_all_entries(name, graph, samples, tmp_path):
    (file,) = export_model(graph, tmp_path, ExportOptions(name, single=True), samples)
    assert file.path == tmp_path / f"model{FORMATS[name]}"
    assert list(file.agreement) == ["face", "voice"]


def test_entries_and_integers_that_are_asked_for(graph, samples, tmp_path):
    options = ExportOptions("tflite-int8", ("voice",), integer_only=True)
    (file,) = export_model(graph, tmp_path, options, samples)
    assert file.path.name == "voice.int8.tflite"


def test_one_int8_file_by_its_path(graph, samples, tmp_path):
    path = tmp_path / "face.tflite"
    file = export_tflite_int8(graph, "face", samples["face"], path)
    assert file.size == path.stat().st_size
    assert file.agreement["face"].cosine > 0.98


def test_without_samples_random_inputs_check_the_file(graph, tmp_path):
    (file,) = export_model(graph, tmp_path, ExportOptions("tflite", ("face",)), {})
    assert file.agreement["face"].inputs == 2


def test_notes_are_in_the_file(graph, samples, tmp_path):
    for name in ("onnx", "tflite", "tflite-int8"):
        options = ExportOptions(name, ("face",))
        (file,) = export_model(graph, tmp_path, options, samples, {"terms": "only for research"})
        assert b"only for research" in file.path.read_bytes()


# what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (ExportOptions("pdf"), "format 'pdf': choose one of onnx, onnx-codebook, tflite"),
        (ExportOptions("tflite", single=True), "only ONNX takes all in one file"),
        (ExportOptions("onnx", integer_only=True), "integers only are for tflite-int8"),
        (ExportOptions("onnx", ("face", "face")), "named twice: face, face"),
    ],
)
def test_options_that_make_no_sense(options, message, graph, tmp_path):
    with pytest.raises(DataError, match=message):
        export_model(graph, tmp_path / "out", options, {})
    assert not (tmp_path / "out").exists()


def test_an_entry_that_is_not_there(graph, tmp_path):
    with pytest.raises(GraphError, match="no entry 'nose'"):
        export_model(graph, tmp_path / "out", ExportOptions("onnx", ("face", "nose")), {})
    assert not (tmp_path / "out").exists()


def test_int8_without_samples(graph, samples, tmp_path):
    for given in ({}, {"face": samples["face"][:0]}):
        with pytest.raises(DataError, match="there are none of entry 'face'"):
            export_model(graph, tmp_path, ExportOptions("tflite-int8", ("face",)), given)


def test_a_layer_that_the_format_does_not_have(samples, tmp_path):
    graph = residual_graph(1, units=UNITS, size=16)
    last = L2Normalize("unit", ("y",), "z", 1e-3)
    graph = type(graph)(
        (type(graph.entries[0])("face", "x", (1, 16, 16), "z"),),
        (*graph.layers, last),
        graph.tensors,
    )
    with pytest.raises(GraphError, match="layer 'unit'"):
        export_model(graph, tmp_path, ExportOptions("tflite"), samples)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "module", "function"),
    [("onnx", onnx_model, "onnx_bytes"), ("tflite", tflite_layers, "tflite_bytes")],
)
def test_a_file_that_answers_otherwise_is_not_kept(
    name, module, function, graph, samples, tmp_path, monkeypatch
):
    right = getattr(module, function)
    other = merge_graphs(face=residual_graph(9, units=UNITS, size=16))

    def wrong(_graph, *arguments, **options):
        return right(other, *arguments, **options)

    monkeypatch.setattr(module, function, wrong)
    path = tmp_path / f"face{FORMATS[name]}"
    path.write_bytes(b"the file of last week")
    with pytest.raises(ModelError, match="does not answer as the model does: relative error"):
        export_model(graph, tmp_path, ExportOptions(name, ("face",)), samples)
    assert path.read_bytes() == b"the file of last week"
    assert list(tmp_path.iterdir()) == [path]


def test_places_that_cannot_be_written(graph, samples, tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"")
    with pytest.raises(OSError, match="exists"):
        export_model(graph, file, ExportOptions("onnx"), samples)
    (tmp_path / "face.onnx").mkdir()
    with pytest.raises(ModelError, match="cannot write"):
        export_model(graph, tmp_path, ExportOptions("onnx"), samples)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["face.onnx", "file"]


# agreement, by hand


def test_the_worst_cosine_and_the_error_of_all_inputs():
    expected = np.array([[3, 4], [1, 0], [0, 0]], np.float32)
    got = np.array([[3, 4], [1, 1], [0, 0]], np.float32)
    found = agreement(expected, got)
    assert found.inputs == 3
    assert found.cosine == pytest.approx(np.sqrt(0.5))
    assert found.error == pytest.approx(np.sqrt(1 / 26))
    assert agreement(expected, expected) == Agreement(3, 1, 0)


@pytest.mark.parametrize("error", [0.3, np.nan, np.inf])
def test_disagreement_is_an_error(error):
    with pytest.raises(ModelError, match="Nothing was written"):
        Agreement(1, 0.5, error).require(0.2, "x")
    Agreement(1, 1, 0.2).require(0.2, "x")


def test_outputs_of_another_shape():
    with pytest.raises(ModelError, match=r"answers \(2, 4\), the model \(2, 3\)"):
        agreement(np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32))


def test_an_entry_of_its_own(graph):
    one = single_entry(graph, "voice")
    one.validate()
    (entry,) = one.entries
    assert (entry.name, entry.input, entry.output) == ("voice", "voice_input", "voice_output")
    x = inputs(2, 16)
    both = (make_engine(g, "reference").run("voice", x) for g in (one, graph))
    assert np.array_equal(*both)


# samples


@pytest.fixture(scope="module")
def default():
    return Model.load()


def test_photos_crops_and_recordings(default, tmp_path):
    for name in ("ada-1.jpg", "ada-1.ogg"):
        (tmp_path / name).write_bytes((SAMPLES / name).read_bytes())
    crop = default.read_face(SAMPLES / "ada-2.jpg").crop
    cv2.imwrite(str(tmp_path / "crop.PNG"), crop)
    cv2.imwrite(str(tmp_path / "nobody.png"), np.full((60, 50), 128, np.uint8))
    (tmp_path / "notes.txt").write_text("not a photo")
    found = sample_inputs.sample_inputs(default, [tmp_path], [tmp_path])
    assert found["face"].shape == (2, 1, 112, 96)
    assert np.array_equal(found["face"][1, 0], (crop[:, 8:104].astype(np.float32) - 127.5) / 128)
    assert found["landmarks"].shape[1:] == (1, 96, 96)
    assert found["voice"].shape[1:] == (1, 112, 96)
    assert sample_inputs.sample_inputs(default, [], []) == {}


def test_no_more_files_are_read_than_needed(default, tmp_path, monkeypatch):
    monkeypatch.setattr(sample_inputs, "MOST_FILES", 3)
    for number in range(10):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.full((112, 112), number, np.uint8))
    found = sample_inputs.sample_inputs(default, [tmp_path], [])
    assert (found["face"][:, 0, 0, 0] * 128 + 127.5).round().tolist() == [0, 4, 9]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", r"holds no file that ends in \.bmp"),
        ("a.jpg", b"no photo", r"a\.jpg: .*"),
        (None, b"", "no such zip archive or folder"),
    ],
)
def test_sources_that_cannot_be_used(name, content, message, default, tmp_path):
    source = tmp_path if name else tmp_path / "nowhere"
    if name:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        sample_inputs.sample_inputs(default, [source], [])


# the command


@pytest.fixture
def few_samples(monkeypatch):
    """In place of the photos and recordings: noise, which is read at once."""
    rng = np.random.default_rng(0)
    x = {"landmarks": rng.standard_normal((4, 1, 96, 96)).astype(np.float32)}
    reading = create_autospec(sample_inputs.sample_inputs, return_value=x)
    monkeypatch.setattr(sample_inputs, "sample_inputs", reading)
    return reading


def test_the_command(few_samples, tmp_path, capsys):
    line = ["export", "default", "--entry", "landmarks", "--out", str(tmp_path)]
    assert main([*line, "--format", "onnx-codebook"]) == 0
    text = capsys.readouterr().out
    size = (tmp_path / "landmarks.codebook.onnx").stat().st_size
    assert text == (
        f"{tmp_path / 'landmarks.codebook.onnx'}: {size:,} bytes, "
        "lowest cosine to the model: landmarks 1.000000 over 4 inputs\n"
    )
    given = ["--samples-faces", "photos", "--samples-voices", "speech"]
    assert main([*line, "--format", "tflite", *given, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["format"] == "tflite"
    (file,) = record["files"]
    assert file["path"] == str(tmp_path / "landmarks.tflite")
    assert file["entries"]["landmarks"]["error"] < 1e-5
    _, faces, voices = few_samples.call_args.args
    assert faces == [SAMPLES, Path("photos")]
    assert voices == []  # no entry takes them
    terms = read_model(default_model()).card["terms"]
    assert terms.encode() in (tmp_path / "landmarks.tflite").read_bytes()


@pytest.mark.usefixtures("few_samples")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["export", "default", "--format", "pdf", "--out", "."], "usage"),
        (["export", "default", "--out", "."], "usage"),
        (["export", "default", "--format", "onnx"], "usage"),
        (["export", "none.edgeid", "--format", "onnx", "--out", "."], "model"),
        (["export", "default", "--format", "onnx", "--entry", "nose", "--out", "."], "graph"),
        (["export", "default", "--format", "tflite", "--single", "--out", "."], "data"),
        (["export", "default", "--format", "onnx", "--integer-only", "--out", "."], "data"),
        (
            ["export", "default", "--format", "onnx", "--entry", "landmarks", "--out", "file"],
            "system",
        ),
    ],
)
def test_wrong_command_lines(arguments, code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    assert main([*arguments, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["error"]["code"] == code
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
