"""Networks -> model file: parity with torch, what is refused, and nothing half-written."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from edgeid.converters.convert import ConvertOptions, convert, graph_budget, work_folder  # noqa: E402
from edgeid.converters.graphs.torch_graph import to_torch  # noqa: E402
from edgeid.converters.named_recipes import named_ladder  # noqa: E402
from edgeid.converters.network_files import face_spec, load_networks  # noqa: E402
from edgeid.converters.networks.cnn20 import CNN20, settle_statistics  # noqa: E402
from edgeid.converters.people import People  # noqa: E402
from edgeid.converters.training.detector import DetectorNetwork  # noqa: E402
from edgeid.converters.training.faces import FaceSet  # noqa: E402
from edgeid.converters.training.landmarks import LandmarkNetwork  # noqa: E402
from edgeid.converters.training.training import face_input  # noqa: E402
from edgeid.runtime.errors import CalibrationError, DataError, GraphError, ModelError  # noqa: E402
from edgeid.runtime.indexed import Indexed  # noqa: E402
from edgeid.runtime.model import Model  # noqa: E402
from edgeid.runtime.network_detector import NetworkDetector  # noqa: E402
from edgeid.runtime.voice import VoiceSpec, cut_windows  # noqa: E402


def checkpoint(path, voice):
    torch.manual_seed(int(voice))
    network = CNN20(0.125, 16, average_time=voice)
    settle_statistics(network, [torch.randn(8, 1, 112, 96)])
    shape = {"width": 0.125, "dim": 16, "average_time": voice}
    torch.save({"network": network.state_dict(), "shape": shape, "step": 1}, path)
    return network


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    networks = {n: checkpoint(folder / f"{n}.pt", n == "voice") for n in ("face", "voice")}
    return folder, networks


@pytest.fixture(scope="module")
def networks(trained):
    folder, _ = trained
    return load_networks(folder / "face.pt", folder / "voice.pt")


def plain(weights="float16", **options):
    """A conversion that needs nobody's data."""
    return ConvertOptions(
        named_ladder("plain", weights), weights=weights, calibrated=False, **options
    )


@pytest.mark.parametrize(("weights", "error"), [("float16", 2e-3), ("int8", 3e-2)])
def test_the_file_answers_as_the_networks_do(trained, networks, weights, error, tmp_path):
    _, modules = trained
    out = tmp_path / "m.edgeid"
    report = convert(networks, out, plain(weights, card={"name": "test"}, version=3))
    assert report.size == out.stat().st_size
    assert report.calibration is None
    model = Model.load(out, engine="reference")
    assert model.file.card == {"name": "test"}
    assert model.file.model_version == 3
    rng = np.random.default_rng(0)
    crops = rng.integers(0, 255, (3, 112, 112)).astype(np.uint8)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(modules["face"](face_input(crops)))
        np.testing.assert_allclose(model.embed_aligned(crops), expected, atol=error)
        windows = cut_windows(rng.standard_normal(60000).astype(np.float32), VoiceSpec())
        mean = modules["voice"](torch.from_numpy(windows)).mean(0)
        expected = torch.nn.functional.normalize(mean, dim=0)
        np.testing.assert_allclose(model.embed_windows(windows), expected, atol=error)


def test_equal_networks_give_equal_bytes(networks, tmp_path):
    files = [tmp_path / "a.edgeid", tmp_path / "b.edgeid"]
    for out in files:
        convert(networks, out, plain())
    assert files[0].read_bytes() == files[1].read_bytes()


def test_swapped_networks_are_told(trained, tmp_path):
    folder, _ = trained
    with pytest.raises(GraphError, match="swapped"):
        load_networks(folder / "voice.pt", folder / "face.pt")
    assert not list(tmp_path.iterdir())


def test_missing_networks_and_unknown_weights_are_told(trained, networks, tmp_path):
    folder, _ = trained
    with pytest.raises(DataError, match="no face network"):
        load_networks(folder / "none.pt", folder / "voice.pt")
    with pytest.raises(DataError, match="'int4'"):
        convert(networks, tmp_path / "m.edgeid", plain("int4"))


