"""Choosing the instruction set of single layers, and remembering it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgeid.runtime.errors import EngineError
from edgeid.runtime.format import read_model
from edgeid.runtime.model import default_model
from edgeid.runtime.native import tuning
from edgeid.runtime.native.engine import NativeEngine, levels, tune

built = pytest.mark.skipif(not levels(), reason="the native engine was not built")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    path = tmp_path / "cache" / "tuning.json"
    monkeypatch.setenv("EDGEID_TUNING", str(path))
    monkeypatch.delenv("EDGEID_ISA", raising=False)
    return path


@pytest.fixture(scope="module")
def graph():
    return read_model(default_model()).graph


def test_only_a_clear_gain_is_taken():
    times = {
        "portable": {"a": 0.5, "b": 0.96, "c": 2.0},
        "avx2": {"a": 0.6, "b": 1.1, "c": 1.0},
        "avx512": {"a": 1.0, "b": 1.0, "c": 1.0},
    }
    assert tuning.fastest(times, "avx512") == {"a": "portable"}


def test_choices_come_back(cache, graph):
    names = ("portable", "avx2")
    layer = graph.layers[0].name
    choices = {"face": {layer: "portable"}}
    assert tuning.recall(graph, names, 1) == {}
    assert tuning.remember(graph, names, 1, choices) == cache
    assert tuning.recall(graph, names, 1) == choices
    assert tuning.recall(graph, names, 2) == {}  # of another number of threads nothing is known
    assert tuning.recall(graph, ("portable",), 1) == {}  # nor of another machine
    tuning.remember(graph, names, 2, {})
    assert tuning.recall(graph, names, 1) == choices


@pytest.mark.parametrize(
    ("text", "problem"),
    [("[]", "holds no choices"), ("{", "is not JSON"), ('{"a": 1}', "holds no choices")],
)
def test_a_spoilt_file_is_said_to_be(cache, graph, text, problem):
    cache.parent.mkdir()
    cache.write_text(text)
    with pytest.raises(EngineError, match=problem):
        tuning.recall(graph, ("portable",), 1)


def test_choices_that_make_no_sense(cache, graph):
    layer = graph.layers[0].name
    for wrong in ({layer: "tpu"}, {"no such layer": "portable"}, 1):
        tuning.remember(graph, ("portable",), 1, {"face": wrong})
        with pytest.raises(EngineError, match="make no sense"):
            tuning.recall(graph, ("portable",), 1)
    assert json.loads(cache.read_text())


def test_a_place_that_cannot_be_written(tmp_path, monkeypatch, graph):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEID_TUNING", str(tmp_path / "file" / "tuning.json"))
    with pytest.raises(EngineError, match="cannot write"):
        tuning.remember(graph, ("portable",), 1, {})


@built
def test_tuned_and_mixed_levels_give_the_same_bits(cache, graph):
    entry = graph.entry("voice")
    x = np.random.default_rng(3).standard_normal((2, *entry.shape)).astype(np.float32)
    expected = NativeEngine(graph, isa=levels()[-1]).run("voice", x)
    choices, path = tune(graph, rounds=1)
    assert path == cache
    assert set(choices) == {e.name for e in graph.entries}
    assert np.array_equal(NativeEngine(graph).run("voice", x), expected)
    every_other = {
        layer.name: levels()[i % len(levels())]
        for i, layer in enumerate(x for x in graph.layers_of("voice") if x.op in ("Conv", "Gemm"))
    }
    mixed = NativeEngine(graph, choices={"voice": every_other})
    assert np.array_equal(mixed.run("voice", x), expected)
