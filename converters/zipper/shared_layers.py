"""Layers that two entries of one architecture have in common: pairing them, one weight for both.

Sharing is by tensor name: two layers that name one tensor share it in the file, in every
engine, and as one parameter in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgeid.converters.zipper.filter_alignment import Weighted
from edgeid.runtime.encoding import FloatArray, encode_float32
from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import (
    Affine,
    AveragePool,
    Conv,
    Flatten,
    Gemm,
    GlobalAveragePool,
    Graph,
    Layer,
)

Pair = tuple[Weighted, Weighted]


def weighted_layers(graph: Graph, entry: str) -> tuple[Weighted, ...]:
    """Convolutions and fully connected layers of an entry, in execution order."""
    return tuple(x for x in graph.layers_of(entry) if isinstance(x, Conv | Gemm))


def paired_layers(graph: Graph, entries: tuple[str, str]) -> tuple[Pair, ...]:
    """The k-th weighted layer of the one entry with the k-th of the other.

    Fully connected layers may differ in their inputs where one of them averages over
    positions first, see ``absorb_average``.

    Raises:
        GraphError: the entries are not of one architecture, naming the first difference.
    """
    left, right = (weighted_layers(graph, entry) for entry in entries)
    if len(left) != len(right):
        raise GraphError(
            f"{entries[0]!r} has {len(left)} layers with weights, {entries[1]!r} {len(right)}: "
            "zippering needs two networks of one architecture"
        )
    for number, (a, b) in enumerate(zip(left, right, strict=True), 1):
        shapes = [graph.tensors[layer.weight].shape for layer in (a, b)]
        same = _settings(a) == _settings(b) and shapes[0][0] == shapes[1][0]
        if not same or (shapes[0] != shapes[1] and not _absorbable(graph, entries, a, b)):
            raise GraphError(
                f"layer {number}: {a.name!r} ({a.op} {shapes[0]}) and {b.name!r} ({b.op} "
                f"{shapes[1]}) differ: zippering needs two networks of one architecture"
            )
    return tuple(zip(left, right, strict=True))


def block_pairs(graph: Graph, block: Sequence[int], entries: tuple[str, str]) -> list[Pair]:
    """The pairs of the layers of a block, counted from 1."""
    pairs = paired_layers(graph, entries)
    return [pairs[number - 1] for number in block]


def shared_name(number: int) -> str:
    """Of the weight that both entries' layers number ``number`` share."""
    return f"shared/{number:02}.weight"


def norm_after(graph: Graph, layer: Weighted) -> Affine:
    """The norm that reads a layer."""
    return next(x for x in graph.layers if isinstance(x, Affine) and x.inputs[0] == layer.output)


def _settings(layer: Weighted) -> tuple[object, ...]:
    if isinstance(layer, Gemm):
        return (layer.op,)
    return (layer.op, layer.stride, layer.pad, layer.groups)


def _absorbable(graph: Graph, entries: tuple[str, str], a: Weighted, b: Weighted) -> bool:
    if not isinstance(a, Gemm) or not isinstance(b, Gemm):
        return False
    inputs = []
    for entry, layer in zip(entries, (a, b), strict=True):
        pool = _average_before(graph, layer)
        source = layer.inputs[0] if pool is None else pool.inputs[0]
        inputs.append(int(np.prod(graph.infer_shapes(entry)[source])))
    return inputs[0] == inputs[1]


def absorb_average(graph: Graph, entry: str, layer: Weighted) -> Graph:
    """Take the averaging before a fully connected layer into its weight; the same outputs.

    Averaging is linear, so the layer becomes one over all positions whose weights repeat,
    each divided by the size of the window. Nothing changes where no averaging comes before.
    """
    pool = _average_before(graph, layer)
    if pool is None:
        return graph
    shapes = graph.infer_shapes(entry)
    channels, height, width = shapes[pool.inputs[0]]
    spread = _averaging_matrix(pool, height, width)  # (pooled positions, positions)
    weight = graph.tensors[layer.weight].decode()
    wide = weight.reshape(len(weight), channels, -1) @ spread
    flat = next(x for x in graph.layers if x.output == layer.inputs[0])
    layers = tuple(
        replace(x, inputs=pool.inputs) if x is flat else x for x in graph.layers if x is not pool
    )
    tensors = graph.tensors | {layer.weight: encode_float32(wide.reshape(len(weight), -1))}
    graph = replace(graph, layers=layers, tensors=tensors)
    graph.validate()
    return graph


