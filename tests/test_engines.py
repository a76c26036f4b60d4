"""Engines: hand-computed layers, and one engine against the other and against torch."""

from __future__ import annotations

import importlib.util
import sys
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeid.runtime.encoding import encode_float16, encode_float32, encode_int8
from edgeid.runtime.engine import make_engine, thread_count
from edgeid.runtime.errors import EngineError, GraphError
from edgeid.runtime.graph import (
    Add,
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv,
    Entry,
    Flatten,
    Gemm,
    GlobalAveragePool,
    Graph,
    L2Normalize,
    MaxPool,
    Mul,
    PRelu,
    Relu,
    Reshape,
    merge_graphs,
)
from edgeid.runtime.onnx_bytes import graph_to_onnx

HAVE_ONNXRUNTIME = importlib.util.find_spec("onnxruntime") is not None
ENGINES = ["reference", "onnxruntime"] if HAVE_ONNXRUNTIME else ["reference"]
needs_onnxruntime = pytest.mark.skipif(not HAVE_ONNXRUNTIME, reason="onnxruntime not installed")


def run(layer, x, engine, **tensors):
    """One layer on one image (the batch axis is added and taken away)."""
    x = np.asarray(x, np.float32)
    stored = {name: encode_float32(np.asarray(v, np.float32)) for name, v in tensors.items()}
    graph = Graph((Entry("face", "x", x.shape, layer.output),), (layer,), stored)
    return make_engine(graph, engine).run("face", x[None])[0]


each_engine = pytest.mark.parametrize("engine", ENGINES)
IMAGE = ((1, 2, 3), (4, 5, 6), (7, 8, 9))


@each_engine
def test_convolution(engine):
    weight = [[[[1, 0], [0, -1]]]]
    got = run(Conv("c", ("x",), "y", "w", "b"), [IMAGE], engine, w=weight, b=[10])
    assert got.tolist() == [[[1 - 5 + 10, 2 - 6 + 10], [4 - 8 + 10, 5 - 9 + 10]]]


@each_engine
def test_convolution_is_not_flipped_and_pads_each_side_apart(engine):
    layer = Conv("c", ("x",), "y", "w", None, (2, 1), (1, 0, 0, 1))
    got = run(layer, [IMAGE], engine, w=[[[[1, 10], [100, 1000]]]])
    # rows -1..0 and 1..2; columns 0..1, 1..2, and 2 with zero beside it
    assert got.tolist() == [[[2100, 3200, 300], [8754, 9865, 906]]]


@each_engine
def test_two_input_channels_are_added(engine):
    got = run(Conv("c", ("x",), "y", "w"), [[[2]], [[3]]], engine, w=[[[[10]], [[100]]]])
    assert got.tolist() == [[[320]]]


@each_engine
def test_groups(engine):
    layer = Conv("c", ("x",), "y", "w", None, (1, 1), (0, 0, 0, 0), 2)
    weight = [[[[1]], [[10]]], [[[100]], [[1000]]]]
    got = run(layer, [[[1]], [[2]], [[3]], [[4]]], engine, w=weight)
    assert got.ravel().tolist() == [21, 4300]


@each_engine
def test_depthwise(engine):
    layer = Conv("c", ("x",), "y", "w", "b", (1, 1), (0, 0, 0, 0), 2)
    got = run(layer, [[[1, 2]], [[3, 4]]], engine, w=[[[[1, 10]]], [[[1, -1]]]], b=[0, 5])
    assert got.ravel().tolist() == [21, 4]


@each_engine
def test_fully_connected(engine):
    got = run(Gemm("c", ("x",), "y", "w", "b"), [1, 2], engine, w=[[1, 10], [3, 4]], b=[0, 1])
    assert got.tolist() == [21, 12]


@each_engine
@pytest.mark.parametrize(("slope", "negative"), [(0.25, -1), (-2, 8), (3, -12), (0, 0), (1, -4)])
def test_prelu(engine, slope, negative):
    got = run(PRelu("c", ("x",), "y", "s"), [[[5, -4]], [[0, -4]]], engine, s=[slope, 0.5])
    assert got.tolist() == [[[5, negative]], [[0, -2]]]


