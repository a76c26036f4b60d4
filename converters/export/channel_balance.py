"""Channels of like range, so that one scale for all of an activation loses little.

An activation in int8 has one scale. Where one channel reaches far beyond the others, they are
left with a few steps. Between two convolutions with a PRelu or Relu in between, a channel may
be divided by any positive number and the weights that read it multiplied by the same: the
function stays (Nagel et al. 2019, "Data-free quantization through weight equalization and
bias correction", section 4.1). Weights have scales for each output channel, so that those
of a depth-wise layer lose nothing by it; with others the disproportion is shared between
activations and weights (Xiao et al. 2023, "SmoothQuant", equation 4, migration strength 0.5).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from edgeid.runtime.encoding import FloatArray, encode_float32
from edgeid.runtime.graph import Conv, Graph, Layer, PRelu, Relu


def balance_channels(graph: Graph, reach: Mapping[str, FloatArray]) -> Graph:
    """The same function with channels of like range between convolutions.

    Args:
        graph: of one entry. Layers that share their weights with others stay as they are.
        reach: by activation, the greatest absolute value of each channel, (channels,).
    """
    tensors = dict(graph.tensors)
    for first, between, second in _chains(graph):
        height = reach[between.output]
        if first.output in reach:  # not where the function is part of the convolution
            height = np.maximum(height, reach[first.output])
        weight = tensors[second.weight].decode()
        # (outputs or 1, channels or their filters, height, width): what reads which channel
        depthwise = second.groups > 1
        axis = 0 if depthwise else 1
        columns = np.abs(weight).max(axis=tuple(i for i in range(4) if i != axis))
        columns = columns.reshape(len(height), -1).max(axis=1)
        factor = _factors(height, None if depthwise else columns)
        along = np.repeat(factor, weight.shape[axis] // len(factor))
        tensors[second.weight] = encode_float32(weight * _column(along, axis))
        for name in first.tensor_names():
            values = tensors[name].decode()
            tensors[name] = encode_float32(values / factor.reshape(-1, *[1] * (values.ndim - 1)))
    return replace(graph, tensors=tensors)


def _factors(height: FloatArray, columns: FloatArray | None) -> FloatArray:
    """What to divide each channel by: 1 in the middle, and where a channel is unused."""
    used = height > 0 if columns is None else (height > 0) & (columns > 0)
    if not used.any():
        return np.ones_like(height)
    ratio = np.where(used, height, 1)
    if columns is not None:
        ratio = np.sqrt(ratio / np.where(used, columns, 1))
    factor = np.where(used, ratio / np.median(ratio[used]), 1)
    return np.asarray(np.clip(factor, 1e-3, 1e3), np.float32)


def _column(values: FloatArray, axis: int) -> FloatArray:
    return values.reshape(-1, 1, 1, 1) if axis == 0 else values.reshape(1, -1, 1, 1)


def _chains(graph: Graph) -> Iterator[tuple[Conv, Layer, Conv]]:
    """Convolution, PRelu or Relu, convolution, where nothing else reads what is between."""
    readers: dict[str, list[Layer]] = {}
    for layer in graph.layers:
        for name in layer.inputs:
            readers.setdefault(name, []).append(layer)
    kept = {entry.output for entry in graph.entries}
    uses = Counter(name for layer in graph.layers for name in layer.tensor_names())

    def only_reader(layer: Layer) -> Layer | None:
        found = readers.get(layer.output, [])
        return found[0] if len(found) == 1 and layer.output not in kept else None

    for first in graph.layers:
        between = only_reader(first)
        if not isinstance(first, Conv) or not isinstance(between, PRelu | Relu):
            continue
        second = only_reader(between)
        if not isinstance(second, Conv) or second.groups not in (1, _outputs(graph, first)):
            continue
        if max(uses[name] for name in (*first.tensor_names(), second.weight)) == 1:
            yield first, between, second


def _outputs(graph: Graph, layer: Conv) -> int:
    return graph.tensors[layer.weight].shape[0]
