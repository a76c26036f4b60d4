"""The command ``bench``."""

from __future__ import annotations

import json

import pytest

from edgeid import speed
from edgeid.cli import main
from edgeid.speed import EngineSpeed, LayerTime, SpeedReport, Time

LAYERS = (
    LayerTime("conv1", "int8", 0.2),
    LayerTime("conv2", "lookup", 0.7),
    LayerTime("flatten", "copy", 0.01),
)
NATIVE = EngineSpeed("native", 5.0, 40.0, {"face": Time(1.0, 1.5)}, {"face": LAYERS})
OTHER = EngineSpeed("onnxruntime", 90.0, None, {"face": Time(20.0, 21.0)})
REPORT = SpeedReport(
    "m.edgeid",
    {"processor": "Fast CPU", "cores": 4, "system": "Linux aarch64", "python": "3.11.7"},
    2,
    (NATIVE, OTHER),
    {"litert": "pip install edgeid[litert]"},
)


def test_all_engines(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(speed, "measure_engines", lambda *a: given.append(a) or REPORT)
    arguments = ["bench", "--model", "m.edgeid", "--threads", "2", "--layers", "2"]
    assert main([*arguments, "--rounds", "4", "--seconds", "0.25"]) == 0
    assert given == [("m.edgeid", 2, 0.25, 4)]
    out = capsys.readouterr().out
    assert out.startswith("m.edgeid on Fast CPU, 4 cores, Linux aarch64, 2 threads\n")
    assert "face, one input, the fastest run" in out
    assert "1.00 ms (median 1.50)" in out
    assert "native: loaded and checked in 5 ms, 40 MiB of memory at most\n" in out
    assert "onnxruntime: loaded and checked in 90 ms\n" in out
    assert "litert: not measured: pip install edgeid[litert]\n" in out
    assert "native, face: 2 of 3 layers, 0.91 ms" in out
    assert out.index("conv1 (int8)") < out.index("conv2 (lookup)")  # as they run
    assert "flatten" not in out


def test_json(monkeypatch, capsys):
    monkeypatch.setattr(speed, "measure_engines", lambda *_: REPORT)
    assert main(["bench", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert [one["engine"] for one in record["engines"]] == ["native", "onnxruntime"]
    assert record["engines"][0]["layers"]["face"][1]["kernel"] == "lookup"
    assert record["absent"] == {"litert": "pip install edgeid[litert]"}


def test_one_engine_in_this_process(monkeypatch, capsys):
    given = []
    monkeypatch.setattr(speed, "measure_engine", lambda *a: given.append(a) or OTHER)
    monkeypatch.setenv("EDGEID_THREADS", "3")
    assert main(["bench", "--engine", "onnxruntime", "--seconds", "0"]) == 0
    assert given == [("default", "onnxruntime", 3, 0.0)]
    assert "3 threads" in capsys.readouterr().out


def test_no_engine_at_all(monkeypatch, capsys):
    empty = SpeedReport("m.edgeid", REPORT.machine, 1, (), {"reference": "broken"})
    monkeypatch.setattr(speed, "measure_engines", lambda *_: empty)
    assert main(["bench"]) == 0
    assert "reference: not measured: broken" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--rounds", "0"],
        ["--seconds", "-1"],
        ["--seconds", "nan"],
        ["--threads", "0"],
        ["--engine", "warp"],
        ["--model", "/nowhere/m.edgeid"],
    ],
)
def test_what_cannot_be_measured(arguments, capsys):
    assert main(["bench", *arguments]) == 2
    assert capsys.readouterr().err.startswith("edgeid: ")
