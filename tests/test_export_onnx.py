"""ONNX files: what onnxruntime makes of them, with decoded weights and with weights as stored."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

onnx = pytest.importorskip("onnx")
ort = pytest.importorskip("onnxruntime")

from edgeid.converters.export.entry_graph import single_entry  # noqa: E402
from edgeid.converters.export.onnx_model import onnx_bytes  # noqa: E402
from edgeid.runtime.codebook import (  # noqa: E402
    index_shape,
    make_codebook,
    quantise_codewords,
    sub_spaces,
)
from edgeid.runtime.encoding import (  # noqa: E402
    encode_float16,
    encode_float32,
    encode_int8,
)
from edgeid.runtime.engine import make_engine  # noqa: E402
from edgeid.runtime.errors import GraphError  # noqa: E402
from edgeid.runtime.format import read_model  # noqa: E402
from edgeid.runtime.golden import golden_input  # noqa: E402
from edgeid.runtime.graph import Conv, Entry, Gemm, Graph, Relu, merge_graphs  # noqa: E402
from edgeid.runtime.indexed import make_indexed  # noqa: E402
from edgeid.runtime.model import default_model  # noqa: E402

from .networks import inputs, residual_graph  # noqa: E402
from .test_engines import networks as random_networks  # noqa: E402

RNG = np.random.default_rng(7)


def checked(data):
    """The model, after ONNX's checker has had a look at it."""
    model = onnx.load_model_from_string(data)
    onnx.checker.check_model(model, full_check=True)
    return model


def session(data, **files):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    for key, value in files.items():
        setattr(options, key, value)
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def run(data, **feeds):
    """Outputs by entry; entries that are not fed get an empty batch."""
    checked(data)
    running = session(data)
    feed = {i.name: np.zeros((0, *i.shape[1:]), np.float32) for i in running.get_inputs()}
    feed |= {f"{name}_input": x for name, x in feeds.items()}
    wanted = [f"{name}_output" for name in feeds]
    return dict(zip(feeds, running.run(wanted, feed), strict=True))


def relative(got, expected):
    return np.abs(got - expected).max() / np.abs(expected).max()


def one_conv(weight, channels):
    """A convolution alone, whose weight is stored as given."""
    layer = Conv("c", ("x",), "y", "w", None, (1, 1), (1, 1, 1, 1))
    graph = Graph((Entry("face", "x", (channels, 5, 4), "y"),), (layer,), {"w": weight})
    graph.validate()
    return graph


def one_gemm(weight):
    graph = Graph(
        (Entry("face", "x", (weight.shape[1],), "y"),),
        (Gemm("g", ("x",), "y", "w"),),
        {"w": weight},
    )
    graph.validate()
    return graph


def random_codebook(shape, k, r, kind="int8", spaces=None, seed=0):
    rng = np.random.default_rng(seed)
    codewords = rng.standard_normal((spaces or sub_spaces(shape, r), k, r)).astype(np.float32)
    indices = rng.integers(0, k, index_shape(shape, r))
    if kind == "int8":
        values, scale = quantise_codewords(codewords)
        return make_codebook(values, indices, shape, scale)
    return make_codebook(codewords.astype(kind), indices, shape)


def assert_kept_as_decoded(graph):
    """Both files compute the same, to the last bit: the decoded weights are the same."""
    entry = graph.entries[0]
    x = RNG.standard_normal((2, *entry.shape)).astype(np.float32)
    answers = [
        run(onnx_bytes(graph, ["face"], decoded=decoded), face=x)["face"]
        for decoded in (True, False)
    ]
    assert np.array_equal(*answers)
    expected = make_engine(graph, "reference").run("face", x)
    assert relative(answers[1], expected) < 1e-5