@each_engine
def test_prelu_of_a_vector(engine):
    got = run(PRelu("c", ("x",), "y", "s"), [-1, -1], engine, s=[0.5, 2])
    assert got.tolist() == [-0.5, -2]


@each_engine
def test_affine(engine):
    layer = Affine("c", ("x",), "y", "w", "b")
    assert run(layer, [[[1, 2]], [[3, 4]]], engine, w=[2, -1], b=[10, 0]).tolist() == [
        [[12, 14]],
        [[-3, -4]],
    ]
    assert run(layer, [1, 2], engine, w=[2, -1], b=[10, 0]).tolist() == [12, -2]


@each_engine
def test_clip_and_relu(engine):
    assert run(Clip("c", ("x",), "y", -1, 6), [-5, 3, 9], engine).tolist() == [-1, 3, 6]
    assert run(Relu("c", ("x",), "y"), [-5, 3], engine).tolist() == [0, 3]


@each_engine
def test_add_and_multiply(engine):
    assert run(Add("c", ("x", "x"), "y"), [1, 2], engine).tolist() == [2, 4]
    assert run(Mul("c", ("x", "x"), "y"), [1, 3], engine).tolist() == [1, 9]


@each_engine
def test_pooling_does_not_see_the_padding(engine):
    maximum = MaxPool("c", ("x",), "y", (2, 2), (2, 2), (1, 1, 0, 0))
    assert run(maximum, [-np.array(IMAGE)], engine).tolist() == [[[-1, -2], [-4, -5]]]
    mean = AveragePool("c", ("x",), "y", (2, 2), (2, 2), (1, 1, 0, 0))
    assert run(mean, [IMAGE], engine).tolist() == [[[1, 2.5], [5.5, 7]]]


@each_engine
def test_global_average_flatten_reshape_concat(engine):
    assert run(GlobalAveragePool("c", ("x",), "y"), [IMAGE], engine).tolist() == [[[5]]]
    assert run(Flatten("c", ("x",), "y"), [[[1, 2]], [[3, 4]]], engine).tolist() == [1, 2, 3, 4]
    assert run(Reshape("c", ("x",), "y", (-1, 2)), [1, 2, 3, 4], engine).tolist() == [
        [1, 2],
        [3, 4],
    ]
    assert run(Concat("c", ("x", "x"), "y"), [1, 2], engine).tolist() == [1, 2, 1, 2]


@each_engine
def test_normalisation_and_the_zero_vector(engine):
    layer = L2Normalize("c", ("x",), "y")
    assert run(layer, [3, 4], engine) == pytest.approx([0.6, 0.8])
    assert run(layer, [0, 0], engine).tolist() == [0, 0]
    assert run(layer, [[[3]], [[4]]], engine).ravel() == pytest.approx([0.6, 0.8])


@each_engine
@pytest.mark.parametrize(
    ("encode", "expected"),
    [(encode_float32, 127.001), (encode_float16, 127.0), (encode_int8, 127.001)],
)
def test_stored_weights_are_decoded(engine, encode, expected):
    tensors = {"w": encode(np.array([[127.001]], np.float32))}
    layers = (Gemm("c", ("x",), "y", "w"),)
    graph = Graph((Entry("face", "x", (1,), "y"),), layers, tensors)
    got = make_engine(graph, engine).run("face", np.ones((1, 1), np.float32))
    assert got[0, 0] == np.float32(expected)


KINDS = "conv group depth prelu affine max mean add join clip".split()  # noqa: SIM905


