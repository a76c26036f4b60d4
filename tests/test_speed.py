"""How fast engines are: measured in processes of their own, merged, told layer by layer."""

from __future__ import annotations

import json
import subprocess

import numpy as np
import pytest

from edgeid import speed
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import EngineError, ModelError
from edgeid.runtime.model import Model
from edgeid.speed import (
    KINDS,
    EngineSpeed,
    LayerTime,
    Time,
    layer_times,
    measure_engine,
    measure_engines,
)

from .networks import residual_graph

SPEED = EngineSpeed(
    "reference",
    20.0,
    64.5,
    {"face": Time(1.0, 2.0), "voice": Time(3.0, 3.5)},
    {"face": (LayerTime("conv", "gemm", 0.75),)},
)


class Profiled:
    """An engine that knows what its layers take."""

    def __init__(self, engine):
        self.name = engine.name
        self.run = engine.run

    def profile(self, entry, x, rounds):
        assert (entry, x.shape) == ("face", (1, 1, 32, 32))
        assert rounds >= 1
        return [("conv", "lookup-avx2", 0.002), ("add", "float", 0.0005)]


class Model32:
    """A loaded model with one network."""

    def __init__(self):
        self.file = type("File", (), {"graph": residual_graph(1)})()
        self.engine = make_engine(self.file.graph, "reference")


def answer(monkeypatch, answers):
    """Children that print what ``answers`` gives for their engine."""
    started = []

    def run(command, **_how):
        started.append(command)
        engine = command[command.index("--engine") + 1]
        given = answers(engine, len(started))
        return subprocess.CompletedProcess(command, 0 if given else 1, given, "")

    monkeypatch.setattr(subprocess, "run", run)
    return started


def report_of(engine, **entries):
    one = EngineSpeed(engine, 10.0, 50.0, {k: Time(*v) for k, v in entries.items()})
    return json.dumps({"engines": [one.to_dict()]})


def test_what_another_process_measured_comes_back():
    assert EngineSpeed.from_dict(json.loads(json.dumps(SPEED.to_dict()))) == SPEED


def test_an_engine_in_this_process(monkeypatch):
    model = Model32()
    monkeypatch.setattr(Model, "load", lambda *_, **__: model)
    found = measure_engine("x", "reference", 1, 0.0)
    assert found.engine == "reference"
    assert found.load >= 0
    assert [*found.entries] == ["face"]
    assert 0 < found.entries["face"].minimum <= found.entries["face"].median
    assert found.layers == {}
    assert found.peak is None or found.peak > 20


def test_layers_where_the_engine_tells_them(monkeypatch):
    model = Model32()
    model.engine = Profiled(model.engine)
    monkeypatch.setattr(Model, "load", lambda *_, **__: model)
    found = measure_engine("x", "reference", 1, 0.0)
    assert found.layers == {
        "face": (LayerTime("conv", "lookup-avx2", 2.0), LayerTime("add", "float", 0.5))
    }
    assert layer_times(make_engine(model.file.graph, "reference"), model.file.graph, "face") == ()


def test_processes_take_turns_and_the_fastest_counts(monkeypatch):
    def answers(engine, number):
        return report_of(engine, face=(5.0 + number, 9.0 + number))

    started = answer(monkeypatch, answers)
    found = measure_engines("default", threads=2, seconds=0.25, rounds=2)
    engines = [command[command.index("--engine") + 1] for command in started]
    assert engines == [*KINDS, *KINDS[1:], KINDS[0]]
    assert all(command[-4:] == ["--threads", "2", "--seconds", "0.25"] for command in started)
    # the first ran as number 1 and as the last
    first = next(one for one in found.engines if one.engine == KINDS[0])
    last = 2 * len(KINDS)
    assert first.entries["face"] == Time(6.0, 9.0 + (1 + last) / 2)
    assert found.engines[0].engine == KINDS[0]
    assert found.absent == {}
    assert (found.threads, found.machine["cores"] >= 1) == (2, True)


def test_engines_that_are_missing_are_named(monkeypatch):
    def answers(engine, _number):
        if engine == "reference":
            return report_of(engine, face=(1.0, 1.0))
        if engine == "onnxruntime":
            return '{"error": {"code": "engine", "message": "needs onnxruntime"}}'
        return ""

    started = answer(monkeypatch, answers)
    found = measure_engines("default", threads=1, seconds=0.1, rounds=3)
    assert [one.engine for one in found.engines] == ["reference"]
    assert found.absent["onnxruntime"] == "needs onnxruntime"
    assert found.absent["litert"] == "the process ended with status 1"
    assert len(started) == len(KINDS) + 2  # what is missing is not asked again


def test_a_file_that_cannot_be_read_is_no_matter_of_engines(tmp_path, monkeypatch):
    started = answer(monkeypatch, lambda *_: "")
    with pytest.raises(ModelError, match=r"nothing\.edgeid"):
        measure_engines(tmp_path / "nothing.edgeid", 1, 0.1, 1)
    assert started == []


def test_a_real_process():
    found = speed._in_process(speed.default_model(), "reference", 1, 0.0)
    assert [*found.entries] == ["face", "voice", "landmarks", "detector"]
    assert all(0 < t.minimum <= t.median for t in found.entries.values())


def test_a_real_process_that_fails(tmp_path):
    path = tmp_path / "broken.edgeid"
    path.write_bytes(b"nothing")
    with pytest.raises(EngineError, match=r"broken\.edgeid"):
        speed._in_process(path, "reference", 1, 0.0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor\t: 0\nmodel name\t: Fast CPU\nflags\t: x\n", "Fast CPU"),
        ("processor\t: 0\nRevision\t: 1\nModel\t\t: Raspberry Pi 5\n", "Raspberry Pi 5"),
    ],
)
def test_the_name_of_the_processor(text, expected, monkeypatch, tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    monkeypatch.setattr(speed, "Path", lambda _name: path)
    assert speed.machine()["processor"] == expected


def test_systems_that_tell_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(speed, "Path", lambda _name: tmp_path / "missing")
    assert speed.peak_memory() is None
    assert isinstance(speed.machine()["processor"], str)
    assert np.isfinite(speed.machine()["cores"])
