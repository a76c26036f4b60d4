"""The LiteRT engine: answers as the reference does, and says so where it cannot run."""

from __future__ import annotations

import importlib.util
import struct
import subprocess
import sys
import threading
from types import ModuleType

import numpy as np
import pytest

from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.engine import ENGINES, make_engine
from edgeid.runtime.errors import EngineError, GoldenVectorError, GraphError
from edgeid.runtime.flatbuffer import Scalar, Table, pack_table
from edgeid.runtime.format import read_model
from edgeid.runtime.golden import check_golden, golden_input
from edgeid.runtime.graph import Entry, Graph, L2Normalize, PRelu, merge_graphs
from edgeid.runtime.litert import LitertEngine
from edgeid.runtime.model import Model, default_model

from .networks import residual_graph

PACKAGES = ("ai_edge_litert", "tflite_runtime")
INSTALLED = [name for name in PACKAGES if importlib.util.find_spec(name)]
needs_litert = pytest.mark.skipif(not INSTALLED, reason="no LiteRT installed")


@pytest.fixture
def graph():
    return residual_graph(1)


def hide(monkeypatch, *names):
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, f"{name}.interpreter", None)


def install(monkeypatch, name, interpreter):
    """A package of that name whose ``interpreter.Interpreter`` is this."""
    module = ModuleType(f"{name}.interpreter")
    module.Interpreter = interpreter
    package = ModuleType(name)
    package.interpreter = module
    monkeypatch.setitem(sys.modules, name, package)
    monkeypatch.setitem(sys.modules, module.__name__, module)


# answers


@needs_litert
@pytest.mark.parametrize("threads", [1, 2])
def test_batches_answer_as_the_reference_does(graph, threads):
    x = np.random.default_rng(1).standard_normal((3, *graph.entries[0].shape)).astype(np.float32)
    expected = make_engine(graph, "reference").run("face", x)
    engine = make_engine(graph, "litert", threads)
    assert engine.name == "litert"
    got = engine.run("face", x)
    assert (got.dtype, got.shape) == (np.float32, expected.shape)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    assert engine.run("face", x[:0]).shape == (0, *expected.shape[1:])
    # rows that are not contiguous
    assert np.array_equal(engine.run("face", x[::-1]), got[::-1])


@needs_litert
def test_the_default_model_passes_its_golden_vectors():
    model = Model.load(engine="litert")
    assert model.engine.name == "litert"
    graph = read_model(default_model()).graph
    for entry in graph.entries:
        x = golden_input(9, entry.shape)
        expected = make_engine(graph, "reference").run(entry.name, x)
        assert model.engine.run(entry.name, x) == pytest.approx(expected, abs=1e-4)


@needs_litert
def test_layers_that_two_entries_share_and_affines():
    merged = merge_graphs(face=residual_graph(1), voice=residual_graph(2))
    engine, reference = make_engine(merged, "litert"), make_engine(merged, "reference")
    for entry in ("face", "voice"):
        x = golden_input(3, merged.entry(entry).shape)
        assert engine.run(entry, x) == pytest.approx(reference.run(entry, x), abs=1e-5)