@st.composite
def networks(draw):
    """A feature map through up to five random layers, a skip connection, and an embedding."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = (draw(st.integers(1, 4)), draw(st.integers(3, 9)), draw(st.integers(3, 9)))
    entry_shape, current = shape, "x"
    layers, tensors = [], {}

    def tensor(name, *size):
        tensors[name] = encode_float32(rng.standard_normal(size).astype(np.float32))
        return name

    def window():
        kernel = (draw(st.integers(1, min(3, shape[1]))), draw(st.integers(1, min(3, shape[2]))))
        stride = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
        pad = tuple(draw(st.integers(0, kernel[i % 2] - 1)) for i in range(4))
        return kernel, stride, pad

    for index in range(draw(st.integers(1, 5))):
        name, out = f"layer{index}", f"v{index}"
        kind = draw(st.sampled_from(KINDS))
        if kind in ("conv", "group", "depth"):
            groups = {"conv": 1, "depth": shape[0], "group": 2 - shape[0] % 2}[kind]
            outputs = groups * draw(st.integers(1, 3))
            kernel, stride, pad = window()
            weight = tensor(f"{name}.w", outputs, shape[0] // groups, *kernel)
            bias = tensor(f"{name}.b", outputs) if draw(st.booleans()) else None
            layer = Conv(name, (current,), out, weight, bias, stride, pad, groups)
        elif kind == "prelu":
            layer = PRelu(name, (current,), out, tensor(f"{name}.s", shape[0]))
        elif kind == "affine":
            scale, shift = tensor(f"{name}.w", shape[0]), tensor(f"{name}.b", shape[0])
            layer = Affine(name, (current,), out, scale, shift)
        elif kind in ("max", "mean"):
            layer = (MaxPool if kind == "max" else AveragePool)(name, (current,), out, *window())
        elif kind == "clip":
            layer = Clip(name, (current,), out, -1.0, 1.5)
        else:
            layer = (Add if kind == "add" else Concat)(name, (current, current), out)
        layers.append(layer)
        sizes = {key: value.shape for key, value in tensors.items()}
        shape = layer.output_shape([shape] * len(layer.inputs), sizes)
        current = out
    layers.append(Flatten("flatten", (current,), "flat"))
    layers.append(Gemm("fc", ("flat",), "e", tensor("fc.w", 4, int(np.prod(shape)))))
    layers.append(L2Normalize("unit", ("e",), "y"))
    graph = Graph((Entry("face", "x", entry_shape, "y"),), tuple(layers), tensors)
    return graph, rng.standard_normal((draw(st.integers(1, 3)), *entry_shape)).astype(np.float32)


@needs_onnxruntime
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks())
def test_onnxruntime_answers_as_the_reference_does(case):
    graph, x = case
    expected = make_engine(graph, "reference").run("face", x)
    assert make_engine(graph, "onnxruntime").run("face", x) == pytest.approx(expected, abs=1e-4)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(networks())
def test_torch_answers_as_the_reference_does(case):
    torch = pytest.importorskip("torch")
    from edgeid.converters.graphs.torch_graph import to_torch

    graph, x = case
    expected = make_engine(graph, "reference").run("face", x)
    with torch.no_grad():
        got = to_torch(graph, "face")(torch.from_numpy(x)).numpy()
    assert got == pytest.approx(expected, abs=1e-4)


def small_network() -> Graph:
    rng = np.random.default_rng(3)
    tensors = {
        "w": encode_float32(rng.standard_normal((4, 1, 3, 3)).astype(np.float32)),
        "fw": encode_float32(rng.standard_normal((5, 4 * 6 * 6)).astype(np.float32)),
    }
    layers = (
        Conv("c", ("x",), "a", "w", None, (1, 1), (1, 1, 1, 1)),
        Flatten("f", ("a",), "b"),
        Gemm("g", ("b",), "y", "fw"),
    )
    return Graph((Entry("face", "x", (1, 6, 6), "y"),), layers, tensors)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("count", [0, 1, 8, 17, 40])
def test_a_batch_is_its_images(name, count):
    engine = make_engine(small_network(), name)
    x = np.random.default_rng(0).standard_normal((count, 1, 6, 6)).astype(np.float32)
    got = engine.run("face", x)
    assert got.shape == (count, 5)
    assert got.dtype == np.float32
    for image, row in zip(x, got, strict=True):
        assert engine.run("face", image[None])[0] == pytest.approx(row, abs=1e-4)


@pytest.mark.parametrize("name", ENGINES)
def test_entries_are_apart_and_input_is_left_alone(name):
    graph = small_network()
    engine = make_engine(merge_graphs(face=graph, voice=graph), name)
    assert engine.name == name
    x = np.ones((2, 1, 6, 6), np.float32)
    x.flags.writeable = False
    assert np.array_equal(engine.run("face", x), engine.run("voice", x))
    strided = np.ones((2, 1, 6, 12), np.float32)[..., ::2]
    assert np.array_equal(engine.run("face", strided), engine.run("face", x))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize(
    "x",
    [
        np.zeros((1, 6, 6), np.float32),
        np.zeros((1, 1, 6, 7), np.float32),
        np.zeros((1, 1, 6, 6)),
        np.zeros((), np.float32),
        [[[[0.0]]]],
        None,
    ],
)
def test_input_of_the_wrong_form_says_what_is_needed(name, x):
    engine = make_engine(small_network(), name)
    with pytest.raises(EngineError, match=r"entry 'face' takes a float32 array \(N, 1, 6, 6\)"):
        engine.run("face", x)


@pytest.mark.parametrize("name", ENGINES)
def test_an_unknown_entry(name):
    with pytest.raises(GraphError, match="no entry 'voice'"):
        make_engine(small_network(), name).run("voice", np.zeros((1, 1, 6, 6), np.float32))


def test_the_reference_engine_keeps_its_memory_small():
    graph = small_network()
    engine = make_engine(graph, "reference")
    x = np.zeros((2000, 1, 6, 6), np.float32)
    peaks = []
    tracemalloc.start()
    try:
        for _ in range(3):  # what is only made once, or by somebody else meanwhile, does not count
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            engine.run("face", x)
            peaks.append(tracemalloc.get_traced_memory()[1] - before)
    finally:
        tracemalloc.stop()
    assert min(peaks) < 150_000  # the output alone has 40,000


def test_unknown_engines_and_invalid_graphs():
    with pytest.raises(
        EngineError, match="no engine 'tpu'; choose one of auto, native, onnxruntime"
    ):
        make_engine(small_network(), "tpu")
    with pytest.raises(GraphError):
        make_engine(Graph((), (), {}), "reference")


def test_without_onnxruntime(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert make_engine(small_network()).name == "reference"
    with pytest.raises(EngineError, match=r"pip install edgeid\[onnxruntime\]"):
        make_engine(small_network(), "onnxruntime")


@needs_onnxruntime
def test_auto_takes_onnxruntime_where_it_is():
    assert make_engine(small_network()).name == "onnxruntime"


def test_threads(monkeypatch):
    monkeypatch.delenv("EDGEID_THREADS", raising=False)
    assert thread_count(None) == 1
    monkeypatch.setenv("EDGEID_THREADS", "3")
    assert thread_count(None) == 3
    assert thread_count(2) == 2
    for bad in (0, -1, True, 257, 10**12):
        with pytest.raises(EngineError, match="threads is"):
            thread_count(bad)
    for bad in ("0", "two", "-1", "1.5", "²", " 1"):
        monkeypatch.setenv("EDGEID_THREADS", bad)
        with pytest.raises(EngineError, match="EDGEID_THREADS is"):
            thread_count(None)
    monkeypatch.setenv("EDGEID_THREADS", "")
    assert thread_count(None) == 1


@needs_onnxruntime
def test_two_threads_answer_alike():
    x = np.ones((1, 1, 6, 6), np.float32)
    one, two = (make_engine(small_network(), "onnxruntime", n).run("face", x) for n in (1, 2))
    assert one == pytest.approx(two, abs=1e-6)


def test_the_onnx_bytes_are_a_valid_model():
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(graph_to_onnx(small_network(), "face"))
    onnx.checker.check_model(model, full_check=True)
    assert [
        d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim
    ] == [
        "N",
        1,
        6,
        6,
    ]
    assert model.opset_import[0].version == 18
    assert model.ir_version == 8
