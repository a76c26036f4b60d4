"""Channel groups by hand, and permutations that leave every output where it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgeid.converters.graphs.permutation import (  # noqa: E402
    ChannelAxis,
    channel_groups,
    group_reading,
    permute,
)
from edgeid.converters.graphs.torch_graph import export_torch  # noqa: E402
from edgeid.converters.networks.cnn20 import CNN20, settle_statistics  # noqa: E402
from edgeid.runtime.encoding import encode_float16, encode_float32, encode_int8  # noqa: E402
from edgeid.runtime.engine import make_engine  # noqa: E402
from edgeid.runtime.errors import GraphError  # noqa: E402
from edgeid.runtime.graph import (  # noqa: E402
    Add,
    Affine,
    Concat,
    Conv,
    Entry,
    Flatten,
    Gemm,
    GlobalAveragePool,
    Graph,
    L2Normalize,
    MaxPool,
    PRelu,
    Relu,
    Reshape,
    merge_graphs,
)

from .networks import residual_graph  # noqa: E402

RNG = np.random.default_rng(0)


def network(shape, layers, **shapes):
    """A graph with random weights; the first layer reads "x", the last writes the output."""
    tensors = {n: encode_float32(RNG.standard_normal(s)) for n, s in shapes.items()}
    graph = Graph((Entry("face", "x", shape, layers[-1].output),), tuple(layers), tensors)
    graph.validate()
    return graph


def shuffled(graph, seed=0):
    """Every group that may be is permuted at random; also how many were."""
    rng, count = np.random.default_rng(seed), 0
    for group in channel_groups(graph):
        if not group.fixed:
            graph = permute(graph, group, rng.permutation(group.channels))
            count += 1
    return graph, count


def assert_same(a, b, tolerance=1e-5):
    for entry in a.entries:
        x = np.random.default_rng(1).standard_normal((3, *entry.shape)).astype(np.float32)
        before, after = (make_engine(g, "reference").run(entry.name, x) for g in (a, b))
        scale = max(1.0, float(np.abs(before).max()))
        assert np.abs(before - after).max() < tolerance * scale


def test_two_layers_by_hand():
    graph = network(
        (2,),
        [Gemm("a", ("x",), "h", "w", "b"), Gemm("c", ("h",), "y", "v")],
        w=(3, 2),
        b=(3,),
        v=(1, 3),
    )
    given, hidden, output = channel_groups(graph)
    assert (given.fixed, hidden.fixed, output.fixed) == (True, False, True)
    assert hidden.channels == 3
    assert set(hidden.axes) == {
        ChannelAxis("w", 0, 0, 1), ChannelAxis("b", 0, 0, 1), ChannelAxis("v", 1, 0, 1)
    }  # fmt: skip
    moved = permute(graph, hidden, [2, 0, 1])
    old, new = ({n: t.decode() for n, t in g.tensors.items()} for g in (graph, moved))
    assert np.array_equal(new["w"], old["w"][[2, 0, 1]])
    assert np.array_equal(new["b"], old["b"][[2, 0, 1]])
    assert np.array_equal(new["v"], old["v"][:, [2, 0, 1]])
    assert_same(graph, moved)


def test_a_chain_of_shortcuts_is_one_group():
    graph = residual_graph(0)
    groups = [g for g in channel_groups(graph) if not g.fixed]
    # four stages with a stream each, and the inner channels of 8 residual units
    assert len(groups) == 4 + 8
    stream = max(groups, key=lambda g: len(g.axes))
    readers = {axis.tensor for axis in stream.readers()}
    assert len(readers) == 5  # the first layers of four units, and the next stage


def test_a_residual_network_answers_as_before():
    graph = residual_graph(3)
    moved, count = shuffled(graph)
    assert count == 12
    assert_same(graph, moved)
    changed = [n for n in graph.tensors if not np.array_equal(
        graph.tensors[n].decode(), moved.tensors[n].decode())]  # fmt: skip
    assert len(changed) == len(graph.tensors) - 1  # all but the bias of the embedding


@pytest.mark.parametrize("voice", [False, True])
def test_cnn20_answers_as_before(voice):
    torch.manual_seed(0)
    network = CNN20(0.125, 16, average_time=voice)
    settle_statistics(network, [torch.randn(8, 1, 112, 96)])
    graph = export_torch(network, (1, 112, 96), "voice" if voice else "face")
    moved, count = shuffled(graph)
    assert count == 12
    assert_same(graph, moved)


def test_flattening_turns_channels_into_blocks():
    graph = network(
        (1, 4, 3),
        [
            Conv("a", ("x",), "h", "w", None, pad=(1, 1, 1, 1)),
            Flatten("f", ("h",), "flat"),
            Affine("n", ("flat",), "scaled", "gain", "shift"),
            Gemm("c", ("scaled",), "y", "v"),
        ],
        w=(5, 1, 3, 3),
        gain=(60,),
        shift=(60,),
        v=(2, 60),
    )
    hidden = channel_groups(graph)[1]
    assert ChannelAxis("v", 1, 0, 12) in hidden.axes
    moved, count = shuffled(graph)
    assert count == 1
    assert_same(graph, moved)


def test_concatenation_reads_stretches_of_an_axis():
    layers = [
        Conv("a", ("x",), "p", "w1", None),
        Conv("b", ("x",), "q", "w2", None),
        Concat("j", ("p", "q", "p"), "joined"),
        PRelu("act", ("joined",), "r", "slope"),
        Conv("c", ("r",), "y", "v", None),
    ]
    graph = network(
        (2, 3, 3), layers, w1=(3, 2, 1, 1), w2=(4, 2, 1, 1), slope=(10,), v=(2, 10, 1, 1)
    )
    first = group_reading(channel_groups(graph), "v")
    assert [g.channels for g in first] == [3, 4, 3]
    assert first[0] == first[2]
    moved, count = shuffled(graph)
    assert count == 2
    assert_same(graph, moved)


def test_depth_wise_kernels_follow_their_channels():
    layers = [
        Conv("a", ("x",), "p", "w", None),
        Conv("d", ("p",), "q", "deep", "bias", groups=3),
        Relu("r", ("q",), "s"),
        GlobalAveragePool("g", ("s",), "t"),
        Reshape("re", ("t",), "u", (6,)),
        L2Normalize("l", ("u",), "n"),
        Gemm("c", ("n",), "y", "v"),
    ]
    graph = network((2, 5, 5), layers, w=(3, 2, 1, 1), deep=(6, 1, 3, 3), bias=(6,), v=(2, 6))
    moved, count = shuffled(graph)
    assert count == 1  # two outputs for each of three channels
    assert_same(graph, moved)


def test_grouped_convolutions_and_unlike_sums_stay_fixed():
    grouped = network(
        (2, 4, 4),
        [
            Conv("a", ("x",), "p", "w", None),
            Conv("g", ("p",), "q", "v", None, groups=2),
            Conv("c", ("q",), "y", "u", None),
        ],
        w=(4, 2, 1, 1),
        v=(4, 2, 1, 1),
        u=(2, 4, 1, 1),
    )
    assert all(group.fixed for group in channel_groups(grouped))
    unlike = network(
        (2, 4, 4),
        [
            Conv("a", ("x",), "p", "w", None),
            Conv("b", ("x",), "q", "v", None),
            Concat("j", ("p", "p"), "pp"),
            Add("s", ("pp", "q"), "sum"),
            Conv("c", ("sum",), "y", "u", None),
        ],
        w=(2, 2, 1, 1),
        v=(4, 2, 1, 1),
        u=(2, 4, 1, 1),
    )
    assert all(group.fixed for group in channel_groups(unlike))


def test_a_reshape_that_mixes_channels_stays_fixed():
    layers = [
        Conv("a", ("x",), "p", "w", None),
        Reshape("re", ("p",), "q", (2, 6)),
        Flatten("f", ("q",), "flat"),
        Gemm("c", ("flat",), "y", "v"),
    ]
    graph = network((1, 2, 2), layers, w=(3, 1, 1, 1), v=(2, 12))
    assert all(group.fixed for group in channel_groups(graph))


def test_two_entries_that_share_a_weight_permute_together():
    merged = merge_graphs(face=residual_graph(1), voice=residual_graph(2))
    name = "face/layer02.weight"
    layers = tuple(
        replace(x, weight=name) if isinstance(x, Conv) and x.name == "voice/layer02" else x
        for x in merged.layers
    )
    tensors = {n: t for n, t in merged.tensors.items() if n != "voice/layer02.weight"}
    shared = replace(merged, layers=layers, tensors=tensors)
    shared.validate()
    assert len([g for g in channel_groups(merged) if not g.fixed]) == 24
    assert len([g for g in channel_groups(shared) if not g.fixed]) == 22
    assert_same(shared, shuffled(shared)[0])


def test_stored_weights_keep_or_gain_precision():
    graph = residual_graph(4)
    coarse = {
        n: (encode_float16 if i % 2 else encode_int8)(t.decode()) if len(t.shape) > 1 else t
        for i, (n, t) in enumerate(graph.tensors.items())
    }
    graph = replace(graph, tensors=coarse)
    moved, _ = shuffled(graph)
    assert {t.array.dtype.name for t in moved.tensors.values()} == {"float16", "float32"}
    assert_same(graph, moved)


def test_pooling_keeps_channels_apart():
    layers = [
        Conv("a", ("x",), "p", "w", None),
        MaxPool("m", ("p",), "q", (2, 2), (2, 2)),
        Conv("c", ("q",), "y", "v", None),
    ]
    graph = network((1, 4, 4), layers, w=(5, 1, 1, 1), v=(2, 5, 2, 2))
    assert_same(graph, shuffled(graph)[0])


def test_what_cannot_be_permuted():
    graph = residual_graph(0)
    groups = channel_groups(graph)
    with pytest.raises(GraphError, match="may not be permuted"):
        permute(graph, groups[0], [0])
    free = next(g for g in groups if not g.fixed)
    with pytest.raises(GraphError, match="no permutation of 3 channels"):
        permute(graph, free, [0, 0, 1])
    with pytest.raises(GraphError, match="no permutation"):
        permute(graph, free, [0, 1])
