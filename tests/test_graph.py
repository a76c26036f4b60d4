"""The graph: shapes, wiring, and its JSON form read strictly."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.errors import GraphError, UnsupportedOperatorError
from edgeid.runtime.graph import (
    OPERATORS,
    Add,
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv,
    Entry,
    Flatten,
    Gemm,
    GlobalAveragePool,
    Graph,
    L2Normalize,
    Layer,
    MaxPool,
    Mul,
    PRelu,
    Relu,
    Reshape,
    graph_from_dict,
    graph_to_dict,
    merge_graphs,
)


def zeros(*shape: int):
    return encode_float32(np.zeros(shape, np.float32))


def every_operator() -> Graph:
    """One small network that uses each operator once."""
    layers: tuple[Layer, ...] = (
        Conv("conv", ("x",), "a", "w", "b", (2, 2), (1, 1, 1, 1)),
        PRelu("prelu", ("a",), "p", "slope"),
        Affine("norm", ("p",), "n", "gain", "shift"),
        Add("add", ("p", "n"), "s"),
        Mul("mul", ("s", "n"), "m"),
        Relu("relu", ("m",), "r"),
        Clip("clip", ("r",), "c", 0.0, 6.0),
        MaxPool("max", ("c",), "mp", (2, 2), (1, 1)),
        AveragePool("mean", ("c",), "ap", (2, 2), (1, 1)),
        Concat("join", ("mp", "ap"), "j"),
        GlobalAveragePool("global", ("j",), "g"),
        Reshape("reshape", ("g",), "h", (2, -1)),
        Flatten("flatten", ("h",), "f"),
        Gemm("fc", ("f",), "e", "fw", None),
        L2Normalize("unit", ("e",), "y"),
    )
    tensors = {
        "w": zeros(2, 1, 3, 3),
        "b": zeros(2),
        "slope": zeros(2),
        "gain": zeros(2),
        "shift": zeros(2),
        "fw": zeros(3, 4),
    }
    return Graph((Entry("face", "x", (1, 5, 7), "y"),), layers, tensors)


def single(layer: Layer, shape: tuple[int, ...], **tensors: tuple[int, ...]) -> Graph:
    stored = {name: zeros(*size) for name, size in tensors.items()}
    return Graph((Entry("face", "x", shape, layer.output),), (layer,), stored)


def test_the_example_uses_every_operator():
    assert {layer.op for layer in every_operator().layers} == set(OPERATORS)


def test_shapes_worked_out_by_hand():
    shapes = every_operator().infer_shapes("face")
    assert shapes["a"] == (2, 3, 4)  # (5 + 2 - 3) // 2 + 1, (7 + 2 - 3) // 2 + 1
    assert shapes["mp"] == (2, 2, 3)
    assert shapes["j"] == (4, 2, 3)
    assert shapes["g"] == (4, 1, 1)
    assert shapes["h"] == (2, 2)
    assert shapes["f"] == (4,)
    assert shapes["y"] == (3,)


def test_json_round_trip():
    graph = every_operator()
    assert graph_from_dict(graph_to_dict(graph), graph.tensors) == graph


@pytest.mark.parametrize(
    ("layer", "shape", "tensors", "says"),
    [
        (Conv("c", ("x",), "y", "w"), (4,), {"w": (2, 4, 3, 3)}, "channels, height, width"),
        (Conv("c", ("x",), "y", "w"), (3, 5, 5), {"w": (2, 4, 3, 3)}, "needs"),
        (Conv("c", ("x",), "y", "w"), (4, 2, 5), {"w": (2, 4, 3, 3)}, "larger than"),
        (Conv("c", ("x",), "y", "w"), (4, 5, 5), {"w": (2, 4)}, "four axes"),
        (Conv("c", ("x",), "y", "w", "b"), (4, 5, 5), {"w": (2, 4, 3, 3), "b": (3,)}, "'b'"),
        (Conv("c", ("x",), "y", "w", None, (0, 1)), (4, 5, 5), {"w": (2, 4, 3, 3)}, "stride"),
        (
            Conv("c", ("x",), "y", "w", None, (1, 1), (-1, 0, 0, 0)),
            (4, 5, 5),
            {"w": (2, 4, 3, 3)},
            "pad",
        ),
        (
            Conv("c", ("x",), "y", "w", None, (1, 1), (3, 0, 0, 0)),
            (4, 5, 5),
            {"w": (2, 4, 3, 3)},
            "pad",
        ),
        (
            Conv("c", ("x",), "y", "w", None, (1, 1), (0, 0, 0, 0), 3),
            (4, 5, 5),
            {"w": (2, 4, 3, 3)},
            "groups 3",
        ),
        (
            Conv("c", ("x",), "y", "w", None, (1, 1), (0, 0, 0, 0), 0),
            (4, 5, 5),
            {"w": (2, 4, 3, 3)},
            "groups 0",
        ),
        (Conv("c", ("x",), "y", "w"), (1024, 200, 200), {"w": (1, 1024, 3, 3)}, "limit"),
        (Gemm("c", ("x",), "y", "w"), (4, 1, 1), {"w": (2, 4)}, "flatten"),
        (Gemm("c", ("x",), "y", "w"), (5,), {"w": (2, 4)}, "(2, 5)"),
        (Gemm("c", ("x",), "y", "w"), (4,), {"w": (4,)}, "two axes"),
        (Gemm("c", ("x",), "y", "w", "b"), (4,), {"w": (2, 4), "b": (4,)}, "'b'"),
        (PRelu("c", ("x",), "y", "w"), (4, 2, 2), {"w": (2,)}, "(4,)"),
        (Affine("c", ("x",), "y", "w", "b"), (4, 2, 2), {"w": (4,), "b": (1,)}, "'b'"),
        (Clip("c", ("x",), "y", 1.0, 0.0), (4,), {}, "in order"),
        (Clip("c", ("x",), "y", 0.0, float("inf")), (4,), {}, "finite"),
        (Clip("c", ("x",), "y", 0.0, float("nan")), (4,), {}, "finite"),
        (Add("c", ("x",), "y"), (4,), {}, "two inputs"),
        (Mul("c", ("x", "x", "x"), "y"), (4,), {}, "two inputs"),
        (Relu("c", ("x", "x"), "y"), (4,), {}, "one input"),
        (MaxPool("c", ("x",), "y", (2000, 1)), (4, 4, 4), {}, "kernel"),
        (MaxPool("c", ("x",), "y", (0, 1)), (4, 4, 4), {}, "kernel"),
        (MaxPool("c", ("x",), "y", (2, 2), (1, 1), (2, 0, 0, 0)), (4, 4, 4), {}, "pad"),
        (Reshape("c", ("x",), "y", (3, -1)), (4,), {}, "(3, -1)"),
        (Reshape("c", ("x",), "y", (-1, -1)), (4,), {}, "(-1, -1)"),
        (Reshape("c", ("x",), "y", (0, 4)), (4,), {}, "(0, 4)"),
        (Reshape("c", ("x",), "y", (2, 3)), (4,), {}, "(2, 3)"),
        (Reshape("c", ("x",), "y", ()), (4,), {}, "shape ()"),
        (Reshape("c", ("x",), "y", (-2, -2)), (4,), {}, "(-2, -2)"),
        (Concat("c", ("x",), "y"), (4,), {}, "channels only"),
        (Concat("c", ("x", "x"), "y", 2), (4, 1, 1), {}, "axis 2"),
        (L2Normalize("c", ("x",), "y", 0.0), (4,), {}, "eps"),
    ],
)
def test_layers_that_do_not_fit_are_named(layer, shape, tensors, says):
    with pytest.raises(GraphError, match=r"layer 'c'") as caught:
        single(layer, shape, **tensors).validate()
    assert says in str(caught.value)


def test_inputs_that_differ_in_shape():
    graph = every_operator()
    layers = (*graph.layers[:3], Add("add", ("x", "n"), "s"), *graph.layers[4:])
    with pytest.raises(GraphError, match=r"layer 'add' \(Add\)"):
        replace(graph, layers=layers).validate()


def test_forward_reference_and_cycle():
    graph = every_operator()
    first = replace(graph.layers[0], inputs=("p",))
    with pytest.raises(GraphError, match=r"'conv'.*'p' is not written by any layer before it"):
        replace(graph, layers=(first, *graph.layers[1:])).validate()
    with pytest.raises(GraphError, match="is not written"):
        single(Relu("self", ("y",), "y"), (4,)).validate()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"name": "conv"}, "taken"),
        ({"output": "a"}, "written already"),
        ({"output": "x"}, "written already"),
        ({"slope": "nothing"}, "no tensor 'nothing'"),
        ({"name": ""}, "not a name"),
        ({"name": "a\nb"}, "not a name"),
        ({"output": "n" * 201}, "not a name"),
    ],
)
def test_names(change, says):
    graph = every_operator()
    layers = (graph.layers[0], replace(graph.layers[1], **change), *graph.layers[2:])
    with pytest.raises(GraphError, match=says):
        replace(graph, layers=layers).validate()


def test_unused_tensors_and_layers_are_refused():
    graph = every_operator()
    with pytest.raises(GraphError, match="tensor 'spare' is read by no layer"):
        replace(graph, tensors={**graph.tensors, "spare": zeros(1)}).validate()
    with pytest.raises(GraphError, match="layer 'idle' serves no entry"):
        replace(graph, layers=(*graph.layers, Relu("idle", ("e",), "z"))).validate()


@pytest.mark.parametrize(
    "entry",
    [
        Entry("face", "x", (), "y"),
        Entry("face", "x", (0, 5, 7), "y"),
        Entry("face", "x", (1 << 27,), "y"),
        Entry("face", "x", (1, 5, 7), "nowhere"),
        Entry("face", "x", (1, 5, 7), "x"),
        Entry("", "x", (1, 5, 7), "y"),
    ],
)
def test_entries_that_cannot_be(entry):
    with pytest.raises(GraphError):
        replace(every_operator(), entries=(entry,)).validate()


def test_counts_are_capped():
    graph = every_operator()
    with pytest.raises(GraphError, match="0 entries"):
        replace(graph, entries=()).validate()
    with pytest.raises(GraphError, match="0 layers"):
        replace(graph, layers=()).validate()
    with pytest.raises(GraphError, match="'face' is there twice"):
        replace(graph, entries=graph.entries * 2).validate()
    with pytest.raises(GraphError, match="17 entries"):
        replace(graph, entries=graph.entries * 17).validate()
    chain = tuple(Relu(f"r{i}", (f"v{i}",), f"v{i + 1}") for i in range(5000))
    with pytest.raises(GraphError, match="5000 layers"):
        Graph((Entry("face", "v0", (1,), "v5000"),), chain, {}).validate()


def test_an_unknown_entry_lists_what_there_is():
    with pytest.raises(GraphError, match=r"no entry 'iris'; the graph has \['face'\]"):
        every_operator().entry("iris")


def changed(path: tuple[object, ...], value: object) -> dict:
    form = graph_to_dict(every_operator())
    place = form
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return form


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("layers",), {}),
        (("layers", 0), []),
        (("layers", 0), None),
        (("entries",), None),
        (("entries", 0), "face"),
        (("entries", 0, "shape"), [1, 5, True]),
        (("entries", 0, "shape"), [1, 5, 7.0]),
        (("entries", 0, "shape"), [1, 5, 1 << 40]),
        (("entries", 0, "shape"), [1] * 100),
        (("entries", 0, "more"), 1),
        (("more",), 1),
        (("layers", 0, "name"), 5),
        (("layers", 0, "inputs"), "x"),
        (("layers", 0, "inputs"), [1]),
        (("layers", 0, "stride"), [True, 1]),
        (("layers", 0, "stride"), [1]),
        (("layers", 0, "stride"), 1),
        (("layers", 0, "pad"), [0, 0, 0]),
        (("layers", 0, "pad"), [-1, 0, 0, 0]),
        (("layers", 0, "groups"), True),
        (("layers", 0, "groups"), "1"),
        (("layers", 0, "dilation"), [2, 2]),
        (("layers", 0, "weight"), None),
        (("layers", 0, "bias"), 0),
        (("layers", 6, "high"), "6"),
        (("layers", 6, "high"), True),
        (("layers", 11, "shape"), [2, None]),
    ],
)
def test_json_of_the_wrong_form(path, value):
    with pytest.raises(GraphError):
        graph_from_dict(changed(path, value), every_operator().tensors)


def test_a_missing_field_is_named():
    form = graph_to_dict(every_operator())
    del form["layers"][0]["stride"]
    with pytest.raises(GraphError, match=r"layer 'conv'.*missing: .'stride'"):
        graph_from_dict(form, every_operator().tensors)


@pytest.mark.parametrize("op", ["Softmax", "Layer", "", None, 3, ["Conv"]])
def test_an_unknown_operator_names_the_layer_and_what_is_supported(op):
    with pytest.raises(UnsupportedOperatorError, match=r"layer 'conv'.*supported: Add, Affine"):
        graph_from_dict(changed(("layers", 0, "op"), op), every_operator().tensors)


def test_reading_changes_nothing():
    form = graph_to_dict(every_operator())
    before = copy.deepcopy(form)
    graph_from_dict(form, every_operator().tensors)
    assert form == before


def test_merge_prefixes_everything_and_keeps_entries_apart():
    graph = every_operator()
    merged = merge_graphs(face=graph, voice=graph)
    assert [e.name for e in merged.entries] == ["face", "voice"]
    assert merged.entry("voice").input == "voice/x"
    assert len(merged.layers) == 2 * len(graph.layers)
    assert merged.layers[0].weight == "face/w"
    assert {layer.name.split("/")[0] for layer in merged.layers_of("voice")} == {"voice"}
    assert merged.tensors["voice/w"] is graph.tensors["w"]
    assert merged.infer_shapes("voice")["voice/y"] == (3,)


def test_merge_needs_graphs_with_one_entry():
    graph = every_operator()
    with pytest.raises(GraphError, match="voice: needs one entry to merge, has 2"):
        merge_graphs(face=graph, voice=merge_graphs(a=graph, b=graph))


def test_an_entry_cannot_read_the_input_of_another():
    layers = (Relu("a", ("x",), "p"), Relu("b", ("z",), "q"), Add("sum", ("p", "q"), "y"))
    entries = (Entry("one", "x", (2,), "y"), Entry("two", "z", (2,), "q"))
    with pytest.raises(GraphError, match="not computed before it from this entry's input"):
        Graph(entries, layers, {}).validate()
