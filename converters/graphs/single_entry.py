"""One network of a merged graph, by itself."""

from __future__ import annotations

from edgeid.runtime.encoding import Tensor, encode_float32
from edgeid.runtime.graph import Entry, Graph, rename_layer


def decoded_entry(graph: Graph, entry: str) -> Graph:
    """An entry in float32, without activation scales, under the names it had before merging.

    Raises:
        GraphError: there is no such entry.
    """

    def before(name: str) -> str:
        return name.removeprefix(f"{entry}/")

    found = graph.entry(entry)
    layers = graph.layers_of(entry)
    names = sorted({name for layer in layers for name in layer.tensor_names()})
    tensors: dict[str, Tensor] = {
        before(name): encode_float32(graph.tensors[name].decode().copy()) for name in names
    }
    alone = Graph(
        (Entry(entry, before(found.input), found.shape, before(found.output)),),
        tuple(rename_layer(layer, before) for layer in layers),
        tensors,
    )
    alone.validate()
    return alone
