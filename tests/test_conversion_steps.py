"""What a report measures: costs, codebook use, likeness, sensitivity, the Pareto front."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeid.converters.graphs.output_scales import with_output_scales  # noqa: E402
from edgeid.converters.graphs.permutation import channel_groups, permute  # noqa: E402
from edgeid.converters.report.codebook_use import codebook_use, entropy  # noqa: E402
from edgeid.converters.report.costs import layer_costs, measure_size  # noqa: E402
from edgeid.converters.report.latency import measure_latency  # noqa: E402
from edgeid.converters.report.layer_sensitivity import layer_sensitivity  # noqa: E402
from edgeid.converters.report.similarity import compare, embed  # noqa: E402
from edgeid.converters.report.steps import Rate, Step, measure_steps  # noqa: E402
from edgeid.converters.report.trade_off import pareto_front  # noqa: E402
from edgeid.runtime.codebook import make_codebook  # noqa: E402
from edgeid.runtime.encoding import Tensor, encode_float16, encode_float32  # noqa: E402
from edgeid.runtime.engine import make_engine  # noqa: E402
from edgeid.runtime.errors import DataError, GraphError  # noqa: E402
from edgeid.runtime.format import ModelFile, dump_model  # noqa: E402
from edgeid.runtime.graph import (  # noqa: E402
    Conv,
    Entry,
    Flatten,
    Gemm,
    GlobalAveragePool,
    Graph,
    merge_graphs,
)
from edgeid.runtime.indexed import make_indexed  # noqa: E402

from .networks import inputs, residual_graph  # noqa: E402


def conv_graph(weight: np.ndarray | None = None) -> Graph:
    """(4, 8, 6) -> 6 channels in 2 groups, 3 x 3, stride 2, pad 1 -> (6, 4, 3) -> 5."""
    if weight is None:
        weight = np.random.default_rng(0).standard_normal((6, 2, 3, 3))
    layers = (
        Conv("conv", ("x",), "a", "w", None, (2, 2), (1, 1, 1, 1), 2),
        Flatten("flat", ("a",), "b"),
        Gemm("fc", ("b",), "y", "v"),
    )
    tensors = {"w": encode_float32(weight), "v": encode_float16(np.ones((5, 72)))}
    return Graph((Entry("face", "x", (4, 8, 6), "y"),), layers, tensors)


def test_multiply_adds_of_a_known_convolution() -> None:
    conv, fc = layer_costs(conv_graph(), "face")
    # 6 x 4 x 3 outputs, each a sum over 2 input channels of its group and 9 positions
    assert (conv.multiply_adds, conv.shape, conv.bits) == (72 * 18, (6, 2, 3, 3), 32.0)
    assert (fc.multiply_adds, fc.op, fc.bits) == (5 * 72, "Gemm", 16.0)
    assert (conv.encoding, fc.encoding) == ("float32", "float16")


def with_weight(graph: Graph, tensor: Tensor) -> Graph:
    return replace(graph, tensors=graph.tensors | {"w": tensor})


def coded(codewords: np.ndarray, seed: int) -> Graph:
    indices = np.random.default_rng(seed).integers(16, size=(1, 3, 3, 6))
    return with_weight(conv_graph(), make_codebook(codewords, indices, (6, 2, 3, 3)))


def test_sizes_count_what_is_shared_once() -> None:
    codewords = np.random.default_rng(0).standard_normal((1, 16, 2)).astype(np.float32)
    graph = merge_graphs(face=coded(codewords, 1), voice=coded(codewords, 2))
    size = measure_size(graph)
    assert size.file == len(dump_model(ModelFile(graph)))
    assert size.weights == {"face": 108 + 360, "voice": 108 + 360}
    assert size.weights_shared == 0
    # 54 indices of 4 bits each; 16 x 2 codewords of 4 bytes, and "v" of 2, are those of both
    assert size.bytes == {"face": 27, "voice": 27}
    assert size.bytes_shared == 128 + 720
    # half of the codewords belongs to each weight
    assert layer_costs(graph, "face")[0].bits == pytest.approx(8 * (27 + 64) / 108)
    layers = tuple(
        replace(x, weight="face/w") if isinstance(x, Conv) and x.name == "voice/conv" else x
        for x in graph.layers
    )
    tensors = {name: t for name, t in graph.tensors.items() if name != "voice/w"}
    one = replace(graph, layers=layers, tensors=tensors)
    assert measure_size(one).weights_shared == 108


def test_pareto_front() -> None:
    points = [(3.0, 1.0), (1.0, 5.0), (2.0, 2.0), (2.5, 2.0), (2.0, 2.0), (4.0, 1.0)]
    assert pareto_front(points) == (1, 2, 4, 0)  # equal points are both on it
    assert pareto_front([(0.0, 0.0)]) == (0,)
    assert pareto_front([]) == ()


def test_entropy_of_counts() -> None:
    assert entropy(np.array([[4, 0, 0, 0]])) == 0
    assert entropy(np.array([[1, 1, 1, 1]])) == 2
    # 1 bit over 4 indices, 0 bits over 12
    assert entropy(np.array([[2, 2, 0, 0], [12, 0, 0, 0]])) == pytest.approx(0.25)
    assert entropy(np.array([[0, 0]])) == 0


def test_codebook_use_of_two_weights_that_share() -> None:
    codewords = np.arange(64, dtype=np.float32).reshape(2, 16, 2)
    first = make_codebook(codewords, np.zeros((1, 3, 3, 6), int), (6, 2, 3, 3))
    graph = conv_graph()
    # "v" reads both sub-spaces: 5 x 2 indices, the codewords 0..4 of each
    wide = make_codebook(codewords, np.tile(np.arange(5), (2, 1, 1, 1)), (5, 4))
    layers = (
        Conv("conv", ("x",), "a", "w", None, (2, 2), (1, 1, 1, 1), 2),
        GlobalAveragePool("pool", ("x",), "p"),
        Flatten("flat", ("p",), "b"),
        Gemm("fc", ("b",), "y", "v"),
    )
    entries = (*graph.entries, Entry("voice", "x", (4, 8, 6), "a"))
    graph = Graph(entries, layers, {"w": first, "v": wide})
    (use,) = codebook_use(graph)
    assert (use.tensors, use.kind, use.k, use.r, use.spaces) == (("w", "v"), "codebook", 16, 2, 2)
    # of each sub-space the codewords 0..4 are named
    assert (use.dead, use.codewords, use.bits, use.indices) == (2 * 11, 32, 4, 64)
    share = np.array([55, 1, 1, 1, 1]) / 59
    first_bits = -(share * np.log2(share)).sum()
    assert use.entropy == pytest.approx((59 * first_bits + 5 * np.log2(5)) / 64)
    # 27 + 5 bytes of indices, 256 of codewords, for 108 + 20 weights
    assert use.bits_per_weight == pytest.approx(8 * (27 + 5 + 256) / 128)
    assert use.profile[0] == pytest.approx((16 * 55 / 59 + 16 / 5) / 2)
    assert sum(use.profile) == pytest.approx(16)


def test_dictionaries_count_as_codebooks_but_not_those_of_biases() -> None:
    graph = conv_graph()
    indices = np.arange(108).reshape(6, 2, 3, 3) % 3
    tensor = make_indexed(np.array([-1, 0, 2], np.float32), indices)
    bias = make_indexed(np.array([1.0], np.float32), np.zeros(6, int))
    layers = (replace(graph.layers[0], bias="b"), *graph.layers[1:])
    graph = replace(graph, layers=layers, tensors=graph.tensors | {"w": tensor, "b": bias})
    (use,) = codebook_use(graph)
    assert (use.kind, use.k, use.bits, use.dead, use.tensors) == ("dictionary", 3, 2, 0, ("w",))
    assert use.entropy == pytest.approx(np.log2(3))
    assert codebook_use(conv_graph()) == ()


def test_similarity_by_hand() -> None:
    root = np.sqrt(0.5)
    before = np.array([[1.0, 0.0], [0.0, 1.0], [root, root]])
    same = compare(before, before)
    assert same.mean == pytest.approx(1)
    assert (same.correlation, same.difference) == (pytest.approx(1), 0)
    turned = compare(before, before[:, ::-1])  # another space, the same angles
    assert turned.mean == pytest.approx(1 / 3)
    assert turned.correlation == pytest.approx(1)
    wider = compare(before, np.eye(3))
    assert wider.mean is None
    assert np.isnan(wider.correlation)  # all pairs alike: nothing to correlate
    assert wider.difference == pytest.approx(2 * root / 3)
    alone = compare(before[:1], before[:1])
    assert np.isnan(alone.difference)
    assert alone.pairs.shape == (0, 2)


class Broken:
    name = "broken"

    def run(self, _entry: str, x: np.ndarray) -> np.ndarray:
        return np.full((len(x), 2), np.nan, np.float32)


def test_an_embedding_that_is_no_number_names_the_step() -> None:
    with pytest.raises(GraphError, match=r"2 codebook: entry 'face' gives NaN"):
        embed(Broken(), {"face": np.zeros((3, 1), np.float32)}, "2 codebook")


def test_engines_take_turns() -> None:
    calls: list[tuple[int, int]] = []

    class Counted:
        name = "counted"

        def __init__(self, number: int) -> None:
            self.number = number

        def run(self, _entry: str, x: np.ndarray) -> np.ndarray:
            calls.append((self.number, len(x)))
            return x

    found = measure_latency([Counted(0), Counted(1)], {"face": np.zeros((1, 2), np.float32)})
    assert calls[:6] == [(0, 1), (1, 1), (0, 1), (1, 1), (1, 1), (0, 1)]  # the first two warm
    first, second = found["face"]
    assert first.rounds == second.rounds == (len(calls) - 2) // 2
    assert 0 <= first.minimum <= first.median


def test_sensitivity_of_a_changed_layer_alone() -> None:
    graph = residual_graph(1, (4, 6), (1, 0), size=16)
    x = {"face": inputs(20, 16)}
    changed = graph.tensors["layer02.weight"].decode().copy()
    changed *= np.random.default_rng(0).uniform(0.5, 1.5, changed.shape)
    final = replace(graph, tensors=graph.tensors | {"layer02.weight": encode_float32(changed)})
    found = {layer.name: layer for layer in layer_sensitivity(graph, final, x)["face"]}
    assert [*found] == ["layer01", "layer02", "layer03", "layer04", "layer05"]
    assert found["layer01"].loss == found["layer01"].error == 0
    # one layer is all that has changed: its loss is that of the whole
    old, new = (make_engine(g, "reference").run("face", x["face"]) for g in (graph, final))
    cosines = (old * new).sum(1) / np.linalg.norm(old, axis=1) / np.linalg.norm(new, axis=1)
    assert found["layer02"].loss == pytest.approx(1 - cosines.mean(), rel=1e-3)
    assert found["layer02"].error == pytest.approx(
        np.linalg.norm(changed - graph.tensors["layer02.weight"].decode())
        / np.linalg.norm(graph.tensors["layer02.weight"].decode())
    )


def test_sensitivity_undoes_another_order_of_channels_and_scales() -> None:
    graph = residual_graph(2, (6, 8), (1, 1), size=16)
    weights = [n for n in graph.tensors if n.endswith("weight")]
    final = with_output_scales(graph, weights)
    rng = np.random.default_rng(0)
    for group in channel_groups(final):
        if not group.fixed:
            final = permute(final, group, rng.permutation(group.channels))
    moved = final.tensors["layer02.weight"].decode()
    assert np.abs(moved - graph.tensors["layer02.weight"].decode()).max() > 0.5
    for layer in layer_sensitivity(graph, final, {"face": inputs(20, 16)})["face"]:
        assert layer.note == ""
        assert layer.loss == pytest.approx(0, abs=1e-6)
        assert layer.error == pytest.approx(0, abs=1e-5)


def test_layers_that_cannot_be_compared_say_why() -> None:
    graph, other = (residual_graph(1, (4, width), (0, 0), size=16) for width in (6, 7))
    x = {"face": inputs(4, 16)}
    notes = [layer.note for layer in layer_sensitivity(graph, other, x)["face"]]
    assert notes[0] == ""
    assert notes[1] == "shape 6 x 4 x 3 x 3 became 7 x 4 x 3 x 3"
    assert notes[2] == "shape 5 x 6 x 4 x 4 became 5 x 7 x 4 x 4"
    whole = conv_graph()
    entries = (Entry("face", "x", (4, 8, 6), "a"),)
    short = Graph(entries, whole.layers[:1], {"w": whole.tensors["w"]})
    samples = {"face": np.random.default_rng(0).standard_normal((4, 4, 8, 6)).astype(np.float32)}
    found = layer_sensitivity(conv_graph(), short, samples)["face"]
    assert [layer.note for layer in found] == ["", "the layer is gone"]
    random = conv_graph(np.random.default_rng(5).standard_normal((6, 2, 3, 3)))
    first = layer_sensitivity(conv_graph(), random, samples)["face"][0]
    assert (first.loss, first.note) == (None, "its channels are in another order")


def test_steps_are_measured_with_and_without_what_is_optional() -> None:
    graph = conv_graph()
    seen: list[Graph] = []

    def judge(one: Graph) -> dict[str, Rate]:
        seen.append(one)
        return {"face": Rate("EER", 0.1, 0.05, 0.2, 100), "other": Rate("EER", 0, 0, 1, 1)}

    half = with_weight(graph, encode_float16(graph.tensors["w"].decode()))
    steps = [Step("original", graph), Step("1 half", half)]
    x = np.random.default_rng(0).standard_normal((300, 4, 8, 6)).astype(np.float32)
    measured = measure_steps(steps, {"face": x}, judge, progress=False)
    assert seen == [graph, half]
    assert measured.samples == {"face": 200}
    assert [s.multiply_adds("face") for s in measured.steps] == [72 * 18 + 360] * 2
    assert [*measured.steps[1].rates] == ["face"]
    assert measured.steps[0].size.file - measured.steps[1].size.file == 192  # 216 to 64 bytes
    bare = measure_steps(steps[:1], {}, None, progress=False)
    assert (bare.samples, bare.sensitivity, bare.steps[0].rates) == ({}, {}, {})
    assert bare.steps[0].similarity == {}


def test_steps_that_do_not_fit_are_refused() -> None:
    graph = conv_graph()
    with pytest.raises(DataError, match="needs the originals"):
        measure_steps([], {}, None, progress=False)
    other = replace(graph, entries=(replace(graph.entries[0], name="voice"),))
    steps = [Step("0", graph), Step("1 x", other)]
    with pytest.raises(DataError, match=r"'1 x' has the entries .*'voice'"):
        measure_steps(steps, {}, None, progress=False)
    x = np.zeros((1, 4, 8, 6), np.float32)
    with pytest.raises(DataError, match=r"samples of 'voice'; the entries are \('face',\)"):
        measure_steps(steps[:1], {"voice": x}, None, progress=False)
