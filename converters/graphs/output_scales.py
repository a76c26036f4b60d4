"""A scale of its own for each output channel, apart from the weight.

Folding batch norms leaves the filters of a layer at very different lengths. A codebook does
better on filters of one length, and two networks share one more easily, so the length is
taken out and kept in an Affine layer, which engines fuse with the convolution before it. It
is also what calibration trains in place of the batch norm.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace

import numpy as np

from edgeid.runtime.encoding import FloatArray, encode_float32
from edgeid.runtime.graph import Affine, Conv, Gemm, Graph, Layer


def with_output_scales(graph: Graph, weights: Collection[str]) -> Graph:
    """Each layer over one of ``weights`` becomes a layer without bias and an Affine.

    Each filter is divided by the root of its mean square, so that a weight is about 1. What
    the layer wrote is written by the Affine, under its old name. An Affine that follows
    already takes the scale up. The outputs stay the same.
    """
    tensors = dict(graph.tensors)
    lengths: dict[str, FloatArray] = {}
    for name in weights:
        weight = tensors[name].decode()
        lengths[name] = _filter_lengths(weight)
        column = lengths[name].reshape(-1, *[1] * (weight.ndim - 1))
        tensors[name] = encode_float32(weight / column)
    following = affines(graph)
    layers: list[Layer] = []
    for layer in graph.layers:
        if not isinstance(layer, Conv | Gemm) or layer.weight not in lengths:
            layers.append(layer)
            continue
        affine = following.get(layer.name) or _new_affine(layer)
        old = graph.tensors
        one, zero = (np.full(len(lengths[layer.weight]), v, np.float32) for v in (1, 0))
        scale = old[affine.weight].decode() if affine.weight in old else one
        shift = old[affine.bias].decode() if affine.bias in old else zero
        bias = zero if layer.bias is None else old[layer.bias].decode()
        tensors[affine.weight] = encode_float32(scale * lengths[layer.weight])
        tensors[affine.bias] = encode_float32(scale * bias + shift)
        layers.append(replace(layer, output=affine.inputs[0], bias=None))
        if layer.name not in following:
            layers.append(affine)
    read = {name for layer in layers for name in layer.tensor_names()}
    tensors = {name: tensor for name, tensor in tensors.items() if name in read}
    changed = replace(graph, layers=tuple(layers), tensors=tensors)
    changed.validate()
    return changed


def affines(graph: Graph) -> dict[str, Affine]:
    """By weighted layer the Affine that alone reads what it writes, with tensors of its own."""
    readers = Counter(name for layer in graph.layers for name in layer.inputs)
    readers.update(entry.output for entry in graph.entries)
    holders = Counter(name for layer in graph.layers for name in layer.tensor_names())
    writers = {layer.output: layer.name for layer in graph.layers if isinstance(layer, Conv | Gemm)}
    return {
        writers[layer.inputs[0]]: layer
        for layer in graph.layers
        if isinstance(layer, Affine)
        and layer.inputs[0] in writers
        and readers[layer.inputs[0]] == holders[layer.weight] == holders[layer.bias] == 1
    }


def _new_affine(layer: Conv | Gemm) -> Affine:
    return Affine(
        f"{layer.name}.affine",
        (f"{layer.output}.raw",),
        layer.output,
        f"{layer.name}.scale",
        f"{layer.name}.shift",
    )


def _filter_lengths(weight: FloatArray) -> FloatArray:
    rows = weight.reshape(len(weight), -1)
    length = np.sqrt(np.square(rows, dtype=np.float64).mean(axis=1)).astype(np.float32)
    return np.where(length > 1e-20, length, np.float32(1))  # a dead filter stays one
