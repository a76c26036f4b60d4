"""Flame as a pass on graphs: what is replaced, with what, and that training follows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from edgeid.runtime.engine import make_engine
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.graph import Concat, Conv, merge_graphs

torch = pytest.importorskip("torch")

from edgeid.converters.distillation.flame_pass import (  # noqa: E402
    FlameSubstitution,
    replaceable_layers,
    substitute_layers,
)
from edgeid.converters.graphs.embedding_similarity import embed_samples, similarity  # noqa: E402
from edgeid.converters.networks.flame import count_weights, make_structure  # noqa: E402
from edgeid.converters.recipe import Context, recipe_from_json, run_recipe  # noqa: E402

from .networks import inputs, residual_graph  # noqa: E402

SMALL = {"channels": (4, 8), "units": (1, 0)}
QUICK = FlameSubstitution(epochs=1, batch=4, settle=1)


@pytest.fixture
def context(tmp_path) -> Context:
    return Context({"face": inputs(8)}, work=tmp_path, progress=False)


def weights(graph) -> int:
    names = {layer.weight for layer in graph.layers if isinstance(layer, Conv)}
    return sum(int(np.prod(graph.tensors[name].shape)) for name in names)


@pytest.mark.parametrize("structure", ["fire", "depthwise", "flame"])
def test_graph_and_torch_structures_have_the_same_weights(structure):
    graph = residual_graph(1, **SMALL)
    layers = replaceable_layers(graph, "face")
    assert [layer.name for layer in layers] == ["layer02", "layer03", "layer04"]
    made = substitute_layers(graph, "face", structure, 0.125, np.random.default_rng(0))
    shapes = [(4, 4, 1), (4, 4, 1), (4, 8, 2)]
    expected = sum(count_weights(make_structure(structure, *shape)) for shape in shapes)
    assert weights(made) == 4 * 9 + expected
    assert made.infer_shapes("face")[made.entry("face").output] == (5,)
    assert sum(isinstance(x, Concat) for x in made.layers) == (0 if structure == "depthwise" else 3)


@pytest.mark.parametrize("structure", ["fire", "depthwise", "flame"])
def test_the_pass_replaces_and_folds(structure, context):
    graph = residual_graph(1, **SMALL)
    after, reports = run_recipe((replace(QUICK, structure=structure),), graph, context)
    assert reports[0].figures["replaced"] == 3
    assert "Affine" not in {layer.op for layer in after.layers}
    assert after.tensors["layer01.weight"].shape == (4, 1, 3, 3)
    x = context.inputs("face")
    for engine in ("reference", "onnxruntime"):
        assert np.isfinite(make_engine(after, engine).run("face", x)).all()


def test_training_brings_it_near_the_original(context):
    graph = residual_graph(1, **SMALL)
    before, found = embed_samples(graph, context.samples), {}
    for epochs in (0, 150):
        options = FlameSubstitution(None, "fire", 1.0, epochs, batch=8, rate=1e-2, settle=1)
        after, _ = run_recipe((options,), graph, context)
        found[epochs] = similarity(before, embed_samples(after, context.samples))["face"]
    assert found[0] < 0.6
    assert found[150] > 0.9


def test_other_entries_stay(context):
    pair = merge_graphs(face=residual_graph(1, **SMALL), voice=residual_graph(2, **SMALL))
    after, _ = run_recipe((replace(QUICK, entries=("face",)),), pair, context)
    x = inputs(2)
    before = make_engine(pair, "reference").run("voice", x)
    assert np.array_equal(make_engine(after, "reference").run("voice", x), before)
    assert after.layers_of("voice") == pair.layers_of("voice")
    with pytest.raises(DataError, match="no sample inputs for entry 'voice'"):
        run_recipe((replace(QUICK, entries=("face", "voice")),), pair, context)


def test_a_network_without_3x3_convolutions(context):
    after, _ = run_recipe((QUICK,), residual_graph(1, **SMALL), context)
    with pytest.raises(GraphError, match="no 3x3 convolution that can be replaced"):
        run_recipe((replace(QUICK, structure="fire"),), after, context)


def test_the_effect_is_checked(context):
    graph = residual_graph(1, **SMALL)
    with pytest.raises(GraphError, match="'layer02' of entry 'face' was not replaced"):
        QUICK.ensures(graph, graph, context)


def test_options_survive():
    recipe = (FlameSubstitution(("voice",), "fire", 0.25),)
    assert recipe_from_json([recipe[0].to_dict()], (FlameSubstitution,)) == recipe
