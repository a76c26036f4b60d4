"""Coding weights: order of channels, output scales, layer statistics, clustering, budget."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from edgeid.converters.codebook.budget import (  # noqa: E402
    Choice,
    allocate,
    expected_error,
    rest_bytes,
)
from edgeid.converters.codebook.channel_order import (  # noqa: E402
    Reader,
    choose_order,
    distortion,
    total_distortion,
)
from edgeid.converters.codebook.coded_weights import CODINGS, Coding, cluster  # noqa: E402
from edgeid.converters.codebook.layer_statistics import (  # noqa: E402
    LayerWalk,
    output_reach,
    tap_moments,
)
from edgeid.converters.graphs.fully_connected import as_convolutions  # noqa: E402
from edgeid.converters.graphs.output_scales import affines, with_output_scales  # noqa: E402
from edgeid.converters.graphs.torch_graph import to_torch  # noqa: E402
from edgeid.runtime.encoding import encode_float32  # noqa: E402
from edgeid.runtime.engine import make_engine  # noqa: E402
from edgeid.runtime.errors import DataError, GraphError  # noqa: E402
from edgeid.runtime.format import ModelFile, dump_model  # noqa: E402
from edgeid.runtime.graph import Conv, Entry, Flatten, Gemm, Graph  # noqa: E402

from .networks import inputs, residual_graph  # noqa: E402


def same(a, b, x):
    before, after = (make_engine(g, "reference").run("face", x) for g in (a, b))
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5 * np.abs(before).max())


# the order of channels


def test_distortion_by_hand():
    """Variances 4 and 1: one bit goes to the larger and leaves 4 / 4 + 1; three bits bring
    both to sqrt(4) / 2^3 = 1/4; no bits leave everything."""
    moments = np.diag([4.0, 1.0])
    assert distortion(moments, 0) == pytest.approx(5)
    assert distortion(moments, 1) == pytest.approx(2)
    assert distortion(moments, 3) == pytest.approx(0.5)
    assert distortion(np.ones((2, 2)), 1) == pytest.approx(2 / 4)  # one direction only
    assert distortion(np.zeros((2, 2)), 4) == 0


def test_correlated_channels_come_together():
    """Channels 0, 2 and 1, 3 are copies of each other: two sub-spaces of rank one."""
    base = np.random.default_rng(0).standard_normal((2, 50))
    columns = base[[0, 1, 0, 1]]
    reader = Reader(columns @ columns.T, np.zeros((2, 2, 2)))
    order = choose_order([reader], 2, 3.0)
    assert sorted(map(sorted, order.reshape(2, 2).tolist())) == [[0, 2], [1, 3]]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(3, 13), st.sampled_from([2, 4]))
def test_the_order_is_never_worse_than_none(seed, channels, r):
    rng = np.random.default_rng(seed)
    spaces = -(-channels // r)
    readers = []
    for _ in range(2):
        columns = rng.standard_normal((channels, 3)) @ rng.standard_normal((3, 30))
        beside = rng.standard_normal((spaces, r, 5))
        readers.append(Reader(columns @ columns.T, beside @ beside.transpose(0, 2, 1)))
    order = choose_order(readers, r, 4.0)
    assert sorted(order.tolist()) == list(range(channels))
    present = np.arange(channels)
    assert total_distortion(readers, order, r, 4.0) <= total_distortion(
        readers, present, r, 4.0
    ) * (1 + 1e-6)


# the graph before coding


def test_a_layer_over_a_map_becomes_a_convolution():
    graph = residual_graph(0)
    changed = as_convolutions(graph)
    assert not any(isinstance(x, Gemm) for x in changed.layers)
    last = [x for x in changed.layers if isinstance(x, Conv)][-1]
    assert changed.tensors[last.weight].shape == (5, 6, 2, 2)
    same(graph, changed, inputs(3))
    assert as_convolutions(changed) == changed


def test_a_layer_without_a_map_stays():
    layers = (Flatten("f", ("x",), "v"), Gemm("g", ("v",), "y", "w"))
    graph = Graph((Entry("face", "x", (4, 1, 1), "y"),), layers, {"w": encode_float32(np.eye(4))})
    assert as_convolutions(graph) == graph


def test_a_weight_shared_by_unlike_layers_stays():
    layers = (
        Flatten("f", ("x",), "v"),
        Gemm("g", ("v",), "h", "w"),
        Gemm("g2", ("h",), "y", "w"),
    )
    graph = Graph((Entry("face", "x", (1, 2, 2), "y"),), layers, {"w": encode_float32(np.eye(4))})
    assert as_convolutions(graph) == graph


def test_output_scales():
    graph = as_convolutions(residual_graph(2))
    coded = [x.weight for x in graph.layers if isinstance(x, Conv)][1:]
    changed = with_output_scales(graph, coded)
    for name in coded:
        rows = changed.tensors[name].decode().reshape(graph.tensors[name].shape[0], -1)
        np.testing.assert_allclose(np.square(rows).mean(1), 1, rtol=1e-5)
    assert len(affines(changed)) == len(coded)
    same(graph, changed, inputs(3))
    again = with_output_scales(changed, coded)  # the scales are there already
    assert again.layers == changed.layers
    same(graph, again, inputs(3))


def test_a_dead_filter_stays_dead():
    weight = np.zeros((2, 3, 1, 1))
    weight[1] = 2
    layers = (Conv("c", ("x",), "y", "w"),)
    graph = Graph((Entry("face", "x", (3, 1, 1), "y"),), layers, {"w": encode_float32(weight)})
    changed = with_output_scales(graph, ["w"])
    assert changed.tensors["w"].decode()[:, :, 0, 0].tolist() == [[0, 0, 0], [1, 1, 1]]
    assert changed.tensors["c.scale"].decode().tolist() == [1, 2]


# layer statistics


def test_tap_moments_agree_with_unfolding():
    layer = Conv("c", ("x",), "y", "w", None, (2, 1), (1, 0, 0, 1))
    x = torch.randn(5, 3, 6, 7)
    padded = torch.nn.functional.pad(x, (0, 1, 1, 0))
    patches = torch.nn.functional.unfold(padded, (3, 2), stride=(2, 1))
    expected = patches.square().mean((0, 2)).reshape(3, 3, 2)
    torch.testing.assert_close(tap_moments(layer, x, (4, 3, 3, 2)), expected)


def test_a_walk_gives_every_activation_in_turn():
    graph = as_convolutions(residual_graph(1))
    x = torch.from_numpy(inputs(3))
    expected = to_torch(graph).activations(x)
    walk = LayerWalk(graph, "face", x)
    layer = next(layer for layer in graph.layers if layer.name == "layer05")
    torch.testing.assert_close(walk.input_of(layer), expected[layer.inputs[0]])
    walk.set_weight("layer05.weight", torch.zeros(graph.tensors["layer05.weight"].shape))
    assert not torch.equal(walk.activation(layer.output), expected[layer.output])
    assert walk.finish().shape == (3, 5)
    with pytest.raises(GraphError, match="'layer05' is behind"):
        walk.input_of(layer)
    with pytest.raises(GraphError, match="behind, or not on the way"):
        walk.activation("x")


def test_reach_of_a_linear_network_by_hand():
    """y = (a, 3a) of length |a| sqrt(10): a unit embedding does not move with a. y = (a, 1):
    d unit / da = 1 / (1 + a^2) in length."""
    layers = (Gemm("g", ("x",), "h", "w"), Gemm("o", ("h",), "y", "v", "b"))

    def graph(v, b):
        tensors = {"w": [[1.0]], "v": v, "b": b}
        made = {n: encode_float32(np.array(t)) for n, t in tensors.items()}
        return Graph((Entry("face", "x", (1,), "y"),), layers, made)

    x = torch.full((4000, 1), 2.0)
    still = output_reach(to_torch(graph([[1.0], [3.0]], [0.0, 0.0])), "face", ["h"], x, 0)
    assert float(still["h"]) < 1e-10
    moved = output_reach(to_torch(graph([[1.0], [0.0]], [0.0, 1.0])), "face", ["h"], x, 0)
    assert float(moved["h"]) == pytest.approx((1 / 5) ** 2, rel=0.1)


# clustering


def weights_of(*shapes):
    made = {f"w{i}": torch.randn(s) for i, s in enumerate(shapes)}
    return made, {n: torch.rand(w.shape) + 0.1 for n, w in made.items()}


@pytest.mark.parametrize("shapes", [[(12, 16, 3, 3), (8, 24, 1, 1)], [(6, 10)], [(9, 8), (4, 8)]])
@pytest.mark.parametrize("coding", [Coding(16, 4), Coding(32, 8), Coding(16, 2)])
def test_a_pair_shares_codewords_and_decodes_as_stored(shapes, coding):
    weights, cost = weights_of(*shapes)
    pair = cluster(weights, cost, coding, seed=0)
    stored = pair.stored()
    first = stored["w0"].codewords
    for name, tensor in stored.items():
        assert np.array_equal(tensor.codewords, first)
        assert tensor.shape == tuple(weights[name].shape)
        np.testing.assert_allclose(tensor.decode(), pair.decode(name).numpy(), atol=1e-6, rtol=1e-5)
    error = sum(float(((pair.decode(n) - w).square() * cost[n]).sum()) for n, w in weights.items())
    assert error == pytest.approx(pair.error, rel=0.02, abs=0.05)  # int8 comes on top


def test_bytes_are_those_of_the_file():
    for coding in CODINGS:
        weights, cost = weights_of((12, 16, 3, 3), (8, 24, 1, 1))
        pair = cluster(weights, cost, coding, seed=0, iterations=1)
        stored = list(pair.stored().values())
        size = sum(t.indices.nbytes + t.scale.nbytes for t in stored) + stored[0].codewords.nbytes
        assert coding.nbytes([tuple(w.shape) for w in weights.values()]) == size


def test_one_network_a_multiple_of_the_other_shares_without_loss():
    weight = torch.randn(16, 8, 3, 3)
    weights = {"a": weight, "b": weight * 7}
    cost = {n: torch.ones_like(w) for n, w in weights.items()}
    both = cluster(weights, cost, Coding(64, 4), seed=0)
    alone = cluster({"a": weight}, {"a": cost["a"]}, Coding(64, 4), seed=0)
    assert both.error == pytest.approx(alone.error * 50, rel=0.1)


def test_importance_decides_what_is_coded_well():
    torch.manual_seed(0)
    weight = torch.randn(64, 8, 3, 3)
    cost = torch.ones_like(weight)
    cost[:, :4] = 100
    pair = cluster({"w": weight}, {"w": cost}, Coding(16, 8), seed=0)
    error = (pair.decode("w") - weight).square().mean((0, 2, 3))
    assert error[:4].max() < 0.7 * error[4:].min()


def test_codings_that_files_do_not_know():
    with pytest.raises(DataError, match="K = 48, r = 8"):
        Coding(48, 8).validate()
    with pytest.raises(DataError, match="K = 64, r = 3"):
        Coding(64, 3).validate()


# the budget


def option(nbytes, error):
    return Choice(Coding(16, 2), nbytes, error)


def test_bytes_go_where_they_save_most():
    a = [option(10, 8.0), option(20, 4.0), option(40, 3.9)]
    b = [option(10, 5.0), option(20, 4.5)]
    assert [c.nbytes for c in allocate([a, b], 20)] == [10, 10]
    assert [c.nbytes for c in allocate([a, b], 30)] == [20, 10]
    assert [c.nbytes for c in allocate([a, b], 40)] == [20, 20]
    assert [c.nbytes for c in allocate([a, b], 100)] == [40, 20]


def test_a_larger_and_worse_choice_is_never_taken():
    assert allocate([[option(10, 2.0), option(20, 3.0)]], 100)[0].nbytes == 10


def test_a_budget_that_cannot_be_met_says_what_is_needed():
    with pytest.raises(DataError, match=r"19 bytes are left.*need 20.*by 1 bytes"):
        allocate([[option(10, 1.0)], [option(10, 1.0)]], 19)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 999), st.floats(0, 1))
def test_allocation_is_near_the_best(seed, share):
    rng = np.random.default_rng(seed)
    choices = [
        [
            option(int(b), float(e))
            for b, e in zip(rng.integers(1, 50, 4), rng.random(4), strict=True)
        ]
        for _ in range(3)
    ]
    least = sum(min(c.nbytes for c in options) for options in choices)
    most = sum(max(c.nbytes for c in options) for options in choices)
    budget = round(least + share * (most - least))
    chosen = allocate(choices, budget)
    assert sum(c.nbytes for c in chosen) <= budget
    fitting = [
        sum(c.error for c in pick)
        for pick in itertools.product(*choices)
        if sum(c.nbytes for c in pick) <= budget
    ]
    largest_step = max(c.error for options in choices for c in options)
    assert sum(c.error for c in chosen) <= min(fitting) + largest_step + 1e-9


def test_expected_errors_fall_with_size_and_are_near_the_real_ones():
    weights, cost = weights_of((32, 32, 3, 3), (16, 48, 1, 1))
    error = {c: expected_error(weights, cost, c, seed=0) for c in CODINGS}
    for r in (2, 4, 8):
        values = [error[Coding(k, r)] for k in (16, 32, 64, 256)]
        assert values == sorted(values, reverse=True)
    assert error[Coding(64, 2)] < error[Coding(64, 4)] < error[Coding(64, 8)]
    real = cluster(weights, cost, Coding(64, 4), seed=0).error
    assert math.isclose(error[Coding(64, 4)], real, rel_tol=0.15)


def test_bytes_beside_the_coded_weights_are_not_underestimated():
    graph = as_convolutions(residual_graph(0, channels=(8, 8, 16, 16)))
    coded = [x.weight for x in graph.layers if isinstance(x, Conv)][1:]
    graph = with_output_scales(graph, coded)
    weights = {n: torch.from_numpy(np.array(graph.tensors[n].decode())) for n in coded}
    sizes, tensors = 0, dict(graph.tensors)
    for name, weight in weights.items():
        pair = cluster({name: weight}, {name: torch.ones_like(weight)}, Coding(16, 4), seed=0)
        tensors.update(pair.stored())
        sizes += Coding(16, 4).nbytes([tuple(weight.shape)])
    file = len(dump_model(ModelFile(replace(graph, tensors=tensors))))
    assert file <= rest_bytes(graph, coded) + sizes <= file + 320 * len(coded)
