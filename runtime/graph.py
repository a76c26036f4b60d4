"""The one intermediate form of a network: typed layers over named tensors.

Converters produce it, the ``.edgeid`` file stores it, every engine runs it. The
vocabulary is that of ONNX; batch normalisation is folded before a network becomes a
graph. Activations are float32, NCHW. Weights live beside the layers in
``Graph.tensors`` under the names that the layers carry, so that two layers may share one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from edgeid.runtime.activation_scale import (
    MAX_SCALE,
    MIN_SCALE,
    ActivationScale,
    scales_from_dict,
    scales_to_dict,
)
from edgeid.runtime.encoding import Tensor
from edgeid.runtime.errors import GraphError
from edgeid.runtime.layer_json import (
    check_ints,
    check_keys,
    check_list,
    check_name,
    layer_from_dict,
    layer_to_dict,
)
from edgeid.runtime.layers import (
    MAX_ELEMENTS,
    OPERATORS,
    Add,
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv,
    Flatten,
    Gemm,
    GlobalAveragePool,
    L2Normalize,
    Layer,
    MaxPool,
    Mul,
    PRelu,
    Relu,
    Reshape,
    Shape,
)

__all__ = [
    "MAX_ELEMENTS",
    "MAX_ENTRIES",
    "MAX_LAYERS",
    "MAX_TENSORS",
    "OPERATORS",
    "Add",
    "Affine",
    "AveragePool",
    "Clip",
    "Concat",
    "Conv",
    "Entry",
    "Flatten",
    "Gemm",
    "GlobalAveragePool",
    "Graph",
    "L2Normalize",
    "Layer",
    "MaxPool",
    "Mul",
    "PRelu",
    "Relu",
    "Reshape",
    "Shape",
    "graph_from_dict",
    "graph_to_dict",
    "merge_graphs",
]

MAX_ENTRIES = 16
MAX_LAYERS = 4096
MAX_TENSORS = 16384


@dataclass(frozen=True)
class Entry:
    """A way into a graph: the activation to feed (shape without batch) and the one to read."""

    name: str
    input: str
    shape: tuple[int, ...]
    output: str


@dataclass(frozen=True)
class Graph:
    """Layers in execution order over named weights, with one or more entries.

    ``scales`` says, by activation, how an integer engine stores what convolutions and fully
    connected layers read, and ``table_scales``, by layer, what one step of its look-up tables
    stands for; other engines need neither. They fit the weights they were calibrated with:
    what changes layers or weights starts from a graph without.
    """

    entries: tuple[Entry, ...]
    layers: tuple[Layer, ...]
    tensors: dict[str, Tensor]
    scales: Mapping[str, ActivationScale] = field(default_factory=dict)
    table_scales: Mapping[str, float] = field(default_factory=dict)

    def entry(self, name: str) -> Entry:
        """The entry of that name; raises GraphError listing what there is."""
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise GraphError(f"no entry {name!r}; the graph has {[e.name for e in self.entries]}")

    @property
    def weight_count(self) -> int:
        """Weights of all entries; what several layers share counts once."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    def layers_of(self, entry_name: str) -> tuple[Layer, ...]:
        """The layers that the entry's output depends on, in execution order."""
        needed = {self.entry(entry_name).output}
        found = []
        for layer in reversed(self.layers):
            if layer.output in needed:
                needed.update(layer.inputs)
                found.append(layer)
        return tuple(reversed(found))

    def infer_shapes(self, entry_name: str) -> dict[str, Shape]:
        """Shape without batch of every activation that the entry computes, its input included.

        Raises:
            GraphError: naming the layer that does not fit.
        """
        entry = self.entry(entry_name)
        if not entry.shape or min(entry.shape) < 1 or math.prod(entry.shape) > MAX_ELEMENTS:
            raise GraphError(f"entry {entry.name!r}: shape {entry.shape} is empty or too large")
        weights = {name: tensor.shape for name, tensor in self.tensors.items()}
        shapes: dict[str, Shape] = {entry.input: entry.shape}
        for layer in self.layers_of(entry_name):
            shapes[layer.output] = _layer_shape(layer, shapes, weights)
        if entry.output not in shapes or entry.output == entry.input:
            raise GraphError(f"entry {entry.name!r}: no layer writes its output {entry.output!r}")
        return shapes

    def validate(self) -> None:
        """Raise GraphError, naming the layer, unless every entry of the graph can be run."""
        _check_counts(self)
        _check_wiring(self)
        used: set[str] = set()
        for entry in self.entries:
            self.infer_shapes(entry.name)
            used.update(layer.name for layer in self.layers_of(entry.name))
        idle = [layer.name for layer in self.layers if layer.name not in used]
        if idle:
            raise GraphError(f"layer {idle[0]!r} serves no entry: remove it")
        read = {name for layer in self.layers for name in layer.tensor_names()}
        spare = sorted(self.tensors.keys() - read)
        if spare:
            raise GraphError(f"tensor {spare[0]!r} is read by no layer: remove it")
        _check_scales(self)


