"""Put a student network in the place of an entry's network."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import nn

from edgeid.converters.graphs.torch_graph import export_torch
from edgeid.converters.networks.student import CompactStudent
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.graph import Graph, merge_graphs


def make_student(
    graph: Graph, entry: str, channels: tuple[int, ...], units: tuple[int, ...], extra: int = 0
) -> CompactStudent:
    """A student with the entry's input and embedding size, and ``extra`` outputs behind it.

    Raises:
        DataError: channels and units are no plan of stages.
        GraphError: the input has no height and width, or the student is not smaller.
    """
    shape, size = graph.entry(entry).shape, embedding_size(graph, entry)
    if len(shape) != 3:
        raise GraphError(
            f"entry {entry!r} takes {shape}: a student needs (channels, height, width)"
        )
    if not channels or len(channels) != len(units) or min(channels) < 1 or min(units) < 0:
        raise DataError(f"a student needs channels and units of each stage: {channels}, {units}")
    made = CompactStudent((shape[0], shape[1], shape[2]), size, channels, units)
    weights, before = sum(p.numel() for p in made.parameters()), count_weights(graph, entry)
    if weights >= before:
        raise GraphError(
            f"the student has {weights:,} weights and the network of {entry!r} {before:,}: "
            f"give fewer channels than {channels}"
        )
    if extra:
        made.embed = nn.Linear(made.embed.in_features, size + extra)
    return made


def embedding_size(graph: Graph, entry: str) -> int:
    """Numbers in the embedding."""
    return math.prod(graph.infer_shapes(entry)[graph.entry(entry).output])


def count_weights(graph: Graph, entry: str) -> int:
    """Weights that an entry reads, what layers share counted once."""
    read = {name for layer in graph.layers_of(entry) for name in layer.tensor_names()}
    return sum(math.prod(graph.tensors[name].shape) for name in read)


def replace_entry(graph: Graph, entry: str, network: nn.Module) -> Graph:
    """The graph with ``network`` in an entry's place; the other entries stay as they are.

    What other entries share with the old network stays; activation scales do not, since they
    are calibrated anew when all is done.
    """
    old = graph.entry(entry)
    others = [one.name for one in graph.entries if one.name != entry]
    kept = {layer.name for name in others for layer in graph.layers_of(name)}
    layers = tuple(layer for layer in graph.layers if layer.name in kept)
    read = {name for layer in layers for name in layer.tensor_names()}
    made = export_torch(network, old.shape, entry)
    new = merge_graphs(**{_free_prefix(graph, entry): made})
    changed = Graph(
        tuple(replace(new.entries[0], name=entry) if e is old else e for e in graph.entries),
        (*layers, *new.layers),
        {name: tensor for name, tensor in graph.tensors.items() if name in read} | new.tensors,
    )
    changed.validate()
    return changed


def _free_prefix(graph: Graph, entry: str) -> str:
    """A prefix that no name of the graph begins with: students may follow on students."""
    names = {name for layer in graph.layers for name in (layer.name, layer.output, *layer.inputs)}
    names |= graph.tensors.keys()
    number = 1
    while any(name.startswith(f"{entry}-student{number}/") for name in names):
        number += 1
    return f"{entry}-student{number}"


def check_replaced(before: Graph, after: Graph, entries: tuple[str, ...]) -> None:
    """Raise GraphError unless the entries' networks, and no others, became smaller ones."""
    for entry in (e.name for e in before.entries):
        if entry not in entries:
            if before.layers_of(entry) != after.layers_of(entry):
                raise GraphError(f"entry {entry!r} has changed and should not have")
            continue
        if embedding_size(before, entry) != embedding_size(after, entry):
            raise GraphError(f"the embedding of entry {entry!r} has another size")
        if count_weights(before, entry) <= count_weights(after, entry):
            raise GraphError(f"the network of entry {entry!r} was not replaced by a smaller one")
