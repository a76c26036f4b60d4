"""One entry of a graph as a graph of its own, with names that a user can rely on."""

from __future__ import annotations

from dataclasses import replace

from edgeid.runtime.graph import Entry, Graph, Layer


def single_entry(graph: Graph, name: str) -> Graph:
    """The entry with the layers and weights it needs.

    Its input is called ``<entry>_input`` and its output ``<entry>_output``, whatever the tool
    called them that made the network.

    Raises:
        GraphError: no such entry, or its layers do not fit together.
    """
    entry = graph.entry(name)
    graph.infer_shapes(name)  # raises where the layers do not fit
    renamed: dict[str, str] = {}
    for old, new in ((entry.input, f"{name}_input"), (entry.output, f"{name}_output")):
        renamed |= {new: old, old: new}  # should the name be taken, the two change places
    layers = tuple(_renamed(layer, renamed) for layer in graph.layers_of(name))
    read = {tensor for layer in layers for tensor in layer.tensor_names()}
    tensors = {key: tensor for key, tensor in graph.tensors.items() if key in read}
    new_entry = Entry(name, renamed[entry.input], entry.shape, renamed[entry.output])
    return Graph((new_entry,), layers, tensors)


def _renamed(layer: Layer, names: dict[str, str]) -> Layer:
    inputs = tuple(names.get(name, name) for name in layer.inputs)
    return replace(layer, inputs=inputs, output=names.get(layer.output, layer.output))
