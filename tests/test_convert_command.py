"""``edgeid convert`` from files to a model and a report, on small networks and made-up people."""

from __future__ import annotations

import json

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from edgeid.cli import main
from edgeid.cli_convert import _check_modalities
from edgeid.converters.network_files import Networks
from edgeid.converters.report.steps import Rate
from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import Graph
from edgeid.runtime.model import Model

from .networks import residual_graph
from .test_convert import checkpoint
from .test_people import write_people

PEOPLE = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("customer")
    write_people(root, PEOPLE, shots=3, takes=2, noise=8)
    checkpoint(root / "face.pt", voice=False)
    checkpoint(root / "voice.pt", voice=True)
    return root


def command(folder, out, *more):
    paths = {"--face": "face.pt", "--voice": "voice.pt", "--faces": "faces", "--voices": "voices"}
    options = [word for key, name in paths.items() for word in (key, str(folder / name))]
    return ["convert", *options, "--out", str(out), "--samples", "24", *more]


def test_a_customers_pair_becomes_a_model_with_a_report(folder, tmp_path, capsys):
    out, report = tmp_path / "m.edgeid", tmp_path / "report"
    line = command(folder, out, "--recipe", "logminmax", "--no-calibration", "--json")
    assert main([*line, "--report", str(report), "--max-drop", "100"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["bytes"] == out.stat().st_size
    assert [step["pass"] for step in record["recipe"]] == [
        *("logminmax", "encode", "activation_scales"),
    ]
    assert set(record["drops"]) == {"face", "voice"}
    file = Model.load(out).file
    assert file.recipe == record["recipe"]
    assert file.graph.scales
    measured = json.loads((report / "report.json").read_text())
    assert [step["name"] for step in measured["steps"]] == [
        *("original", "1 logminmax", "2 encode", "3 activation_scales"),
    ]
    assert measured["steps"][0]["entries"]["face"]["rate"]["name"] == "EER"
    page = (report / "report.html").read_text()
    assert "m.edgeid" in page
    assert "src=" not in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.edgeid", "report"]


def test_too_few_people_for_thresholds_are_told_and_the_work_is_kept(folder, tmp_path, capsys):
    out = tmp_path / "m.edgeid"
    assert main([*command(folder, out), "--json"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["code"] == "calibration"
    assert not out.exists()
    work = tmp_path / "m.edgeid.work"
    kept = sorted(path.name.split("-")[1] for path in work.glob("*.edgeid"))
    assert kept == ["activation_scales", "encode"]
    assert main([*command(folder, out), "--resume", "--no-calibration"]) == 0
    assert "resumed" in capsys.readouterr().out
    assert not work.exists()


def test_a_budget_that_cannot_be_kept_is_told(folder, tmp_path, capsys):
    out = tmp_path / "m.edgeid"
    line = command(folder, out, "--no-calibration", "--budget", "40kB", "--json")
    assert main(line) == 2
    message = json.loads(capsys.readouterr().out)["error"]["message"]
    assert "no recipe keeps to the limits (smallest: " in message
    assert not out.exists()


def test_networks_that_verify_better_when_swapped_are_refused():
    face, voice = (residual_graph(seed, (4, 4, 4, 4), (1, 0, 0, 0)) for seed in (1, 2))

    def judge(graph: Graph):
        """Each network is good at what ``face`` and ``voice`` say."""
        values = {}
        for entry, right in (("face", face), ("voice", voice)):
            name = graph.layers_of(entry)[0].weight
            same = np.array_equal(
                graph.tensors[name].decode(), right.tensors[right.layers[0].weight].decode()
            )
            values[entry] = Rate("EER", *[0.05 if same else 0.4] * 3, 100)
        return values

    _check_modalities(Networks(face, voice), judge)
    with pytest.raises(GraphError, match="swapped"):
        _check_modalities(Networks(voice, face), judge)
