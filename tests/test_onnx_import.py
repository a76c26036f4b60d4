"""ONNX -> graph: a real network, each rule on a tiny one, and refusals that name the node."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import (
    EdgeIDError,
    GraphError,
    MissingExtraError,
    ModelFormatError,
    UnsupportedOperatorError,
)

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from edgeid.converters.onnx_import.model import import_onnx  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("EDGEID_DATA", ROOT / "../shared/data"))
MOBILEFACENET = DATA.parent / "models" / "mobilefacenet.onnx"
RNG = np.random.default_rng(7)


def network(nodes, shape, opset=18, outputs=("y",), batch="N", **weights):
    """The bytes of an ONNX model; a node is (operator, inputs, outputs, attributes)."""
    made = [
        helper.make_node(op, ins.split(), outs.split(), name=f"n{i}", **attributes)
        for i, (op, ins, outs, attributes) in enumerate(nodes)
    ]
    tensors = [
        numpy_helper.from_array(
            np.asarray(v) if np.asarray(v).dtype == np.int64 else np.asarray(v, np.float32), k
        )
        for k, v in weights.items()
    ]
    graph = helper.make_graph(
        made,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        tensors,
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


def normal(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def agree(data, shape, *ops):
    """Import, compare both engines with onnxruntime on the original, and the operators left."""
    graph = import_onnx(data)
    x = RNG.standard_normal((3, *shape)).astype(np.float32)
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    expected = session.run(None, {session.get_inputs()[0].name: x})[0]
    for name in ("reference", "onnxruntime"):
        got = make_engine(graph, name).run("face", x)
        assert got == pytest.approx(expected, abs=1e-4, rel=1e-6)
    if ops:
        assert [layer.op for layer in graph.layers] == list(ops)
    return graph


@pytest.mark.skipif(not MOBILEFACENET.exists(), reason=f"{MOBILEFACENET} is not there")
def test_mobilefacenet_gives_the_embeddings_that_onnxruntime_gives():
    graph = import_onnx(MOBILEFACENET, "face")
    x = RNG.uniform(0, 255, (3, 3, 112, 112)).astype(np.float32)
    session = ort.InferenceSession(MOBILEFACENET, providers=["CPUExecutionProvider"])
    expected = session.run(["embedding"], {"image": x})[0]
    for name in ("reference", "onnxruntime"):
        got = make_engine(graph, name).run("face", x)
        assert np.abs(got - expected).max() < 1e-4
    counts = {op: sum(layer.op == op for layer in graph.layers) for op in ("Conv", "Affine")}
    assert counts == {"Conv": 49, "Affine": 1}  # 50 batch norms folded, the input scaling kept


BN = {"s": normal(4), "t": normal(4), "m": normal(4), "v": np.abs(normal(4)) + 0.1}


def test_batch_norm_is_folded_into_the_convolution_before_it():
    nodes = [
        ("Conv", "x w b", "c", {}),
        ("BatchNormalization", "c s t m v", "y", {"epsilon": 1e-3}),
    ]
    agree(network(nodes, (2, 5, 5), w=normal(4, 2, 3, 3), b=normal(4), **BN), (2, 5, 5), "Conv")


def test_batch_norm_is_folded_into_the_fully_connected_layer_before_it():
    nodes = [("MatMul", "x w", "c", {}), ("BatchNormalization", "c s t m v", "y", {})]
    agree(network(nodes, (6,), w=normal(6, 4), **BN), (6,), "Gemm")


def test_batch_norm_stays_where_another_node_reads_the_convolution():
    nodes = [
        ("Conv", "x w", "c", {}),
        ("BatchNormalization", "c s t m v", "n", {}),
        ("Add", "n c", "y", {}),
    ]
    data = network(nodes, (2, 5, 5), w=normal(4, 2, 3, 3), **BN)
    agree(data, (2, 5, 5), "Conv", "Affine", "Add")


def test_readers_behind_an_identity_or_a_reshape_that_does_nothing_count():
    for op, inputs in (("Identity", "c"), ("Reshape", "c same")):
        nodes = [
            ("Conv", "x w", "c", {}),
            (op, inputs, "i", {}),
            ("BatchNormalization", "i s t m v", "n", {}),
            ("Add", "n i", "y", {}),
        ]
        same = np.array([0, 4, 3, 3], np.int64)
        data = network(nodes, (2, 5, 5), w=normal(4, 2, 3, 3), same=same, **BN)
        agree(data, (2, 5, 5), "Conv", "Affine", "Add")


def test_a_convolution_that_is_itself_the_output_is_not_changed():
    nodes = [("Conv", "x w", "y", {}), ("BatchNormalization", "y s t m v", "z", {})]
    data = network(nodes, (2, 5, 5), outputs=("y", "z"), w=normal(4, 2, 3, 3), **BN)
    graph = import_onnx(data, output="y")
    assert [layer.op for layer in graph.layers] == ["Conv"]
    assert [layer.op for layer in import_onnx(data, output="z").layers] == ["Conv"]


def test_batch_norm_at_the_input_is_an_affine_layer():
    nodes = [("BatchNormalization", "x s t m v", "n", {}), ("Conv", "n w", "y", {"pads": [1] * 4})]
    agree(network(nodes, (4, 5, 5), w=normal(3, 4, 3, 3), **BN), (4, 5, 5), "Affine", "Conv")


def test_input_normalisation_is_one_affine_layer():
    nodes = [
        ("Sub", "x a", "p", {}),
        ("Mul", "p b", "q", {}),
        ("Div", "q c", "r", {}),
        ("Add", "r d", "y", {}),
    ]
    weights = {"a": [127.5], "b": 2.0, "c": normal(3, 1, 1), "d": normal(1, 3, 1, 1)}
    graph = agree(network(nodes, (3, 2, 2), **weights), (3, 2, 2), "Affine")
    assert graph.layers[0].inputs == ("x",)


@pytest.mark.parametrize("op", ["Sub", "Add", "Mul"])
def test_a_constant_on_the_left(op):
    agree(network([(op, "a x", "y", {})], (3, 2, 2), a=normal(3, 1, 1)), (3, 2, 2), "Affine")


def test_convolution_attributes():
    for attributes, shape in (
        ({"group": 2, "strides": [2, 1], "pads": [1, 0, 0, 2]}, (4, 2, 3, 3)),
        ({"group": 4}, (8, 1, 3, 3)),
        ({"auto_pad": "SAME_UPPER", "strides": [2, 2]}, (2, 4, 3, 3)),
        ({"auto_pad": "SAME_LOWER", "strides": [3, 2]}, (2, 4, 2, 3)),
        ({"auto_pad": "VALID"}, (2, 4, 3, 3)),
    ):
        agree(network([("Conv", "x w", "y", attributes)], (4, 8, 7), w=normal(*shape)), (4, 8, 7))


def test_activations():
    nodes = [
        ("PRelu", "x s", "a", {}),
        ("LeakyRelu", "a", "b", {"alpha": 0.3}),
        ("Clip", "b low high", "c", {}),
        ("Clip", "c low", "d", {}),
        ("Relu", "d", "y", {}),
    ]
    data = network(nodes, (3, 2, 2), s=normal(3, 1, 1), low=-0.5, high=6.0)
    agree(data, (3, 2, 2), "PRelu", "PRelu", "Clip", "Clip", "Relu")


def test_clip_with_attributes_as_before_opset_11():
    data = network([("Clip", "x", "y", {"min": 0.0, "max": 6.0})], (3,), opset=9)
    agree(data, (3,), "Clip")


def test_pooling():
    for op, attributes in (
        ("MaxPool", {"kernel_shape": [2, 3], "strides": [2, 2], "pads": [1, 1, 0, 1]}),
        ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2], "ceil_mode": 1}),
        ("AveragePool", {"kernel_shape": [2, 2], "count_include_pad": 1}),
        ("GlobalAveragePool", {}),
    ):
        agree(network([(op, "x", "y", attributes)], (3, 8, 6)), (3, 8, 6), op)


@pytest.mark.parametrize("keep", [0, 1])
def test_mean_over_the_image(keep):
    as_attribute = network(
        [("ReduceMean", "x", "y", {"axes": [2, 3], "keepdims": keep})], (3, 4, 5), 13
    )
    as_input = network(
        [("ReduceMean", "x a", "y", {"keepdims": keep})], (3, 4, 5), 18, a=np.array([-1, -2])
    )
    for data in (as_attribute, as_input):
        agree(data, (3, 4, 5), "GlobalAveragePool", *(["Flatten"] if not keep else []))


@pytest.mark.parametrize(
    ("op", "attributes", "weight", "bias"),
    [
        ("Gemm", {"transB": 1}, (4, 12), (4,)),
        ("Gemm", {"alpha": 0.5, "beta": 2.0}, (12, 4), (1, 4)),
        ("Gemm", {}, (12, 4), (1,)),
    ],
)
def test_fully_connected(op, attributes, weight, bias):
    nodes = [("Flatten", "x", "f", {}), (op, "f w b", "y", attributes)]
    data = network(nodes, (3, 2, 2), w=normal(*weight), b=normal(*bias))
    agree(data, (3, 2, 2), "Flatten", "Gemm")


def test_matmul_with_a_bias_added():
    nodes = [("MatMul", "x w", "m", {}), ("Add", "m b", "y", {})]
    agree(network(nodes, (6,), w=normal(6, 4), b=normal(4)), (6,), "Gemm")


@pytest.mark.parametrize("target", [[-1, 12], [0, -1], [0, 12], [-1, 3, 4], [0, 0, 4], [0, 3, -1]])
def test_reshape(target):
    data = network([("Reshape", "x t", "y", {})], (3, 2, 2), t=np.array(target, np.int64))
    agree(data, (3, 2, 2), "Flatten" if len(target) == 2 else "Reshape")


def test_reshape_to_a_shape_that_is_worked_out():
    nodes = [
        ("Shape", "x", "s", {}),
        ("Gather", "s zero", "n", {}),
        ("Unsqueeze", "n axes", "n1", {}),
        ("Concat", "n1 rest", "t", {"axis": 0}),
        ("Reshape", "x t", "y", {}),
    ]
    weights = {"zero": np.array(0), "axes": np.array([0]), "rest": np.array([12])}
    agree(network(nodes, (3, 2, 2), **weights), (3, 2, 2), "Flatten")


def test_a_batch_fixed_to_one_is_set_free():
    data = network([("Reshape", "x t", "y", {})], (3, 2, 2), batch=1, t=np.array([1, 12], np.int64))
    got = make_engine(import_onnx(data)).run("face", np.ones((5, 3, 2, 2), np.float32))
    assert got.shape == (5, 12)


def test_squeeze_identity_dropout_and_constant():
    constant = {"value": numpy_helper.from_array(np.array(2.0, np.float32))}
    nodes = [
        ("GlobalAveragePool", "x", "g", {}),
        ("Identity", "g", "i", {}),
        ("Dropout", "i", "d", {}),
        ("Squeeze", "d axes", "s", {}),
        ("Constant", "", "two", constant),
        ("Mul", "s two", "y", {}),
    ]
    data = network(nodes, (3, 2, 2), axes=np.array([2, 3]))
    agree(data, (3, 2, 2), "GlobalAveragePool", "Flatten", "Affine")


def test_concat_and_products():
    nodes = [
        ("Relu", "x", "r", {}),
        ("Mul", "x r", "m", {}),
        ("Concat", "x m", "c", {"axis": -3}),
        ("Flatten", "c", "y", {}),
    ]
    agree(network(nodes, (3, 2, 2)), (3, 2, 2), "Relu", "Mul", "Concat", "Flatten")


L2 = {"eps": 1e-6, "axis": np.array([1])}


@pytest.mark.parametrize(
    ("nodes", "weights"),
    [
        ([("LpNormalization", "x", "y", {"axis": 1, "p": 2})], {}),
        ([("LpNormalization", "x", "y", {})], {}),
        ([("ReduceL2", "x axis", "n", {}), ("Div", "x n", "y", {})], L2),
        (
            [("ReduceL2", "x axis", "n", {}), ("Clip", "n eps", "c", {}), ("Div", "x c", "y", {})],
            L2,
        ),
        (
            [
                ("ReduceL2", "x axis", "n", {}),
                ("Max", "eps n", "c", {}),
                ("Shape", "x", "s", {}),
                ("Expand", "c s", "e", {}),
                ("Div", "x e", "y", {}),
            ],
            L2,
        ),
    ],
)
def test_the_ways_to_write_a_normalisation(nodes, weights):
    used = {k: v for k, v in weights.items() if any(k in n[1].split() for n in nodes)}
    agree(network(nodes, (5,), **used), (5,), "L2Normalize")


def test_nodes_that_the_output_does_not_need_are_left_out():
    nodes = [("Relu", "x", "y", {}), ("Add", "x x", "other", {})]
    assert len(import_onnx(network(nodes, (3,))).layers) == 1


def test_node_names_that_are_missing_or_double():
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    for name in ("", "same", "l" * 500):
        for node in nodes:
            node.name = name
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            nodes,
            "test",
            [value("x", TensorProto.FLOAT, ["N", 3])],
            [value("y", TensorProto.FLOAT, None)],
        )
        opsets = [helper.make_opsetid("", 18)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        names = [layer.name for layer in import_onnx(model.SerializeToString()).layers]
        assert names == ["Relu_0", "Relu_1"]


SQUARE = {"kernel_shape": [2, 2]}


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([("Softmax", "x", "y", {})], "'n0'.*'Softmax'.*supported: Add, AveragePool"),
        ([("Conv", "x w", "y", {"dilations": [2, 2]})], r"'n0' \(Conv\): dilations"),
        ([("Conv", "x x", "y", {})], "must be a constant"),
        ([("Sub", "x x", "y", {})], "Add and Mul are"),
        ([("Div", "one x", "y", {})], "constant by an activation"),
        ([("Div", "x zero", "y", {})], "by zero"),
        ([("Add", "x wide", "y", {})], "one a channel"),
        ([("Add", "x rank5", "y", {})], "one a channel"),
        ([("Flatten", "x", "y", {"axis": 2})], "axis 2"),
        ([("Reshape", "x two", "y", {})], "batch"),
        ([("Reshape", "x mixed", "y", {})], "batch would change"),
        ([("Concat", "x x", "y", {"axis": 2})], "axis 2"),
        ([("ReduceMean", "x", "y", {})], "height and width"),
        ([("ReduceL2", "x", "n", {}), ("Relu", "n", "y", {})], r"ReduceL2\): axes"),
        ([("MaxPool", "x", "y i", {"kernel_shape": [2, 2]})], "2 outputs"),
        (
            [("MaxPool", "x", "y", {"kernel_shape": [2, 2], "ceil_mode": 1, "strides": [3, 3]})],
            "ceil",
        ),
        (
            [
                (
                    "AveragePool",
                    "x",
                    "y",
                    {"kernel_shape": [2, 2], "pads": [1] * 4, "count_include_pad": 1},
                )
            ],
            "count_include_pad",
        ),
        ([("Transpose", "x", "y", {})], "on constants only"),
        ([("Max", "x one", "y", {})], "length of a vector"),
        ([("LpNormalization", "x", "y", {"p": 1, "axis": 1})], "p 1"),
        ([("Gemm", "x wg", "y", {"transA": 1})], "transA"),
    ],
)
def test_what_a_graph_cannot_keep_is_refused_by_name(nodes, says):
    weights = {
        "w": normal(4, 3, 2, 2),
        "wg": normal(4, 4),
        "one": 1.0,
        "zero": 0.0,
        "wide": normal(4),
        "rank5": normal(1, 1, 3, 1, 1),
        "two": np.array([2, -1]),
        "mixed": np.array([-1, 6]),
    }
    used = {k: v for k, v in weights.items() if any(k in n[1].split() for n in nodes)}
    with pytest.raises(UnsupportedOperatorError, match=says):
        import_onnx(network(nodes, (3, 4, 4), **used))


def test_a_batch_norm_in_training_mode_is_refused():
    nodes = [("BatchNormalization", "x s t m v", "y a b", {"training_mode": 1})]
    with pytest.raises(UnsupportedOperatorError, match="eval mode"):
        import_onnx(network(nodes, (4, 2, 2), **BN))


def test_a_batch_norm_of_negative_variance_is_refused():
    nodes = [("BatchNormalization", "x s t m v", "y", {})]
    with pytest.raises(GraphError, match="variance"):
        import_onnx(network(nodes, (4, 2, 2), **BN | {"v": np.array([-1.0, 1, 1, 1])}))


def test_weights_that_are_not_finite_are_refused():
    for bad in (np.nan, np.inf):
        with pytest.raises(GraphError, match=r"'n0\.weight'.*NaN"):
            import_onnx(network([("MatMul", "x w", "y", {})], (2,), w=np.array([[bad], [1]])))


def test_shapes_that_do_not_fit_name_the_node():
    with pytest.raises(GraphError, match="n0"):
        import_onnx(network([("MatMul", "x w", "y", {})], (3,), w=normal(2, 2)))


def test_models_of_another_form():
    relu = [("Relu", "x", "y", {})]
    with pytest.raises(GraphError, match="fixed sizes"):
        import_onnx(network(relu, ("H", 3)))
    with pytest.raises(GraphError, match="asked for None"):
        import_onnx(
            network([("Relu", "x", "y", {}), ("Relu", "x", "z", {})], (3,), outputs=("y", "z"))
        )
    with pytest.raises(GraphError, match="asked for 'q'"):
        import_onnx(network(relu, (3,)), output="q")
    with pytest.raises(GraphError, match="opset 8"):
        import_onnx(network(relu, (3,), opset=8))


def test_operators_of_another_domain():
    node = helper.make_node("Relu", ["x"], ["y"], name="n", domain="com.example")
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "t", [value("x", TensorProto.FLOAT, [1, 3])], [value("y", TensorProto.FLOAT, None)]
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.example", 1)]
    data = helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()
    with pytest.raises(UnsupportedOperatorError, match=r"'com\.example'"):
        import_onnx(data)


def test_weights_in_other_files_are_refused():
    model = onnx.load_model_from_string(network([("MatMul", "x w", "y", {})], (2,), w=normal(2, 2)))
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "../../secret"
    with pytest.raises(ModelFormatError, match="'w' is in another file"):
        import_onnx(model.SerializeToString())


@pytest.mark.parametrize("data", [b"", b"hello", bytes(100), b"\xff" * 50])
def test_bytes_that_are_no_model(data):
    with pytest.raises((ModelFormatError, GraphError)):
        import_onnx(data)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(ModelFormatError, match=r"none\.onnx: cannot be read"):
        import_onnx(tmp_path / "none.onnx")


def test_without_the_onnx_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install edgeid\[convert\]"):
        import_onnx(b"")


def test_sizes_that_double_are_stopped_before_they_are_allocated():
    nodes = [("Concat", f"v{i} v{i}", f"v{i + 1}", {"axis": 1}) for i in range(60)]
    nodes = [("Relu", "x", "v0", {}), *nodes, ("LeakyRelu", "v60", "y", {})]
    with pytest.raises(GraphError, match="limit"):
        import_onnx(network(nodes, (4,)))
    nodes = [("Concat", f"v{i} v{i}", f"v{i + 1}", {"axis": 0}) for i in range(60)]
    nodes = [*nodes, ("PRelu", "x v60", "y", {})]
    with pytest.raises(GraphError, match="too large"):
        import_onnx(network(nodes, (4,), v0=normal(4)))
    with pytest.raises(GraphError, match="too large"):
        import_onnx(network([("LeakyRelu", "x", "y", {})], (1 << 40,)))


def test_fuzz_only_ever_raises_errors_of_ours():
    nodes = [
        ("Conv", "x w", "c", {"strides": [2, 2], "pads": [1] * 4}),
        ("BatchNormalization", "c s t m v", "n", {}),
        ("Clip", "n low", "r", {}),
        ("Reshape", "r target", "y", {}),
    ]
    weights = {"w": normal(4, 2, 3, 3), "low": 0.0, "target": np.array([0, -1]), **BN}
    data = network(nodes, (2, 5, 5), **weights)
    rng = np.random.default_rng(11)
    for _ in range(400):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), rng.integers(1, 4)):
            damaged[position] = rng.integers(256)
        with contextlib.suppress(EdgeIDError):
            import_onnx(bytes(damaged))
