"""TFLite in int8: near the model on real inputs, integers where they are asked for."""

from __future__ import annotations

import shutil
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("ai_edge_quantizer")
pytest.importorskip("torch")

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter

from edgeid.converters.export.agreement import agreement, run_tflite
from edgeid.converters.export.sample_inputs import sample_inputs
from edgeid.converters.export.tflite_int8 import CALIBRATION_SAMPLES, tflite_int8_bytes
from edgeid.converters.export.tflite_layers import tflite_bytes
from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.graph import Clip, Conv, Entry, Graph, L2Normalize, PRelu, Relu
from edgeid.runtime.model import Model

from .networks import inputs, residual_graph


@pytest.fixture(scope="module")
def default():
    return Model.load()


@pytest.fixture(scope="module")
def real(default, tmp_path_factory):
    """Inputs of the default model from some of the packaged photos and recordings."""
    folder = tmp_path_factory.mktemp("samples")
    samples = Path(str(files("edgeid") / "samples"))
    for name in ("ada-1", "bruno-2", "cora-3", "dana-4"):
        for path in samples.glob(f"{name}.*"):
            shutil.copy(path, folder)
    return sample_inputs(default, [folder], [folder])


def unpacked(data):
    model = schema.ModelT.InitFromPackedBuf(bytearray(data))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    (graph,) = model.subgraphs
    kinds = [names[model.operatorCodes[op.opcodeIndex].builtinCode] for op in graph.operators]
    return model, graph, kinds


def types_in_use(graph):
    places = {place for op in graph.operators for place in (*op.inputs, *op.outputs)}
    return {graph.tensors[place].type for place in places}


@pytest.mark.parametrize("entry", ["face", "voice", "landmarks"])
def test_the_default_model_on_real_inputs(default, real, entry):
    x = real[entry]
    graph = default.file.graph
    data = tflite_int8_bytes(graph, entry, x)
    found = agreement(make_engine(graph).run(entry, x[:4]), run_tflite(data, x[:4]))
    assert found.cosine >= 0.98
    assert len(data) < 0.3 * len(tflite_bytes(graph, entry))


def test_integers_only(default, real):
    x, graph = real["landmarks"], default.file.graph
    data = tflite_int8_bytes(graph, "landmarks", x, integer_only=True)
    found = agreement(make_engine(graph).run("landmarks", x[:4]), run_tflite(data, x[:4]))
    assert found.cosine >= 0.98
    _, quantised, kinds = unpacked(data)
    assert not {"QUANTIZE", "DEQUANTIZE"} & set(kinds)
    assert kinds.count("PRELU") == 7
    assert types_in_use(quantised) == {schema.TensorType.INT8, schema.TensorType.INT32}
    interpreter = Interpreter(model_content=data)
    for (detail,) in (interpreter.get_input_details(), interpreter.get_output_details()):
        assert detail["dtype"] == np.int8


def test_what_is_in_integers_and_what_stays_in_float():
    graph = residual_graph(1)
    data = tflite_int8_bytes(graph, "face", inputs(16), "terms: research")
    model, quantised, kinds = unpacked(data)
    assert model.description == b"terms: research"
    tensors = quantised.tensors
    for op, kind in zip(quantised.operators, kinds, strict=True):
        found = {tensors[place].type for place in op.outputs}
        integer = kind not in ("PRELU", "DEQUANTIZE")
        assert found == {schema.TensorType.INT8 if integer else schema.TensorType.FLOAT32}
        if kind == "CONV_2D":  # a scale for each output channel
            weight = tensors[op.inputs[1]]
            assert len(weight.quantization.scale) == weight.shape[0]
    assert all(buffer.offset == 0 for buffer in model.buffers)  # constants lie inside
    details = Interpreter(model_content=data).get_input_details()
    assert details[0]["dtype"] == np.float32


def test_the_ranges_are_those_of_the_samples():
    graph = Graph((Entry("face", "x", (1, 1, 2), "y"),), (Relu("r", ("x",), "y"),), {})
    samples = np.array([[0, 1], [0, 2], [-55, 0], [0, 200]], np.float32).reshape(4, 1, 1, 2)
    data = tflite_int8_bytes(graph, "face", samples, integer_only=True)
    (detail,) = Interpreter(model_content=data).get_input_details()
    scale, zero = detail["quantization"]
    assert scale == pytest.approx(1)  # 255 steps from -55 to 200
    assert zero == 55 - 128