@needs_litert
def test_threads_take_turns(graph):
    engine = make_engine(graph, "litert")
    inputs = [golden_input(seed, graph.entries[0].shape) for seed in range(4)]
    expected = [engine.run("face", x) for x in inputs]
    wrong = []

    def work(number):
        for _ in range(20):
            if not np.array_equal(engine.run("face", inputs[number]), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


# what cannot be run


@needs_litert
@pytest.mark.parametrize(
    "x",
    [
        np.zeros((1, 1, 8, 8), np.float32),
        np.zeros((1, 1, 32, 32), np.float64),
        np.zeros((1, 32, 32), np.float32),
        [[1.0]],
    ],
)
def test_other_inputs(graph, x):
    with pytest.raises(EngineError, match=r"entry 'face' takes a float32 array \(N, 1, 32, 32\)"):
        make_engine(graph, "litert").run("face", x)


@needs_litert
def test_an_unknown_entry(graph):
    with pytest.raises(GraphError, match="no entry 'nose'"):
        make_engine(graph, "litert").run("nose", np.zeros((1, 1, 32, 32), np.float32))


@needs_litert
def test_a_layer_that_tflite_does_not_have():
    layer = L2Normalize("unit", ("x",), "y", 1e-3)
    graph = Graph((Entry("face", "x", (4,), "y"),), (layer,), {})
    with pytest.raises(EngineError, match="cannot run this model: layer 'unit'"):
        make_engine(graph, "litert")


def test_no_package(graph, monkeypatch):
    hide(monkeypatch, *PACKAGES)
    with pytest.raises(EngineError, match=r"pip install edgeid\[litert\]"):
        make_engine(graph, "litert")


def test_auto_does_not_take_it(graph):
    assert "litert" in ENGINES
    assert make_engine(graph, "auto").name != "litert"


def test_an_old_package_beside_a_new_numpy(graph, monkeypatch, tmp_path):
    # as tflite-runtime 2.14 fails: compiled against numpy 1
    folder = tmp_path / "tflite_runtime"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "interpreter.py").write_text("raise AttributeError('_ARRAY_API not found')")
    for name in ("tflite_runtime", "tflite_runtime.interpreter"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    hide(monkeypatch, "ai_edge_litert")
    with pytest.raises(EngineError, match=r"_ARRAY_API not found\): it needs numpy below 2"):
        make_engine(graph, "litert")


class Fake:
    """An interpreter that answers without computing."""

    def __init__(self, model_content, num_threads):
        assert model_content[4:8] == b"TFL3"
        assert num_threads == 1

    def allocate_tensors(self):
        pass

    def get_input_details(self):
        return [{"index": 0}]

    get_output_details = get_input_details

    def set_tensor(self, _index, x):
        self.x = x

    def invoke(self):
        pass

    def get_tensor(self, _index):
        return self.x


def vector_graph():
    """PReLU of four values; what ``Fake`` answers is right where none is negative."""
    layer = PRelu("p", ("x",), "y", "slope")
    slope = encode_float32(np.full(4, 0.5, np.float32))
    return Graph((Entry("face", "x", (4,), "y"),), (layer,), {"slope": slope})


def test_the_old_name_serves_where_the_new_one_is_missing(monkeypatch):
    hide(monkeypatch, "ai_edge_litert")
    install(monkeypatch, "tflite_runtime", Fake)
    engine = make_engine(vector_graph(), "litert")
    x = np.array([[1, 2, 3, 4], [0, 5, 0, 0]], np.float32)
    assert np.array_equal(engine.run("face", x), x)


def test_a_package_that_answers_wrongly_is_found_out(monkeypatch):
    graph = vector_graph()
    golden = {"entry": "face", "seed": 1, "embedding": [0.0] * 4}
    right = make_engine(graph, "reference").run("face", golden_input(1, (4,)))
    golden["embedding"] = right[0].tolist()
    install(monkeypatch, "ai_edge_litert", Fake)
    with pytest.raises(GoldenVectorError, match="engine 'litert', entry 'face'"):
        check_golden(make_engine(graph, "litert"), graph, golden)


@pytest.mark.parametrize("error", [RuntimeError("no kernel"), ValueError("bad shape")])
def test_failures_while_running(monkeypatch, error):
    def fail(_self):
        raise error

    install(monkeypatch, "ai_edge_litert", type("Failing", (Fake,), {"invoke": fail}))
    engine = make_engine(vector_graph(), "litert")
    with pytest.raises(EngineError, match=f"LiteRT failed on entry 'face': {error}"):
        engine.run("face", np.ones((1, 4), np.float32))


def test_a_package_that_refuses_the_model(monkeypatch):
    def refuse(model_content, num_threads):
        raise TypeError(f"{len(model_content) > 0} {num_threads}")

    install(monkeypatch, "ai_edge_litert", refuse)
    with pytest.raises(EngineError, match="LiteRT does not take the model: True 3"):
        LitertEngine(vector_graph(), threads=3)


def test_neither_package_is_loaded_before_it_is_needed():
    code = (
        "import sys, edgeid.runtime.litert, edgeid.runtime.tflite_layers\n"
        f"print(*[m for m in {(*PACKAGES, 'flatbuffers')!r} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


# the file format, by hand


def test_a_flatbuffer_byte_by_byte():
    root = Table({0: Scalar("I", 7), 2: "ab", 3: Scalar("b", -1)})
    data = pack_table(root, b"TEST")
    # head: where the root is, and the identifier; the vtable follows: its size, that of the
    # table, and where fields 0..3 lie, 0 for the one left out
    assert struct.unpack_from("<I4s", data) == (20, b"TEST")
    assert struct.unpack_from("<6H", data, 8) == (12, 13, 4, 0, 8, 12)
    # table: back to the vtable, field 0, the way to the text, field 3
    assert struct.unpack_from("<iIIb", data, 20) == (12, 7, 8, -1)
    assert data[33:36] == bytes(3)  # the text is aligned
    assert struct.unpack_from("<I3s", data, 36) == (2, b"ab\0")
    assert len(data) == 43


def test_vectors_and_tables_of_a_flatbuffer():
    inner = [Table({}), Table({0: np.array([1, -2], np.int32)})]
    data = pack_table(Table({0: inner, 1: np.arange(5, dtype=np.uint8)}), b"TEST")
    flatbuffers = pytest.importorskip("flatbuffers")
    root = flatbuffers.table.Table(bytearray(data), struct.unpack_from("<I", data)[0])
    first, second = (root.Offset(4), root.Offset(6))
    assert root.VectorLen(first) == 2
    start = root.Vector(first)
    place = root.Indirect(start + 4)
    child = flatbuffers.table.Table(root.Bytes, place)
    kind = flatbuffers.number_types.Int32Flags
    assert child.GetVectorAsNumpy(kind, child.Offset(4)).tolist() == [1, -2]
    assert root.Vector(second) % 16 == 0
    kind = flatbuffers.number_types.Uint8Flags
    assert root.GetVectorAsNumpy(kind, second).tolist() == [0, 1, 2, 3, 4]
    empty = flatbuffers.table.Table(root.Bytes, root.Indirect(start))
    assert empty.Offset(4) == 0
