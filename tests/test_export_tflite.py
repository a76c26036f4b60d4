"""TFLite files: what LiteRT makes of them, with its fast kernels and with its plain ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

pytest.importorskip("ai_edge_litert")
pytest.importorskip("torch")

from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter, OpResolverType

from edgeid.converters.export.tflite_layers import tflite_bytes
from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import GraphError
from edgeid.runtime.format import read_model
from edgeid.runtime.golden import golden_input
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
    Layer,
    MaxPool,
    Mul,
    PRelu,
    Relu,
    Reshape,
)
from edgeid.runtime.model import default_model
from edgeid.runtime.tflite_model import TFLiteModel
from edgeid.runtime.tflite_windows import Window

from .networks import residual_graph
from .test_engines import networks as random_networks

PLAIN = OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
RNG = np.random.default_rng(11)


def interpreter(data, resolver=OpResolverType.AUTO):
    return Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=resolver)


def run(data, x, resolver=OpResolverType.AUTO):
    """Output of a whole batch at once."""
    running = interpreter(data, resolver)
    (source,), (sink,) = running.get_input_details(), running.get_output_details()
    running.resize_tensor_input(source["index"], x.shape)
    running.allocate_tensors()
    running.set_tensor(source["index"], x)
    running.invoke()
    return running.get_tensor(sink["index"])


def operators(data):
    """Kinds of the operators, in order."""
    model = schema.ModelT.InitFromPackedBuf(bytearray(data))
    names = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    codes = [names[code.builtinCode] for code in model.operatorCodes]
    return [codes[op.opcodeIndex] for op in model.subgraphs[0].operators]


def graph_of(shape, *layers, **tensors):
    """Layers in a row, ``x`` to ``y``."""
    stored = {name: encode_float32(np.asarray(v, np.float32)) for name, v in tensors.items()}
    graph = Graph((Entry("face", "x", shape, "y"),), layers, stored)
    graph.validate()
    return graph


def assert_exact(graph, count=2, seed=0):
    """Both kinds of kernels answer as the reference does, to 1e-5; the file."""
    shape = graph.entries[0].shape
    x = np.random.default_rng(seed).standard_normal((count, *shape)).astype(np.float32)
    expected = make_engine(graph, "reference").run("face", x)
    data = tflite_bytes(graph, "face")
    for resolver in (OpResolverType.AUTO, PLAIN):
        got = run(data, x, resolver)
        assert got.shape == expected.shape
        assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()
    return data


# networks


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_networks())
def test_litert_answers_as_the_reference_does(case):
    graph, x = case
    expected = make_engine(graph, "reference").run("face", x)
    data = tflite_bytes(graph, "face")
    for resolver in (OpResolverType.AUTO, PLAIN):
        assert run(data, x, resolver) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("entry", ["face", "voice", "landmarks"])
def test_the_default_model(entry):
    graph = read_model(default_model()).graph
    x = golden_input(5, graph.entry(entry).shape)
    expected = make_engine(graph, "reference").run(entry, x)
    got = run(tflite_bytes(graph, entry), x)
    assert np.abs(got - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_residual_network():
    kinds = operators(assert_exact(residual_graph(1)))
    assert "ADD" in kinds
    assert "PRELU" in kinds
    assert kinds.count("PAD") == 4  # only the strided layers have padding that no rule gives


# single layers

KERNELS = [
    ((3, 3), (1, 1), (1, 1, 1, 1), "SAME"),
    ((3, 3), (2, 2), (1, 1, 1, 1), "explicit"),  # the even size needs one row, SAME puts it last
    ((2, 3), (2, 1), (0, 1, 0, 1), "SAME"),
    ((3, 3), (2, 2), (0, 0, 1, 1), "SAME"),
    ((3, 2), (1, 2), (0, 0, 0, 0), "VALID"),
    ((3, 3), (1, 1), (2, 0, 1, 2), "explicit"),
    ((8, 6), (1, 1), (0, 0, 0, 0), "VALID"),
]


@pytest.mark.parametrize(("kernel", "stride", "pad", "rule"), KERNELS)
@pytest.mark.parametrize(("groups", "outputs"), [(1, 5), (2, 6), (4, 4), (4, 12)])
def test_convolutions(kernel, stride, pad, rule, groups, outputs):
    weight = RNG.standard_normal((outputs, 4 // groups, *kernel))
    layer = Conv("c", ("x",), "y", "w", "b", stride, pad, groups)
    graph = graph_of((4, 8, 6), layer, w=weight, b=RNG.standard_normal(outputs))
    kinds = operators(assert_exact(graph))
    assert kinds.count("PAD") == (rule == "explicit")
    assert ("DEPTHWISE_CONV_2D" in kinds) == (groups == 4)


@pytest.mark.parametrize(("kernel", "stride", "pad", "rule"), KERNELS)
@pytest.mark.parametrize("kind", [MaxPool, AveragePool])
def test_pooling(kind, kernel, stride, pad, rule):
    layer = kind("p", ("x",), "y", kernel, stride, pad)
    kinds = operators(assert_exact(graph_of((3, 8, 6), layer)))
    extra = {"GATHER", "PAD"} & set(kinds)
    assert bool(extra) == (rule == "explicit")


def test_maxima_of_negative_values_ignore_the_padding():
    layer = MaxPool("p", ("x",), "y", (3, 3), (2, 2), (2, 2, 2, 2))
    data = tflite_bytes(graph_of((1, 4, 4), layer), "face")
    x = -np.arange(1, 17, dtype=np.float32).reshape(1, 1, 4, 4)
    # windows of rows -2..0, 0..2, 2..4; the same across
    expected = [[-1, -1, -3], [-1, -1, -3], [-9, -9, -11]]
    assert run(data, x)[0, 0].tolist() == expected


@pytest.mark.parametrize(
    ("shape", "layer"),
    [
        ((3, 4, 5), Relu("l", ("x",), "y")),
        ((3, 4, 5), Clip("l", ("x",), "y", 0, 6)),
        ((3, 4, 5), Clip("l", ("x",), "y", -1, 1)),
        ((3, 4, 5), Clip("l", ("x",), "y", 0, 1)),
        ((3, 4, 5), Clip("l", ("x",), "y", -0.5, 0.25)),
        ((3, 4, 5), Add("l", ("x", "x"), "y")),
        ((3, 4, 5), Mul("l", ("x", "x"), "y")),
        ((3, 4, 5), Concat("l", ("x", "x"), "y")),
        ((7,), Concat("l", ("x", "x"), "y")),
        ((3, 4), Concat("l", ("x", "x"), "y")),
        ((3, 4, 5), GlobalAveragePool("l", ("x",), "y")),
        ((3, 4, 5), Flatten("l", ("x",), "y")),
        ((3, 1, 1), Flatten("l", ("x",), "y")),
        ((1, 4, 5), Flatten("l", ("x",), "y")),
        ((24,), Reshape("l", ("x",), "y", (2, 3, 4))),
        ((2, 3, 4), Reshape("l", ("x",), "y", (4, 3, 2))),
        ((2, 3, 4), Reshape("l", ("x",), "y", (6, -1))),
        ((6, 4), Reshape("l", ("x",), "y", (24, 1, 1))),
        ((6, 4), Reshape("l", ("x",), "y", (1, 4, 6))),
        ((2, 3, 2, 2), Reshape("l", ("x",), "y", (-1,))),
        ((5,), L2Normalize("l", ("x",), "y")),
        ((3, 4, 5), L2Normalize("l", ("x",), "y")),
        ((3, 4, 5), PRelu("l", ("x",), "y", "three")),
        ((3,), PRelu("l", ("x",), "y", "three")),
        ((3, 4), PRelu("l", ("x",), "y", "three")),
        ((3, 4, 5), Affine("l", ("x",), "y", "three", "others")),
        ((3, 4), Affine("l", ("x",), "y", "three", "others")),
        ((3,), Affine("l", ("x",), "y", "three", "others")),
    ],
)
def test_other_layers(shape, layer):
    tensors = {"three": [0.25, -1.5, 2], "others": [1, -2, 0.5]}
    used = {name: tensors[name] for name in layer.tensor_names()}
    assert_exact(graph_of(shape, layer, **used))


def test_an_affine_disappears_in_the_layer_before_it():
    layers = (
        Conv("c", ("x",), "1", "w"),
        Affine("a", ("1",), "2", "s", "t"),
        Flatten("f", ("2",), "3"),
        Gemm("g", ("3",), "4", "v"),
        Affine("b", ("4",), "y", "s", "t"),
    )
    tensors = {
        "w": RNG.standard_normal((3, 2, 1, 1)),
        "v": RNG.standard_normal((3, 12)),
        "s": [2, -1, 0.5],
        "t": [1, 2, 3],
    }
    kinds = operators(assert_exact(graph_of((2, 2, 2), *layers, **tensors)))
    assert kinds == ["TRANSPOSE", "CONV_2D", "TRANSPOSE", "RESHAPE", "FULLY_CONNECTED"]


def relu_graph(after, *more):
    layers = (Conv("c", ("x",), "1", "w", None, (1, 1), (1, 1, 1, 1)), after, *more)
    return graph_of((2, 4, 4), *layers, w=RNG.standard_normal((3, 2, 3, 3)))


@pytest.mark.parametrize(
    ("after", "function"),
    [
        (Relu("r", ("1",), "y"), 1),
        (Clip("r", ("1",), "y", -1, 1), 2),
        (Clip("r", ("1",), "y", 0, 6), 3),
    ],
)
def test_a_function_that_the_operator_before_includes(after, function):
    data = assert_exact(relu_graph(after))
    assert operators(data) == ["TRANSPOSE", "CONV_2D", "TRANSPOSE"]
    model = schema.ModelT.InitFromPackedBuf(bytearray(data))
    assert model.subgraphs[0].operators[1].builtinOptions.fusedActivationFunction == function


def test_functions_inside_sums_depthwise_and_fully_connected_layers():
    layers = (
        Conv("c", ("x",), "1", "w", None, (1, 1), (0, 0, 0, 0), 2),
        Relu("r", ("1",), "2"),
        Add("a", ("2", "x"), "3"),
        Relu("s", ("3",), "4"),
        Flatten("f", ("4",), "5"),
        Gemm("g", ("5",), "6", "v"),
        Relu("t", ("6",), "y"),
    )
    weights = {"w": RNG.standard_normal((2, 1, 1, 1)), "v": RNG.standard_normal((3, 8))}
    kinds = operators(assert_exact(graph_of((2, 2, 2), *layers, **weights)))
    assert "RELU" not in kinds
    assert {"DEPTHWISE_CONV_2D", "ADD", "FULLY_CONNECTED"} <= {*kinds}


def test_functions_that_stay_operators():
    # the convolution's own output is read twice; and it is the output of the network
    twice = Relu("r", ("1",), "2"), Add("a", ("1", "2"), "y")
    assert operators(assert_exact(relu_graph(*twice))).count("RELU") == 1
    graph = relu_graph(Relu("r", ("1",), "y"))
    branched = Graph((Entry("face", "x", (2, 4, 4), "1"),), graph.layers[:1], graph.tensors)
    assert operators(assert_exact(branched)) == ["TRANSPOSE", "CONV_2D", "TRANSPOSE"]


# windows, by hand


def test_padding_rules():
    # 112 rows, windows of 3 every 2: 56 of them; from row -1 on they end at row 111
    strided = Window(112, 3, 2, 1, 56)
    assert (strided.after, strided.is_valid, strided.is_same) == (0, False, False)
    # the rule SAME begins at row 0 and pads one behind
    assert Window(112, 3, 2, 0, 56).is_same
    assert Window(112, 3, 2, 0, 56).after == 1
    assert Window(5, 3, 1, 1, 5).is_same
    assert Window(5, 3, 1, 0, 3).is_valid
    assert Window(7, 3, 3, 0, 2).is_valid  # the last row is not read
    # one position less than SAME has
    assert not Window(7, 2, 2, 0, 3).is_same


def test_what_windows_see():
    window = Window(4, 3, 2, 2, 3)  # rows -2..0, 0..2, 2..4
    assert window.inside().tolist() == [1, 3, 2]
    assert window.after == 1
    assert window.repeated().tolist() == [0, 0, 0, 1, 2, 3, 3]


# the file


def test_constants_are_aligned_and_stored_once():
    weight = RNG.standard_normal((4, 4, 1, 1))
    layers = (
        Conv("c", ("x",), "1", "w", "b"),
        Relu("r", ("1",), "2"),
        Conv("d", ("2",), "y", "v", "b"),
    )
    graph = graph_of((4, 3, 3), *layers, w=weight, v=weight, b=[1, 2, 3, 4])
    data = np.frombuffer(tflite_bytes(graph, "face"), np.uint8)
    model = schema.Model.GetRootAs(data)
    sizes = []
    for index in range(model.BuffersLength()):
        if model.Buffers(index).DataLength():
            part = model.Buffers(index).DataAsNumpy()
            sizes.append(part.nbytes)
            assert (part.ctypes.data - data.ctypes.data) % 16 == 0
    assert sorted(sizes) == [16, 16, 16, 64]  # bias, the axes of two transpositions, weight
    assert data[4:8].tobytes() == b"TFL3"


def test_names_signature_and_description():
    graph = residual_graph(2)
    data = tflite_bytes(graph, "face", "terms: research")
    model = schema.ModelT.InitFromPackedBuf(bytearray(data))
    assert model.description == b"terms: research"
    running = interpreter(data)
    assert running.get_signature_list() == {
        "serving_default": {"inputs": ["face_input"], "outputs": ["face_output"]}
    }
    x = golden_input(1, (1, 32, 32))
    got = running.get_signature_runner()(face_input=x)["face_output"]
    assert np.array_equal(got, run(data, x))
    names = [tensor.name for tensor in model.subgraphs[0].tensors]
    assert len(set(names)) == len(names)
    assert data == tflite_bytes(graph, "face", "terms: research")


def test_a_name_that_is_taken_gets_a_number():
    model = TFLiteModel()
    places = [model.activation("a", (1, 2)), model.activation("a", (1, 2))]
    places.append(model.constant("a", np.zeros(2, np.float32)))
    assert places == [0, 1, 2]
    assert model.constant("b", np.zeros(2, np.float32)) == 2
    found = schema.ModelT.InitFromPackedBuf(bytearray(model.to_bytes({"x": 0}, {"y": 1}, "")))
    assert [t.name for t in found.subgraphs[0].tensors] == [b"a", b"a:2", b"a:3"]


# what cannot be written


@dataclass(frozen=True)
class Swirl(Layer):
    """A layer of the future."""

    op: ClassVar[str] = "Swirl"

    def output_shape(self, inputs, _tensors):
        return inputs[0]


@pytest.mark.parametrize(
    ("shape", "layer", "message"),
    [
        ((5,), Swirl("l", ("x",), "y"), r"layer 'l' \(Swirl\): the TFLite export does not know"),
        ((5,), L2Normalize("l", ("x",), "y", 1e-3), r"layer 'l' \(L2Normalize\): eps 0.001"),
        ((5, 2), L2Normalize("l", ("x",), "y"), r"layer 'l' .* vectors and feature maps only"),
    ],
)
def test_layers_that_tflite_cannot_express(shape, layer, message):
    with pytest.raises(GraphError, match=message):
        tflite_bytes(graph_of(shape, layer), "face")


def test_an_unknown_entry():
    with pytest.raises(GraphError, match="no entry 'nose'"):
        tflite_bytes(residual_graph(1), "nose")