def _layer_shape(layer: Layer, shapes: Mapping[str, Shape], weights: Mapping[str, Shape]) -> Shape:
    for name in layer.inputs:
        if name not in shapes:
            raise layer.error(f"input {name!r} is not computed before it from this entry's input")
    for name in layer.tensor_names():
        if name not in weights:
            raise layer.error(f"there is no tensor {name!r}")
    shape = layer.output_shape([shapes[name] for name in layer.inputs], weights)
    if math.prod(shape) > MAX_ELEMENTS:
        raise layer.error(f"output shape {shape} is above the limit of {MAX_ELEMENTS} values")
    return shape


def _check_counts(graph: Graph) -> None:
    for what, count, most in (
        ("entries", len(graph.entries), MAX_ENTRIES),
        ("layers", len(graph.layers), MAX_LAYERS),
        ("tensors", len(graph.tensors), MAX_TENSORS),
    ):
        if count > most or (count == 0 and what != "tensors"):
            raise GraphError(f"the graph has {count} {what}, allowed are 1..{most}")


def _check_wiring(graph: Graph) -> None:
    """Names are unique and every activation is written before it is read."""
    names = [entry.name for entry in graph.entries]
    for name in names:
        check_name(name, "entry")
        if names.count(name) > 1:
            raise GraphError(f"entry {name!r} is there twice")
    written = {check_name(entry.input, f"entry {entry.name!r}") for entry in graph.entries}
    seen: set[str] = set()
    for layer in graph.layers:
        check_name(layer.name, "layer")
        if layer.name in seen:
            raise layer.error("the name is taken by a layer before it")
        seen.add(layer.name)
        for name in layer.inputs:
            if name not in written:
                raise layer.error(f"input {name!r} is not written by any layer before it")
        if check_name(layer.output, f"layer {layer.name!r}") in written:
            raise layer.error(f"output {layer.output!r} is written already")
        written.add(layer.output)


def _check_scales(graph: Graph) -> None:
    known = {entry.input for entry in graph.entries} | {layer.output for layer in graph.layers}
    for name, scale in graph.scales.items():
        if name not in known:
            raise GraphError(
                f"there is a scale for activation {name!r:.80}, which no layer or entry has: "
                "calibrate the scales after the layers have changed"
            )
        if not isinstance(scale, ActivationScale):
            raise GraphError(f"the scale of activation {name!r} is a {type(scale).__name__}")
    layers = {layer.name for layer in graph.layers}
    for name, value in graph.table_scales.items():
        if name not in layers:
            raise GraphError(f"there is a table scale for layer {name!r:.80}, which is not there")
        if type(value) not in (int, float) or not MIN_SCALE <= value <= MAX_SCALE:
            raise GraphError(f"table scale of layer {name!r} is {value!r:.80}, not 2^-119..2^119")