def test_an_onnx_face_network_of_a_customer_is_converted(trained, tmp_path):
    """Three channels of 112x112: the preprocessing follows the network."""
    folder, _ = trained
    network = torch.nn.Sequential(
        torch.nn.AvgPool2d(28), torch.nn.Flatten(), torch.nn.Linear(48, 8)
    ).eval()
    path = tmp_path / "face.onnx"
    example = torch.zeros(1, 3, 112, 112)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns of its own future
        torch.onnx.export(
            network, (example,), path, dynamo=True, opset_version=20, verbose=False,
            external_data=False,
            dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )  # fmt: skip
    out = tmp_path / "m.edgeid"
    convert(load_networks(path, folder / "voice.pt"), out, plain())
    crops = np.random.default_rng(0).integers(0, 255, (2, 112, 112)).astype(np.uint8)
    rgb = torch.from_numpy(crops).float()[:, None].expand(-1, 3, -1, -1)
    with torch.no_grad():
        expected = torch.nn.functional.normalize(network(rgb))
    np.testing.assert_allclose(Model.load(out).embed_aligned(crops), expected, atol=2e-3)


def test_vectors_stay_float32(networks, tmp_path):
    convert(networks, tmp_path / "m.edgeid", plain())
    tensors = Model.load(tmp_path / "m.edgeid").file.graph.tensors
    kinds = {(len(t.shape) > 1, t.parts()["values"].dtype.name) for t in tensors.values()}
    assert kinds == {(True, "float16"), (False, "float32")}


def test_landmarks_are_the_third_branch(trained, tmp_path):
    folder, _ = trained
    torch.manual_seed(0)
    torch.save(LandmarkNetwork().state_dict(), tmp_path / "l.pt")
    out = tmp_path / "m.edgeid"
    found = load_networks(folder / "face.pt", folder / "voice.pt", tmp_path / "l.pt")
    convert(found, out, plain())
    entries = {e.name: e.shape for e in Model.load(out).file.graph.entries}
    assert entries == {"face": (1, 112, 96), "voice": (1, 112, 96), "landmarks": (1, 96, 96)}


def test_landmarks_by_palette(trained, tmp_path):
    folder, _ = trained
    torch.manual_seed(0)
    torch.save(LandmarkNetwork().state_dict(), tmp_path / "l.pt")
    found = load_networks(folder / "face.pt", folder / "voice.pt", tmp_path / "l.pt")
    options = plain("int8", landmark_bits=4)
    assert graph_budget(1_000_000, found, options) > graph_budget(1_000_000, found, plain("int8"))
    convert(found, tmp_path / "m.edgeid", options)
    model = Model.load(tmp_path / "m.edgeid")  # its golden vectors too
    tensors = model.file.graph.tensors
    kernels = [t.decode() for t in tensors.values() if isinstance(t, Indexed)]
    assert len(kernels) == 7
    assert all(kernel.ndim == 4 and len(np.unique(kernel)) <= 16 for kernel in kernels)
    x = np.random.default_rng(0).standard_normal((2, 1, 96, 96)).astype(np.float32)
    coarse = to_torch(model.file.graph, "landmarks")(torch.from_numpy(x)).detach()
    fine = to_torch(found.landmarks, "landmarks")(torch.from_numpy(x)).detach()
    assert 0 < float((coarse - fine).norm() / fine.norm()) < 0.3
    with pytest.raises(DataError, match=r"1\.\.12"):
        plain(landmark_bits=13)


