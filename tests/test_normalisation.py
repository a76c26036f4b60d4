"""Batch norms taken out of a graph and folded back: the function stays, statistics are right."""

from __future__ import annotations

import numpy as np
import pytest

from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import Affine, Concat, Conv, Entry, Gemm, Graph, merge_graphs

torch = pytest.importorskip("torch")

from edgeid.converters.graphs.normalisation import NormModule, fold_norms, split_norms  # noqa: E402

from .networks import inputs, residual_graph  # noqa: E402


def run(graph, x, entry="face"):
    return make_engine(graph, "reference").run(entry, x)


def test_split_and_fold_by_hand():
    layers = (Gemm("fc", ("x",), "y", "w", "b"),)
    tensors = {"w": encode_float32([[1, 2]]), "b": encode_float32([5])}
    graph = Graph((Entry("face", "x", (2,), "y"),), layers, tensors)
    split = split_norms(graph, ["face"])
    gemm, affine = split.layers
    assert gemm == Gemm("fc", ("x",), "y:product", "w", None)
    assert affine == Affine("fc.norm", ("y:product",), "y", "fc.norm.weight", "fc.norm.bias")
    assert split.tensors["fc.norm.bias"].decode().tolist() == [5]
    split.tensors["fc.norm.weight"] = encode_float32([3])
    folded = fold_norms(split)
    assert folded.layers == (Gemm("fc", ("x",), "y", "w", "fc.bias"),)
    assert folded.tensors["w"].decode().tolist() == [[3, 6]]
    assert folded.tensors["fc.bias"].decode().tolist() == [5]


def test_split_and_fold_keep_a_network():
    graph, x = residual_graph(1), inputs(3)
    split = split_norms(graph, ["face"])
    assert sum(isinstance(layer, Affine) for layer in split.layers) == 21
    assert split_norms(split, ["face"]).layers == split.layers  # they have theirs already
    folded = fold_norms(split)
    assert folded.layers == graph.layers
    for other in (split, folded):
        assert np.allclose(run(other, x), run(graph, x), atol=1e-6)


def test_a_shared_weight_keeps_its_norm():
    layers = (
        Gemm("a", ("x",), "ax", "w", None),
        Affine("an", ("ax",), "y", "as", "ab"),
        Gemm("b", ("u",), "bu", "w", None),
        Affine("bn", ("bu",), "v", "bs", "bb"),
    )
    values = {"w": [[2]], "as": [3], "ab": [1], "bs": [5], "bb": [0]}
    tensors = {name: encode_float32(value) for name, value in values.items()}
    graph = Graph((Entry("face", "x", (1,), "y"), Entry("voice", "u", (1,), "v")), layers, tensors)
    assert fold_norms(graph).layers == layers


def test_a_norm_after_a_concat_is_folded_into_the_branches():
    rng = np.random.default_rng(1)
    layers = (
        Conv("one", ("x",), "a", "w1", "b1"),
        Conv("two", ("x",), "b", "w2", None),
        Concat("join", ("a", "b"), "c"),
        Affine("norm", ("c",), "y", "s", "t"),
    )
    shapes = {"w1": (2, 3, 1, 1), "b1": (2,), "w2": (4, 3, 1, 1), "s": (6,), "t": (6,)}
    tensors = {k: encode_float32(rng.standard_normal(shape)) for k, shape in shapes.items()}
    graph = Graph((Entry("face", "x", (3, 2, 2), "y"),), layers, tensors)
    folded = fold_norms(graph)
    assert [layer.op for layer in folded.layers] == ["Conv", "Conv", "Concat"]
    x = rng.standard_normal((2, 3, 2, 2)).astype(np.float32)
    assert np.allclose(run(folded, x), run(graph, x), atol=1e-6)


def test_what_another_layer_reads_is_not_folded():
    layers = (
        Conv("one", ("x",), "a", "w", None),
        Affine("norm", ("a",), "b", "s", "s"),
        Concat("join", ("a", "b"), "y"),
    )
    tensors = {"w": encode_float32(np.ones((1, 1, 1, 1))), "s": encode_float32([2])}
    graph = Graph((Entry("face", "x", (1, 2, 2), "y"),), layers, tensors)
    assert fold_norms(graph).layers == layers


def test_measuring_changes_no_answer_and_settling_restores_the_spread():
    graph, x = residual_graph(1), torch.from_numpy(inputs(32))
    module = NormModule(split_norms(graph, ["face"]), ["face"]).eval()
    with torch.no_grad():
        before = module(x)
        module.measure({"face": [x[:16], x[16:]]})
        torch.testing.assert_close(module(x), before, atol=1e-4, rtol=1e-4)
        values = module.activations(x)
        first = module.norm_layers[0]
        flat = values[first.inputs[0]].transpose(0, 1).flatten(1)
        torch.testing.assert_close(module.norm(first.name).mean, flat.mean(1))
        variance = flat.var(1, correction=0)
        torch.testing.assert_close(module.norm(first.name).var, variance, atol=1e-5, rtol=1e-4)
        spread = values[first.output].transpose(0, 1).flatten(1).std(1)
        # the weights change: settling gives every channel its old spread back
        module.weight("layer01.weight").mul_(7).add_(0.1)
        module.settle({"face": [x]})
        now = module.activations(x)[first.output].transpose(0, 1).flatten(1).std(1)
    torch.testing.assert_close(now, spread, atol=1e-3, rtol=1e-2)
    assert not module.training
    folded = module.to_graph()
    assert folded.layers == graph.layers
    with torch.no_grad():
        assert np.abs(run(folded, x.numpy()) - module(x).numpy()).max() < 1e-3


def test_training_mode_uses_the_statistics_of_the_batch():
    graph = residual_graph(1)
    module = NormModule(split_norms(graph, ["face"]), ["face"])
    module.train()
    output = module(torch.from_numpy(inputs(8)))
    expected = module.norms_of("face")[-1].bias
    torch.testing.assert_close(output.mean(0), expected, atol=1e-5, rtol=1e-5)


def test_entries_keep_apart():
    pair = split_norms(
        merge_graphs(face=residual_graph(1), voice=residual_graph(2)), ["face", "voice"]
    )
    module = NormModule(pair, ["face", "voice"])
    module.measure({"face": [torch.from_numpy(inputs(4))]})
    assert all(bool((norm.mean == 0).all()) for norm in module.norms_of("voice"))
    assert all(bool((norm.mean != 0).any()) for norm in module.norms_of("face"))


def test_a_layer_of_two_entries_has_no_statistics_of_its_own():
    one = split_norms(residual_graph(1), ["face"])
    entry = one.entries[0]
    both = Graph(
        (entry, Entry("voice", entry.input, entry.shape, entry.output)), one.layers, one.tensors
    )
    with pytest.raises(GraphError, match="serves two entries"):
        NormModule(both, ["face", "voice"])
    module = NormModule(one, ["face"])
    with pytest.raises(GraphError, match="at least one batch"):
        module.measure({"face": []})