# every layer


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(random_networks())
def test_onnxruntime_answers_as_the_reference_does(case):
    graph, x = case
    expected = make_engine(graph, "reference").run("face", x)
    for decoded in (True, False):
        got = run(onnx_bytes(graph, ["face"], decoded=decoded), face=x)["face"]
        assert got == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("entry", ["face", "voice", "landmarks"])
def test_the_default_model(entry):
    file = default_model()
    graph = read_model(file).graph
    x = golden_input(5, graph.entry(entry).shape)
    expected = make_engine(single_entry(graph, entry), "reference").run(entry, x)
    decoded = onnx_bytes(graph, [entry])
    kept = onnx_bytes(graph, [entry], decoded=False)
    assert relative(run(decoded, **{entry: x})[entry], expected) < 1e-5
    assert relative(run(kept, **{entry: x})[entry], expected) < 1e-5
    weights = [
        graph.tensors[layer.weight]
        for layer in graph.layers_of(entry)
        if isinstance(layer, Conv | Gemm)
    ]
    assert len(decoded) > 4 * sum(math.prod(weight.shape) for weight in weights)
    stored = sum(weight.nbytes for weight in weights)
    assert stored < len(kept) < 1.1 * stored + 80_000  # and the nodes that decode them


# what a file says


def test_names_batch_and_notes():
    graph = merge_graphs(face=residual_graph(1), voice=residual_graph(2))
    model = checked(onnx_bytes(graph, ["voice"], notes={"terms": "research"}))
    (source,), (sink,) = model.graph.input, model.graph.output
    assert (source.name, sink.name) == ("voice_input", "voice_output")
    sizes = source.type.tensor_type.shape.dim
    assert sizes[0].dim_param == "N"
    assert [size.dim_value for size in sizes[1:]] == [1, 32, 32]
    assert {p.key: p.value for p in model.metadata_props} == {"terms": "research"}
    assert not any("face" in constant.name for constant in model.graph.initializer)


def test_a_layer_that_has_the_name_of_the_input():
    layers = (Relu("a", ("x",), "face_input"), Relu("b", ("face_input",), "face_output"))
    layers += (Relu("c", ("face_output",), "y"),)
    graph = Graph((Entry("face", "x", (3,), "y"),), layers, {})
    x = np.array([[-1, 0, 2]], np.float32)
    assert run(onnx_bytes(graph, ["face"]), face=x)["face"].tolist() == [[0, 0, 2]]


def test_equal_graphs_give_equal_bytes():
    graph = one_conv(random_codebook((8, 10, 3, 3), 32, 4), 10)
    assert onnx_bytes(graph, ["face"], decoded=False) == onnx_bytes(graph, ["face"], decoded=False)


def test_an_unknown_entry():
    with pytest.raises(GraphError, match=r"no entry 'nose'; the graph has \['face'\]"):
        onnx_bytes(residual_graph(1), ["nose"])


# weights as they are stored


@pytest.mark.parametrize("k", [16, 32, 64, 256])
@pytest.mark.parametrize("r", [2, 4, 8])
def test_codebooks(k, r):
    shape = (9, 10, 3, 3)  # r = 4 and 8 reach beyond the 10 channels
    kind = {2: "int8", 4: "float16", 8: "float32"}[r]
    assert_kept_as_decoded(one_conv(random_codebook(shape, k, r, kind), 10))
    assert_kept_as_decoded(one_gemm(random_codebook((21, 13), k, r)))


@pytest.mark.parametrize("bits", range(1, 15))
def test_dictionaries_of_every_width(bits):
    size = max(2, (1 << bits) - 1)
    dictionary = RNG.standard_normal(size).astype(np.float16 if bits % 2 else np.float32)
    indices = RNG.integers(0, size, (7, 5, 3, 3))
    indices.flat[:2] = 0, size - 1
    assert_kept_as_decoded(one_conv(make_indexed(dictionary, indices), 5))


