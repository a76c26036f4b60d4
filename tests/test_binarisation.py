"""Binarisation: signs and magnitudes by hand, exact storage, training, what is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.format import read_model
from edgeid.runtime.graph import Affine, Conv, Entry, Flatten, Gemm, Graph, Relu, merge_graphs
from edgeid.runtime.indexed import Indexed

torch = pytest.importorskip("torch")

from edgeid.converters.graphs.normalisation import split_norms  # noqa: E402
from edgeid.converters.quantisation.binarisation import (  # noqa: E402
    Binarise,
    BinaryModule,
    binarise,
    store_signs,
)
from edgeid.converters.recipe import Context, recipe_from_json, run_recipe  # noqa: E402

# mean magnitudes 2.5 and 1; 0.7 of the first: 1.75
FILTERS = [[1.0, -2.0, 3.0, -4.0], [-1.0, 1.0, -1.0, -1.0], [0.0, 0.0, 0.0, 0.0]]
QUICK = Binarise(smallest=10, epochs=1, batch=4, settle=1)


def network(seed: int = 0) -> Graph:
    rng = np.random.default_rng(seed)
    weights = {
        "stem": rng.standard_normal((4, 1, 3, 3)),
        "stem.bias": rng.standard_normal(4),
        "conv": rng.standard_normal((8, 4, 3, 3)) / 6,
        "conv.bias": rng.standard_normal(8) / 10,
        "fc": rng.standard_normal((5, 8 * 16)) / 11,
    }
    one = (1, 1, 1, 1)
    layers = (
        Conv("s", ("x",), "a", "stem", "stem.bias", pad=one),
        Relu("r", ("a",), "b"),
        Conv("c", ("b",), "d", "conv", "conv.bias", pad=one),
        Relu("q", ("d",), "e"),
        Flatten("f", ("e",), "g"),
        Gemm("h", ("g",), "y", "fc", None),
    )
    tensors = {name: encode_float32(values) for name, values in weights.items()}
    return Graph((Entry("face", "x", (1, 4, 4), "y"),), layers, tensors)


def samples(count: int = 8) -> np.ndarray:
    return np.random.default_rng(9).standard_normal((count, 1, 4, 4)).astype(np.float32)


@pytest.fixture
def context(tmp_path) -> Context:
    return Context({"face": samples()}, tmp_path, progress=False)


def test_one_bit_by_hand():
    signs, magnitudes = binarise(torch.tensor(FILTERS), 1)
    assert signs.tolist() == [[1, -1, 1, -1], [-1, 1, -1, -1], [1, 1, 1, 1]]
    assert magnitudes.tolist() == [[2.5], [1], [0]]


def test_two_bits_by_hand():
    signs, magnitudes = binarise(torch.tensor(FILTERS), 2)
    assert signs.tolist() == [[0, -1, 1, -1], [-1, 1, -1, -1], [0, 0, 0, 0]]
    assert magnitudes.tolist() == [[3], [1], [0]]  # (2 + 3 + 4) / 3


def test_the_gradient_passes_as_if_nothing_was_quantised():
    graph = network()
    module = BinaryModule(graph, ("face",), frozenset({"fc"}), 1)
    weight = module.weight("fc")
    expected = torch.tensor(graph.tensors["fc"].decode())
    assert weight.abs().unique().numel() <= 5  # one magnitude a filter
    assert torch.equal(weight.sign(), expected.sign())
    (weight * 3).sum().backward()
    (parameter,) = (p for p in module.parameters() if p.shape == expected.shape)
    assert (parameter.grad == 3).all()


def test_magnitudes_move_into_an_affine():
    signs = np.array([[1, -1, 0], [0, 1, 1], [0, 0, 0]], np.float32)
    graph = Graph(
        (Entry("face", "x", (3,), "y"),),
        (Gemm("g", ("x",), "y", "w", "b"),),
        {
            "w": encode_float32(signs * [[2.0], [-3.0], [5.0]]),
            "b": encode_float32(np.array([1.0, 2.0, 3.0])),
        },
    )
    stored = store_signs(graph, {"w": signs}, 2)
    gemm, affine = stored.layers
    assert (gemm.bias, affine.op) == (None, "Affine")
    assert stored.tensors[affine.weight].decode().tolist() == [2, -3, 0]
    assert stored.tensors[affine.bias].decode().tolist() == [1, 2, 3]
    assert np.array_equal(stored.tensors["w"].decode(), signs)
    x = np.array([[7, 11, 13]], np.float32)
    # 2 * (7 - 11) + 1, -3 * (11 + 13) + 2, 3
    assert make_engine(stored, "reference").run("face", x).tolist() == [[-7, -70, 3]]


@pytest.mark.parametrize("bits", [1, 2])
def test_the_file_holds_packed_bits_and_computes_the_same(bits, context):
    after, (report,) = run_recipe([replace(QUICK, bits=bits, scope="all")], network(), context)
    for name, count in (("stem", 36), ("conv", 288), ("fc", 640)):
        tensor = after.tensors[name]
        assert isinstance(tensor, Indexed)
        assert tensor.bits == bits
        assert tensor.indices.nbytes == -(-count * bits // 8)
        assert set(np.unique(tensor.decode())) <= {-1, 0, 1}
    assert report.figures["weights"] == 36 + 288 + 640
    read = read_model(next(context.work.glob("01-binarise-*.edgeid"))).graph
    outputs = [
        make_engine(graph, engine).run("face", samples())
        for graph in (after, read)
        for engine in ("reference", "onnxruntime")
    ]
    assert all(np.allclose(outputs[0], other, atol=1e-4) for other in outputs)


def test_stored_graph_computes_what_was_trained():
    graph = network()
    split = split_norms(graph, ("face",))
    module = BinaryModule(split, ("face",), frozenset({"conv", "fc"}), 2).eval()
    with torch.no_grad():
        expected = module(torch.from_numpy(samples())).numpy()
    got = make_engine(module.to_graph(), "reference").run("face", samples())
    assert np.allclose(got, expected, atol=1e-4)


def test_small_tensors_and_other_scopes_stay(context):
    after, _ = run_recipe([replace(QUICK, smallest=100)], network(), context)
    assert isinstance(after.tensors["conv"], Indexed)
    assert not isinstance(after.tensors["stem"], Indexed)
    assert not isinstance(after.tensors["fc"], Indexed)
    assert sum(isinstance(layer, Affine) for layer in after.layers) == 1  # others are folded


def test_training_brings_it_near_the_original(context):
    found = {}
    for epochs in (0, 150):
        step = replace(QUICK, scope="all", epochs=epochs, batch=8, rate=1e-2)
        _, (report,) = run_recipe([step], network(), context)
        found[epochs] = report.similarity["face"]
    assert found[0] < 0.95
    assert found[150] > max(0.98, found[0])


def test_entries_that_share_a_weight(tmp_path):
    pair = merge_graphs(face=network(1), voice=network(2))
    shared = {layer.name: layer for layer in pair.layers if isinstance(layer, Conv)}
    first, second = (x for x in shared.values() if pair.tensors[x.weight].shape[1] == 4)
    layers = tuple(
        replace(x, weight=first.weight) if x.name == second.name else x for x in pair.layers
    )
    tensors = {name: t for name, t in pair.tensors.items() if name != second.weight}
    pair = replace(pair, layers=layers, tensors=tensors)
    both = Context({"face": samples(), "voice": samples()}, tmp_path, progress=False)
    step = replace(QUICK, smallest=100)
    after, _ = run_recipe([step], pair, both)
    assert sum(isinstance(t, Indexed) for t in after.tensors.values()) == 1
    assert np.isfinite(make_engine(after, "reference").run("voice", samples())).all()
    with pytest.raises(GraphError, match="give samples of that entry too"):
        run_recipe([step], pair, replace(both, samples={"face": samples()}))


def test_what_is_refused(context):
    with pytest.raises(DataError, match="bits 3 must be 1 or 2"):
        Binarise(bits=3)
    with pytest.raises(DataError, match="scope 'some'"):
        Binarise(scope="some")
    with pytest.raises(DataError, match="smallest 0"):
        Binarise(smallest=0)
    with pytest.raises(GraphError, match="no uncompressed weight of 1000000 values"):
        run_recipe([replace(QUICK, smallest=1_000_000)], network(), context)
    with pytest.raises(DataError, match="no sample inputs"):
        run_recipe([replace(QUICK, entries=("voice",))], network(), context)
    with pytest.raises(GraphError, match="not stored with 2 bits"):
        QUICK.ensures(network(), network(), context)


def test_the_recipe_comes_back_from_json():
    (back,) = recipe_from_json([replace(QUICK, bits=1).to_dict()], [Binarise])
    assert back == replace(QUICK, bits=1)
    with pytest.raises(DataError, match="bits"):
        recipe_from_json([QUICK.to_dict() | {"bits": 4}], [Binarise])