@pytest.mark.parametrize("groups", [1, 4])
def test_a_channel_that_reaches_far_beyond_the_others(groups):
    rng = np.random.default_rng(1)
    loud = np.array([1, 1, 1, 1000]).reshape(4, 1, 1, 1)
    tensors = {
        "w": encode_float32(rng.standard_normal((4, 1, 3, 3)) * loud),
        "s": encode_float32(np.full(4, 0.25)),
        "v": encode_float32(
            rng.standard_normal((4, 4 // groups, 3, 3))
            / (loud if groups > 1 else loud.reshape(1, 4, 1, 1))
        ),
    }
    layers = (
        Conv("c", ("x",), "1", "w"),
        PRelu("p", ("1",), "2", "s"),
        Conv("d", ("2",), "y", "v", None, (1, 1), (0, 0, 0, 0), groups),
    )
    graph = Graph((Entry("face", "x", (1, 8, 8), "y"),), layers, tensors)
    x = inputs(16, 8)
    expected = make_engine(graph, "reference").run("face", x)
    found = agreement(expected, run_tflite(tflite_int8_bytes(graph, "face", x), x))
    assert found.cosine > 0.995  # without balance three channels in four would be zero


def test_no_more_samples_are_run_than_needed(monkeypatch):
    from edgeid.converters.export import tflite_int8

    seen = []
    real_ranges = tflite_int8._activation_ranges
    monkeypatch.setattr(
        tflite_int8,
        "_activation_ranges",
        lambda model, x: seen.append(len(x)) or real_ranges(model, x[:2]),
    )
    graph = residual_graph(1, (2, 2, 2, 2), (0, 0, 0, 0), size=16)
    tflite_int8_bytes(graph, "face", inputs(CALIBRATION_SAMPLES + 5, 16))
    assert seen == [CALIBRATION_SAMPLES]


def test_an_activation_that_is_always_zero():
    weight = {"w": encode_float32(np.zeros((2, 1, 1, 1))), "s": encode_float32(np.zeros(2))}
    layers = (Conv("c", ("x",), "1", "w"), PRelu("p", ("1",), "y", "s"))
    graph = Graph((Entry("face", "x", (1, 4, 4), "y"),), layers, weight)
    x = inputs(3, 4)
    for integer_only in (False, True):
        data = tflite_int8_bytes(graph, "face", x, integer_only=integer_only)
        assert not run_tflite(data, x).any()


@pytest.mark.parametrize("bounds", [(0, 6), (-1, 1), (0, 1)])
def test_clips_in_integers(bounds):
    graph = Graph((Entry("face", "x", (1, 4, 4), "y"),), (Clip("c", ("x",), "y", *bounds),), {})
    x = 3 * inputs(3, 4)
    got = run_tflite(tflite_int8_bytes(graph, "face", x, integer_only=True), x)
    assert got == pytest.approx(np.clip(x, *bounds), abs=0.06)


@pytest.mark.parametrize("layer", [L2Normalize("l", ("x",), "y"), Clip("l", ("x",), "y", -1, 1.5)])
def test_layers_without_integers(layer):
    graph = Graph((Entry("face", "x", (4,), "y"),), (layer,), {})
    x = np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32)
    expected = make_engine(graph, "reference").run("face", x)
    got = run_tflite(tflite_int8_bytes(graph, "face", x), x)
    assert got == pytest.approx(expected, abs=0.03)
    with pytest.raises(GraphError, match="stays in float: TFLite has no integer operator"):
        tflite_int8_bytes(graph, "face", x, integer_only=True)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros((0, 1, 32, 32), np.float32), r"float32 \(n, 1, 32, 32\), n of 1 or more"),
        (np.zeros((2, 1, 32, 31), np.float32), r"not float32 \(2, 1, 32, 31\)"),
        (np.zeros((2, 1, 32, 32)), "not float64"),
        (np.full((2, 1, 32, 32), np.nan, np.float32), "NaN or infinity"),
    ],
)
def test_samples_that_cannot_be_used(samples, message):
    with pytest.raises(DataError, match=message):
        tflite_int8_bytes(residual_graph(1), "face", samples)


def test_nothing_is_printed(capsys):
    tflite_int8_bytes(residual_graph(1), "face", inputs(2))
    printed = capsys.readouterr()
    assert printed.out == printed.err == ""