@pytest.mark.parametrize("encode", [encode_float16, encode_int8, encode_float32])
def test_other_encodings(encode):
    assert_kept_as_decoded(one_conv(encode(RNG.standard_normal((7, 5, 3, 3))), 5))
    assert_kept_as_decoded(one_gemm(encode(RNG.standard_normal((33, 9)))))


def test_a_vector_of_channels_in_float16():
    graph = residual_graph(3, (256, 4, 4, 4), (0, 0, 0, 0), size=16)
    slope = graph.tensors["layer01.slope"].decode()
    graph.tensors["layer01.slope"] = encode_float16(slope)
    x = inputs(2, 16)
    expected = make_engine(graph, "reference").run("face", x)
    assert (
        relative(run(onnx_bytes(graph, ["face"], decoded=False), face=x)["face"], expected) < 1e-5
    )


def test_the_file_stays_small():
    shape = (128, 128, 3, 3)
    graph = one_conv(random_codebook(shape, 16, 8), 128)
    indices, codewords, scales = 128 * 16 * 9 // 2, 16 * 16 * 8, 16 * 4
    assert len(onnx_bytes(graph, ["face"])) > 4 * 128 * 128 * 9
    assert len(onnx_bytes(graph, ["face"], decoded=False)) < indices + codewords + scales + 2500


def test_decoding_is_done_when_the_model_is_loaded(tmp_path):
    weights = {
        "w": random_codebook((8, 10, 3, 3), 32, 4),
        "v": encode_int8(RNG.standard_normal((6, 8, 3, 3))),
        "u": make_indexed(
            RNG.standard_normal(100).astype(np.float32), RNG.integers(0, 100, (7, 6, 3, 3))
        ),
        "t": encode_float16(RNG.standard_normal((50, 7, 1, 1))),
    }
    names = ["x", *weights]
    layers = tuple(Conv(f"conv {new}", (old,), new, new) for old, new in pairwise(names))
    graph = Graph((Entry("face", "x", (10, 7, 7), "t"),), layers, weights)
    graph.validate()
    optimised = tmp_path / "optimised.onnx"
    session(
        onnx_bytes(graph, ["face"], decoded=False),
        optimized_model_filepath=str(optimised),
        graph_optimization_level=ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    )
    assert [node.op_type for node in onnx.load(optimised).graph.node] == ["Conv"] * 4


# several entries


def shared_pair():
    """Face and voice with one codebook; the face needs more sub-spaces than the voice."""
    shapes = {"face": (8, 24, 3, 3), "voice": (8, 16, 3, 3)}
    rng = np.random.default_rng(0)
    values, scale = quantise_codewords(rng.standard_normal((6, 256, 4)).astype(np.float32))
    graphs = {}
    for name, shape in shapes.items():
        indices = rng.integers(0, 256, index_shape(shape, 4))
        own = (scale * rng.uniform(0.5, 2)).astype(np.float32)
        graphs[name] = one_conv(make_codebook(values, indices, shape, own), shape[1])
    return merge_graphs(**graphs)


def test_one_file_of_all_entries_stores_shared_codewords_once():
    graph = shared_pair()
    apart = [len(onnx_bytes(graph, [name], decoded=False)) for name in ("face", "voice")]
    both = onnx_bytes(graph, ["face", "voice"], decoded=False)
    assert apart[0] + apart[1] - len(both) > 4 * 256 * 4  # the codewords that the voice reads
    engine = make_engine(graph, "reference")
    feeds = {
        n: inputs(2, 5)[:, :, :, :4].repeat(c, axis=1) for n, c in (("face", 24), ("voice", 16))
    }
    for some in (["face"], ["voice"], ["face", "voice"]):
        found = run(both, **{name: feeds[name] for name in some})
        for name in some:
            assert relative(found[name], engine.run(name, feeds[name])) < 1e-5
    found = run(both, face=feeds["face"], voice=feeds["voice"][:1])  # batches may differ
    assert len(found["face"]) == 2
    assert len(found["voice"]) == 1


