"""Entries of a graph as an ONNX model, with decoded weights or with the weights as stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import helper, numpy_helper

from edgeid.converters.export.entry_graph import single_entry
from edgeid.converters.export.onnx_weights import WeightDecoder
from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import Graph
from edgeid.runtime.onnx_bytes import graph_to_onnx_parts


def onnx_bytes(
    graph: Graph,
    entries: Sequence[str],
    *,
    decoded: bool = True,
    notes: Mapping[str, str] | None = None,
) -> bytes:
    """An ONNX model (opset 18): for each entry the input ``<entry>_input`` (N, *shape) and the
    output ``<entry>_output`` (N, ...), both float32.

    A model of several entries runs all of them: where one is not wanted, an empty batch
    (0, *shape) costs nothing.

    Args:
        graph: a valid graph.
        entries: names of entries, one or more.
        decoded: float32 weights; otherwise they are kept as they are stored (codewords and
            indices, dictionaries, int8, float16), with nodes that decode them. What entries
            share is stored once. Weights below 256 values are float32 in both.
        notes: text by key, for the metadata of the file.

    Raises:
        GraphError: no such entry, or two entries share layers and not only weights.
    """
    singles = [single_entry(graph, name) for name in entries]
    parts = [graph_to_onnx_parts(one, name) for one, name in zip(singles, entries, strict=True)]
    models = [onnx.load_model_from_string(data) for data, _ in parts]
    model = models[0]
    for name, other in zip(entries[1:], models[1:], strict=True):
        for value in (*other.graph.input, *other.graph.output):  # the batches may differ
            value.type.tensor_type.shape.dim[0].dim_param = f"N_{name}"
        _join(model.graph, other.graph)
    weights = {name: values for _, some in parts for name, values in some.items()}
    _write_weights(model.graph, graph, weights, decoded)
    if notes:
        helper.set_model_props(model, dict(notes))
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _join(graph: Any, other: Any) -> None:
    written = {name for node in graph.node for name in node.output}
    shared = written.intersection(name for node in other.node for name in node.output)
    if shared:
        raise GraphError(f"entries share the layer that writes {min(shared)!r}: export them apart")
    graph.node.extend(other.node)
    graph.input.extend(other.input)
    graph.output.extend(other.output)
    known = {constant.name for constant in graph.initializer}
    graph.initializer.extend(c for c in other.initializer if c.name not in known)


def _write_weights(model: Any, graph: Graph, weights: Mapping[str, Any], decoded: bool) -> None:
    """Put the larger weights, which were left out, into the model."""
    small = [constant for constant in model.initializer if constant.name not in weights]
    del model.initializer[:]
    model.initializer.extend(small)
    if decoded:
        model.initializer.extend(numpy_helper.from_array(v, n) for n, v in weights.items())
        return
    # the writer calls a constant const:<tensor>:<how it is shaped>
    stored = {n: graph.tensors[n.removeprefix("const:").rpartition(":")[0]] for n in weights}
    decoder = WeightDecoder(stored.values())
    for name, tensor in stored.items():
        decoder.add(name, tensor, weights[name].shape)
    nodes = [*decoder.nodes, *model.node]
    del model.node[:]
    model.node.extend(nodes)
    model.initializer.extend(decoder.initializers)