def _average_before(graph: Graph, layer: Layer) -> AveragePool | GlobalAveragePool | None:
    """The averaging whose flattened result ``layer`` alone reads."""
    writers = {x.output: x for x in graph.layers}
    flat = writers.get(layer.inputs[0])
    pool = writers.get(flat.inputs[0]) if isinstance(flat, Flatten) else None
    if flat is None or not isinstance(pool, AveragePool | GlobalAveragePool):
        return None
    reads = [name for x in graph.layers for name in x.inputs]
    alone = reads.count(flat.output) == 1 and reads.count(pool.output) == 1
    return pool if alone else None


def _averaging_matrix(pool: AveragePool | GlobalAveragePool, height: int, width: int) -> FloatArray:
    """Row o holds what the positions of a map add to position o of the pooled map."""
    if isinstance(pool, GlobalAveragePool):
        return np.full((1, height * width), 1 / (height * width), np.float32)
    rows = []
    top, left, bottom, right = pool.pad
    for y in range(-top, height + bottom - pool.kernel[0] + 1, pool.stride[0]):
        for x in range(-left, width + right - pool.kernel[1] + 1, pool.stride[1]):
            window = np.zeros((height, width), np.float32)
            window[max(y, 0) : y + pool.kernel[0], max(x, 0) : x + pool.kernel[1]] = 1
            rows.append(window.reshape(-1) / window.sum())
    return np.stack(rows)


def share_weights(
    graph: Graph, pairs: Sequence[tuple[Weighted, Weighted, str]], balance: bool
) -> Graph:
    """Let each pair of layers share the mean of their weights (paper 004, equation 1).

    Args:
        pairs: two layers with aligned filters, and the name of the tensor they will share.
        balance: bring both filters of a pair to one length, that of the second, before
            taking the mean. Each entry's norm takes up the change once its statistics are
            taken again.
    """
    for a, b, name in pairs:
        left, right = (graph.tensors[layer.weight].decode() for layer in (a, b))
        if balance:
            left = left * _lengths_ratio(right, left)
        graph = share_weight(graph, (a, b), name, (left + right) * np.float32(0.5))
    return graph


def share_weight(graph: Graph, layers: Pair, name: str, weight: FloatArray) -> Graph:
    """Let two layers read ``weight``, which takes the name ``name``."""
    old = {layer.weight for layer in layers}
    names = {layer.name for layer in layers}
    readers = [x.name for x in graph.layers if old & set(x.tensor_names())]
    if set(readers) != names:
        raise GraphError(f"layers {sorted(set(readers) - names)} share these weights already")
    kept = {key: tensor for key, tensor in graph.tensors.items() if key not in old}
    kept[name] = encode_float32(weight)
    changed = tuple(
        replace(x, weight=name) if x.name in names and isinstance(x, Conv | Gemm) else x
        for x in graph.layers
    )
    graph = replace(graph, layers=changed, tensors=kept)
    graph.validate()
    return graph


def _lengths_ratio(reference: FloatArray, moved: FloatArray) -> FloatArray:
    """|reference| / |moved| of every filter; 1 where one of them is zero."""
    ours, theirs = (np.linalg.norm(w.reshape(len(w), -1), axis=1) for w in (moved, reference))
    usable = (ours > 0) & (theirs > 0)
    ratio = np.divide(theirs, ours, out=np.ones_like(ours), where=usable)
    return np.asarray(ratio.reshape(-1, *[1] * (moved.ndim - 1)), np.float32)