def test_networks_of_a_model_file_are_converted_again(trained, tmp_path):
    folder, _ = trained
    torch.manual_seed(0)
    torch.save(LandmarkNetwork().state_dict(), tmp_path / "l.pt")
    torch.save(DetectorNetwork().state_dict(), tmp_path / "d.pt")
    first, second = tmp_path / "a.edgeid", tmp_path / "b.edgeid"
    own = (folder / "face.pt", folder / "voice.pt", tmp_path / "l.pt", tmp_path / "d.pt")
    convert(load_networks(*own), first, plain("int8"))
    convert(load_networks(*[first] * 4), second, plain("int8"))
    a, b = (Model.load(path).file.graph for path in (first, second))
    assert [layer.name for layer in a.layers] == [layer.name for layer in b.layers]
    for name, tensor in a.tensors.items():
        np.testing.assert_allclose(b.tensors[name].decode(), tensor.decode(), rtol=1e-6)
    convert(load_networks(*own[:2]), first, plain())
    with pytest.raises(GraphError, match="no entry 'landmarks'"):
        load_networks(folder / "face.pt", folder / "voice.pt", first)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_detector_is_one_more_branch(trained, tmp_path, scaled, monkeypatch):
    folder, _ = trained
    torch.manual_seed(0)
    torch.save(DetectorNetwork().state_dict(), tmp_path / "d.pt")
    out = tmp_path / "m.edgeid"
    found = load_networks(folder / "face.pt", folder / "voice.pt", detector=tmp_path / "d.pt")
    people, options = None, plain("int8")
    if scaled:  # as with faces to learn from: scenes of them give the activations' scales
        crops = np.random.default_rng(0).integers(0, 256, (12, 112, 112)).astype(np.uint8)
        faces = FaceSet(crops, np.zeros(12, np.int64), ("a",))
        people = People((faces, faces), None, face_spec(found.face), VoiceSpec())
        monkeypatch.setattr("edgeid.converters.convert.DETECTOR_SAMPLES", 6)
        options = replace(options, ladder=named_ladder("plain", "int8", scales=True))
    convert(found, out, options, people)
    model = Model.load(out)
    assert model.file.graph.entry("detector").shape == (1, 256, 256)
    assert any(name.startswith("detector/") for name in model.file.graph.scales) == scaled
    assert isinstance(model.detector(), NetworkDetector)
    assert len(model.file.golden) == 6
    with pytest.raises(DataError, match="detector"):
        graph_budget(60_000, found, plain("int8"))


def test_report_is_json(networks, tmp_path):
    report = convert(networks, tmp_path / "m.edgeid", plain())
    assert json.loads(json.dumps(report.to_dict()))["parameters"]["face"] > 0
    assert "no calibration" in "\n".join(report.lines())
    with pytest.raises(CalibrationError):
        Model.load(tmp_path / "m.edgeid").calibration.threshold("face", 1e-2)


def test_a_finished_conversion_leaves_no_work_behind(networks, tmp_path):
    convert(networks, tmp_path / "m.edgeid", plain())
    assert [path.name for path in tmp_path.iterdir()] == ["m.edgeid"]
    convert(networks, tmp_path / "m.edgeid", plain(), work=tmp_path / "kept")
    assert [*(tmp_path / "kept").glob("01-encode-*.edgeid")]


def test_a_conversion_that_fails_keeps_its_work_and_the_old_file(networks, tmp_path, monkeypatch):
    out = tmp_path / "m.edgeid"
    out.write_bytes(b"old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("edgeid.converters.convert.make_golden", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert(networks, out, plain())
    assert out.read_bytes() == b"old"
    assert [*work_folder(out).glob("*.edgeid")]
    monkeypatch.undo()
    report = convert(networks, out, plain())
    assert report.compressed.steps[1].report.resumed
    assert not work_folder(out).exists()


def test_a_folder_that_is_not_there_is_told_before_the_work(networks, tmp_path):
    with pytest.raises(ModelError, match="no folder"):
        convert(networks, tmp_path / "none" / "m.edgeid", plain())


def test_calibration_needs_people(networks, tmp_path):
    with pytest.raises(DataError, match="no people"):
        convert(networks, tmp_path / "m.edgeid", ConvertOptions())


def test_a_budget_is_of_the_whole_file(networks):
    assert graph_budget(1_000_000, networks, plain()) == 1_000_000 - 24 * 1024
    with pytest.raises(DataError, match="alone take 24,576"):
        graph_budget(24_576, networks, plain())
