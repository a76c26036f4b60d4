"""Balanced channels: the same function, and one scale that fits all of them."""

from __future__ import annotations

import numpy as np
import pytest

from edgeid.converters.export.channel_balance import balance_channels
from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.engine import make_engine
from edgeid.runtime.graph import Add, Conv, Entry, Graph, PRelu, Relu

RNG = np.random.default_rng(3)


def chain(second, *, groups=1, output="z", activation=None):
    """x -> convolution c of two filters -> a -> r -> b -> the convolution d -> z."""
    weights = {
        "c": np.array([[[[2.0]]], [[[-4.0]]]]),
        "bias": np.array([6.0, 8.0]),
        "s": np.array([0.5, -0.25]),
        "d": np.asarray(second, np.float64),
    }
    layers = (
        Conv("1", ("x",), "a", "c", "bias"),
        activation or PRelu("2", ("a",), "b", "s"),
        Conv("3", ("b",), "z", "d", None, (1, 1), (0, 0, 0, 0), groups),
    )
    read = {name for layer in layers for name in layer.tensor_names()}
    tensors = {name: encode_float32(values) for name, values in weights.items() if name in read}
    graph = Graph((Entry("face", "x", (1, 3, 3), output),), layers, tensors)
    graph.infer_shapes("face")
    return graph


def reach(a, b):
    return {"a": np.array(a, np.float32), "b": np.array(b, np.float32)}


def weights(graph):
    return {name: tensor.decode().ravel().tolist() for name, tensor in graph.tensors.items()}


def assert_same_function(graph, changed):
    x = RNG.standard_normal((3, *graph.entries[0].shape)).astype(np.float32)
    one, other = (make_engine(g, "reference").run("face", x) for g in (graph, changed))
    assert other == pytest.approx(one, rel=1e-5, abs=1e-5)


def test_before_a_depthwise_layer_all_channels_reach_as_far():
    graph = chain([[[[1.0]]], [[[10.0]]], [[[3.0]]], [[[5.0]]]], groups=2)
    changed = balance_channels(graph, reach([8, 1], [4, 2]))
    # the channels reach 8 and 2, the middle is 5: they are divided by 1.6 and 0.4
    found = weights(changed)
    assert found["c"] == pytest.approx([2 / 1.6, -4 / 0.4])
    assert found["bias"] == pytest.approx([6 / 1.6, 8 / 0.4])
    assert found["d"] == pytest.approx([1.6, 16, 1.2, 2])
    assert found["s"] == [0.5, -0.25]
    assert_same_function(graph, changed)


def test_before_another_layer_the_weights_take_half():
    graph = chain([[[[0.5]], [[-4.0]]], [[[-1.0]], [[2.0]]]])
    changed = balance_channels(graph, reach([16, 1], [1, 4]))
    # square roots of 16 / 1 and 4 / 4 are 4 and 1, the middle is 2.5
    found = weights(changed)
    assert found["c"] == pytest.approx([2 / 1.6, -4 / 0.4])
    assert found["d"] == pytest.approx([0.8, -1.6, -1.6, 0.8])
    assert_same_function(graph, changed)
    rectified = chain([[[[0.5]], [[-4.0]]]], activation=Relu("2", ("a",), "b"))
    assert_same_function(rectified, balance_channels(rectified, reach([16, 1], [1, 4])))


def test_channels_that_are_always_zero_or_never_read():
    graph = chain([[[[0.5]], [[0.0]]]])
    for values in ([16, 1], [0, 1], [0, 0]):
        changed = balance_channels(graph, reach(values, values))
        assert all(np.isfinite(values).all() for values in weights(changed).values())
        assert_same_function(graph, changed)


def test_what_cannot_be_balanced_stays():
    pointwise = [[[[0.5]], [[-4.0]]]]
    given = reach([16, 1], [1, 4])
    inner = chain(pointwise, output="b")  # somebody reads what is between
    inner = Graph(
        inner.entries, inner.layers[:2], {n: inner.tensors[n] for n in ("c", "bias", "s")}
    )
    grouped = chain([[[[0.5]]], [[[1.0]]]], groups=2)
    joined = chain(pointwise)
    joined = Graph(
        (Entry("face", "x", (1, 3, 3), "sum"),),
        (*joined.layers, Conv("4", ("b",), "y", "e"), Add("5", ("z", "y"), "sum")),
        joined.tensors | {"e": encode_float32(np.ones((1, 2, 1, 1)))},
    )
    twice = chain(pointwise)
    twice = Graph(
        (Entry("face", "x", (1, 3, 3), "y"),),
        (*twice.layers, Conv("4", ("z",), "y", "c")),
        twice.tensors,
    )
    for graph in (inner, joined, twice):
        graph.validate()
        assert weights(balance_channels(graph, given)) == weights(graph)
    assert weights(balance_channels(grouped, given)) != weights(grouped)