def test_a_file_of_the_narrower_entry_has_only_the_codewords_it_reads():
    model = checked(onnx_bytes(shared_pair(), ["voice"], decoded=False))
    shapes = {tuple(constant.dims) for constant in model.graph.initializer}
    assert (4, 256, 4) in shapes
    assert (6, 256, 4) not in shapes


@pytest.mark.parametrize("decoded", [True, False])
def test_a_weight_of_two_entries_is_stored_once(decoded):
    tensors = {"w": encode_int8(RNG.standard_normal((20, 2, 3, 3)))}
    layers = (Conv("a", ("x",), "1", "w"), Conv("b", ("z",), "2", "w"))
    entries = (Entry("face", "x", (2, 5, 4), "1"), Entry("voice", "z", (2, 3, 3), "2"))
    graph = Graph(entries, layers, tensors)
    graph.validate()
    data = onnx_bytes(graph, ["face", "voice"], decoded=decoded)
    sizes = [np.prod(constant.dims) for constant in checked(data).graph.initializer]
    assert sizes.count(20 * 2 * 9) == 1
    x = inputs(2, 5)[:, :, :, :4].repeat(2, axis=1)
    assert (
        relative(run(data, face=x)["face"], make_engine(graph, "reference").run("face", x)) < 1e-5
    )


def test_entries_that_share_a_layer_go_into_files_of_their_own():
    layers = (Relu("r", ("x",), "middle"), Relu("a", ("middle",), "1"), Relu("b", ("middle",), "2"))
    entries = (Entry("face", "x", (3,), "1"), Entry("voice", "x", (3,), "2"))
    graph = Graph(entries, layers, {})
    graph.validate()
    with pytest.raises(GraphError, match="share the layer that writes 'middle'"):
        onnx_bytes(graph, ["face", "voice"])
    assert run(onnx_bytes(graph, ["voice"]), voice=-np.ones((1, 3), np.float32))["voice"].max() == 0


# what the converter's passes make


def test_a_pair_that_shares_codebooks(tmp_path):
    pytest.importorskip("torch")
    from edgeid.converters.codebook.calibration import CodebookCalibration
    from edgeid.converters.codebook.shared_codebooks import SharedCodebooks
    from edgeid.converters.recipe import Context, run_recipe

    pair = {
        name: residual_graph(seed, (8, 8, 8, 10), (1, 0, 0, 0), size=16, dim=8, average=seed == 2)
        for seed, name in ((1, "face"), (2, "voice"))
    }
    samples = {name: inputs(8, 16, seed=seed) for seed, name in ((1, "face"), (2, "voice"))}
    step = SharedCodebooks(k=16, r=4, calibration=CodebookCalibration(steps=0))
    context = Context(samples, tmp_path, progress=False)
    graph, _ = run_recipe([step], merge_graphs(**pair), context)
    data = onnx_bytes(graph, ["face", "voice"], decoded=False)
    feeds = {name: samples[name][:3] for name in pair}
    found = run(data, **feeds)
    for name, x in feeds.items():
        expected = make_engine(graph, "reference").run(name, x)
        assert relative(found[name], expected) < 1e-5


def test_a_graph_of_log_min_max(tmp_path):
    pytest.importorskip("torch")
    from edgeid.converters.quantisation.logminmax import LogMinMax
    from edgeid.converters.recipe import Context, run_recipe

    x = inputs(8, 16)
    context = Context({"face": x}, tmp_path, progress=False)
    start = residual_graph(1, (8, 8, 16, 18), (1, 0, 0, 0), size=16)
    graph, _ = run_recipe([LogMinMax(bits=5)], start, context)
    kept = onnx_bytes(graph, ["face"], decoded=False)
    assert len(kept) < len(onnx_bytes(graph, ["face"])) / 2
    expected = make_engine(graph, "reference").run("face", x)
    assert relative(run(kept, face=x)["face"], expected) < 1e-5
