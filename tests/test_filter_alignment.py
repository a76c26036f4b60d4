"""Filter alignment: both distances by hand, the assignment, and networks that stay the same."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import Graph, merge_graphs

torch = pytest.importorskip("torch")
pytest.importorskip("scipy")

from edgeid.converters.graphs.permutation import channel_groups, permute  # noqa: E402
from edgeid.converters.graphs.torch_graph import export_torch  # noqa: E402
from edgeid.converters.networks.cnn20 import CNN20  # noqa: E402
from edgeid.converters.zipper.filter_alignment import (  # noqa: E402
    align_layer,
    filter_distances,
    match_filters,
)
from edgeid.converters.zipper.shared_layers import paired_layers  # noqa: E402

from .networks import inputs, residual_graph  # noqa: E402

ENTRIES = ("face", "voice")
seeds = st.integers(0, 2**32 - 1)


def shuffled(graph: Graph, seed: int) -> Graph:
    """The same network with the channels of every group in another order."""
    rng = np.random.default_rng(seed)
    for index, group in enumerate(channel_groups(graph)):
        if not group.fixed:
            graph = permute(graph, channel_groups(graph)[index], rng.permutation(group.channels))
    return graph


def aligned(graph: Graph, distance):
    found = []
    for number in range(len(paired_layers(graph, ENTRIES))):
        moved, reference = paired_layers(graph, ENTRIES)[number]
        graph, alignment = align_layer(graph, moved, reference, distance)
        found.append(alignment)
    return graph, found


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_distances_by_hand():
    reference = np.array([[1.0, -2.0], [0.0, 4.0]])  # scores 3 and 4
    moved = np.array([[2.0, 2.0], [-1.0, -2.0]])  # scores 4 and 3
    assert filter_distances(moved, reference, "score").tolist() == [[1, 0], [0, 1]]
    # |2-1|+|2+2|, |-1-1|+|-2+2|; |2-0|+|2-4|, |-1-0|+|-2-4|
    assert filter_distances(moved, reference, "filter").tolist() == [[5, 2], [4, 7]]
    for distance in ("score", "filter"):
        assert match_filters(filter_distances(moved, reference, distance)).tolist() == [1, 0]


def test_equal_totals_move_nothing():
    # scores 1, 2 against 3, 4: every assignment costs 4
    distances = filter_distances(np.array([[3.0], [4.0]]), np.array([[1.0], [2.0]]), "score")
    assert match_filters(distances).tolist() == [0, 1]
    assert match_filters(np.zeros((3, 3))).tolist() == [0, 1, 2]


@given(seed=seeds, count=st.integers(1, 5), distance=st.sampled_from(["score", "filter"]))
@settings(max_examples=60, deadline=None)
def test_no_order_is_better(seed, count, distance):
    rng = np.random.default_rng(seed)
    distances = filter_distances(*rng.standard_normal((2, count, 2, 3, 3)), distance)
    order = match_filters(distances)
    rows = np.arange(count)
    best = min(distances[rows, list(p)].sum() for p in permutations(range(count)))
    assert distances[rows, order].sum() == pytest.approx(best, abs=1e-9)
    assert distances[rows, order].sum() <= distances[rows, rows].sum()


@given(seed=seeds, count=st.integers(1, 40), distance=st.sampled_from(["score", "filter"]))
@settings(max_examples=60, deadline=None)
def test_a_planted_order_is_found(seed, count, distance):
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((count, 3, 3, 3)).astype(np.float32)
    order = rng.permutation(count)
    found = match_filters(filter_distances(reference[order], reference, distance))
    assert np.array_equal(order[found], np.arange(count))


def test_filters_that_do_not_compare():
    with pytest.raises(GraphError, match=r"\(2, 3\) and \(2, 4\)"):
        filter_distances(np.zeros((2, 3)), np.zeros((2, 4)), "score")
    with pytest.raises(GraphError, match="'l2' is none of score, filter"):
        filter_distances(np.zeros((2, 3)), np.zeros((2, 3)), "l2")


@pytest.fixture(scope="module")
def cnn20() -> Graph:
    """CNN-20 at width 0.125 with random statistics and slopes."""
    torch.manual_seed(3)
    network = CNN20(0.125, 16)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            torch.nn.init.normal_(module.running_mean, 0, 0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, 0, 0.3)
        if isinstance(module, torch.nn.PReLU):
            torch.nn.init.uniform_(module.weight, 0, 0.5)
    return export_torch(network, (1, 112, 96))


@pytest.mark.parametrize("distance", ["score", "filter"])
def test_an_aligned_cnn20_answers_as_before(cnn20, distance):
    rng = np.random.default_rng(5)
    noisy = {
        name: encode_float32(t.decode() + rng.standard_normal(t.shape) * 0.05)
        for name, t in cnn20.tensors.items()
    }
    graph = merge_graphs(face=shuffled(cnn20, 4), voice=replace(cnn20, tensors=noisy))
    after, alignments = aligned(graph, distance)
    # stage by stage: the strided convolution decides, its unit's second one must follow;
    # the last unit's second convolution and the output layer have no choice
    free = [number for number, one in enumerate(alignments, 1) if one.free]
    assert free == [1, 2, 4, 5, 7, 9, 10, 12, 14, 16, 18, 19]
    assert all(a.after <= a.before for a in alignments)
    assert sum(list(a.order) != sorted(a.order) for a in alignments) == len(free)
    x = rng.standard_normal((4, 1, 112, 96)).astype(np.float32)
    for engine in ("reference", "onnxruntime"):
        one, two = make_engine(graph, engine), make_engine(after, engine)
        for entry in ENTRIES:
            assert np.abs(unit(one.run(entry, x)) - unit(two.run(entry, x))).max() < 1e-5


def test_alignment_undoes_a_shuffle_of_the_whole_network():
    graph = residual_graph(1, channels=(4, 5, 6, 7))
    pair = merge_graphs(face=shuffled(graph, 2), voice=graph)
    x = inputs(3)
    for distance in ("score", "filter"):
        after, alignments = aligned(pair, distance)
        assert sum(a.before for a in alignments if a.free) > 1
        # also those that only followed, and those behind them, are back where they were
        assert sum(a.after for a in alignments) == pytest.approx(0, abs=1e-9)
        for name, tensor in graph.tensors.items():
            assert np.array_equal(after.tensors[f"face/{name}"].decode(), tensor.decode())
        assert np.allclose(
            make_engine(pair, "reference").run("face", x),
            make_engine(after, "reference").run("face", x),
            atol=1e-5,
        )


def test_layers_of_different_shape():
    pair = merge_graphs(face=residual_graph(1), voice=residual_graph(2))
    moved, other = paired_layers(pair, ENTRIES)[0][0], paired_layers(pair, ENTRIES)[1][1]
    with pytest.raises(GraphError, match="do not compare"):
        align_layer(pair, moved, other, "filter")
