"""One entry of a graph as a TFLite file: batch norms folded, names that a user can rely on."""

from __future__ import annotations

from edgeid.converters.export.entry_graph import single_entry
from edgeid.converters.graphs.normalisation import fold_norms
from edgeid.runtime.graph import Graph
from edgeid.runtime.tflite_layers import graph_to_tflite


def tflite_bytes(graph: Graph, entry: str, description: str = "") -> bytes:
    """A TFLite model of one entry: input (N, *shape) float32, output (N, ...) float32.

    Weights are float32; an Affine is folded into the layer before it. See
    ``graph_to_tflite``, which the runtime's LiteRT engine uses as well.

    Args:
        graph: a valid graph.
        entry: the name of the entry.
        description: text for people that the file carries.

    Raises:
        GraphError: no such entry, or a layer that TFLite cannot express, by name.
    """
    return graph_to_tflite(fold_norms(single_entry(graph, entry)), entry, description)