def graph_to_dict(graph: Graph) -> dict[str, Any]:
    """JSON form of entries, layers and scales; the tensors are stored beside it."""
    scales: dict[str, Any] = {}
    if graph.scales:
        scales["scales"] = scales_to_dict(graph.scales)
    if graph.table_scales:
        scales["table_scales"] = {name: float(v) for name, v in graph.table_scales.items()}
    return scales | {
        "entries": [
            {"name": e.name, "input": e.input, "shape": list(e.shape), "output": e.output}
            for e in graph.entries
        ],
        "layers": [layer_to_dict(layer) for layer in graph.layers],
    }


def _entry_from_dict(value: object, where: str) -> Entry:
    found = check_keys(value, {"name", "input", "shape", "output"}, where)
    return Entry(
        name=check_name(found["name"], where),
        input=check_name(found["input"], where),
        shape=check_ints(found["shape"], where),
        output=check_name(found["output"], where),
    )


def graph_from_dict(value: object, tensors: Mapping[str, Tensor]) -> Graph:
    """The validated graph that ``graph_to_dict`` wrote, over ``tensors``.

    Raises:
        UnsupportedOperatorError: naming the layer, the operator and what is supported.
        GraphError: naming the layer or field that is wrong.
    """
    if isinstance(value, dict):
        value = {"scales": {}, "table_scales": {}} | value  # older files have none
    found = check_keys(value, {"entries", "layers", "scales", "table_scales"}, "graph")
    entries = check_list(found["entries"], MAX_ENTRIES, "graph, entries")
    layers = check_list(found["layers"], MAX_LAYERS, "graph, layers")
    graph = Graph(
        entries=tuple(_entry_from_dict(e, f"entry number {i}") for i, e in enumerate(entries)),
        layers=tuple(layer_from_dict(v, f"layer number {i}") for i, v in enumerate(layers)),
        tensors=dict(tensors),
        scales=scales_from_dict(found["scales"]),
        table_scales=_table_scales(found["table_scales"]),
    )
    graph.validate()
    return graph


def _table_scales(value: object) -> dict[str, float]:
    if not isinstance(value, dict):
        raise GraphError(f"graph, table_scales: expected an object, found {type(value).__name__}")
    return {check_name(name, "graph, table_scales"): scale for name, scale in value.items()}


def rename_layer(layer: Layer, rename: Callable[[str], str]) -> Layer:
    """The layer with other names for itself, its tensors and activations."""
    tensors = set(layer.tensor_names())
    renamed = {
        field.name: rename(getattr(layer, field.name))
        for field in fields(layer)
        if field.name in ("name", "output") or getattr(layer, field.name) in tensors
    }
    return replace(layer, inputs=tuple(rename(name) for name in layer.inputs), **renamed)


def merge_graphs(**graphs: Graph) -> Graph:
    """One graph with an entry a keyword: ``merge_graphs(face=a, voice=b)``.

    Layers, activations, their scales and tensors of each take the prefix ``face/``, ``voice/`` ...

    Raises:
        GraphError: a graph does not have exactly one entry, or the result is not valid.
    """
    entries: list[Entry] = []
    layers: list[Layer] = []
    tensors: dict[str, Tensor] = {}
    scales: dict[str, ActivationScale] = {}
    table_scales: dict[str, float] = {}
    for name, graph in graphs.items():
        if len(graph.entries) != 1:
            raise GraphError(f"{name}: needs one entry to merge, has {len(graph.entries)}")
        entry, prefix = graph.entries[0], f"{name}/"
        entries.append(Entry(name, prefix + entry.input, entry.shape, prefix + entry.output))
        layers.extend(rename_layer(layer, prefix.__add__) for layer in graph.layers)
        tensors.update({prefix + key: tensor for key, tensor in graph.tensors.items()})
        scales.update({prefix + key: scale for key, scale in graph.scales.items()})
        table_scales.update({prefix + key: scale for key, scale in graph.table_scales.items()})
    merged = Graph(tuple(entries), tuple(layers), tensors, scales, table_scales)
    merged.validate()
    return merged
