"""A fully connected layer over a feature map is a convolution whose kernel is the map.

Written as one, its weights are cut along the channels like any other kernel's, and all
positions of the map share a codebook: a codebook for every few pixels would cost more than
the indices. The function of the network stays the same.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.graph import Conv, Flatten, Gemm, Graph, Layer, Shape


def as_convolutions(graph: Graph) -> Graph:
    """Replace Flatten + Gemm by Conv + Flatten wherever the map is larger than 1x1.

    A weight that is shared with a layer that cannot be rewritten stays as it is.
    """
    maps = _maps(graph)
    wanted: dict[str, set[Shape | None]] = {}
    for layer in graph.layers:
        for name in layer.tensor_names():
            wanted.setdefault(name, set()).add(maps.get(layer.name))
    layers: list[Layer] = []
    tensors = dict(graph.tensors)
    sources = {layer.output: layer for layer in graph.layers}
    for layer in graph.layers:
        shape = maps.get(layer.name)
        if not isinstance(layer, Gemm) or shape is None or wanted[layer.weight] != {shape}:
            layers.append(layer)
            continue
        between = f"{layer.output}.map"
        source = sources[layer.inputs[0]].inputs
        layers.append(Conv(layer.name, source, between, layer.weight, layer.bias))
        layers.append(Flatten(f"{layer.name}.flatten", (between,), layer.output))
        matrix = graph.tensors[layer.weight].decode()
        kernel = np.ascontiguousarray(matrix.reshape(len(matrix), *shape))
        tensors[layer.weight] = encode_float32(kernel)
    changed = replace(graph, layers=_without_unread(layers, graph), tensors=tensors)
    changed.validate()
    return changed


def _maps(graph: Graph) -> dict[str, Shape]:
    """Shape (channels, height, width) of the map that each Gemm reads through a Flatten."""
    found: dict[str, Shape] = {}
    for entry in graph.entries:
        shapes = graph.infer_shapes(entry.name)
        flat = {x.output: x.inputs[0] for x in graph.layers_of(entry.name) if x.op == Flatten.op}
        for layer in graph.layers_of(entry.name):
            if isinstance(layer, Gemm) and layer.inputs[0] in flat:
                shape = shapes[flat[layer.inputs[0]]]
                if len(shape) == 3 and shape[1] * shape[2] > 1:
                    found[layer.name] = shape
    return found


def _without_unread(layers: list[Layer], graph: Graph) -> tuple[Layer, ...]:
    """Without the Flatten layers that nothing reads any more."""
    read = {name for layer in layers for name in layer.inputs} | {e.output for e in graph.entries}
    return tuple(x for x in layers if x.output in read or not isinstance(x, Flatten))
