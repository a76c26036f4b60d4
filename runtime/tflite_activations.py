"""Activation functions that TFLite computes as part of the operator before them.

As an operator of its own, an integer Relu is left to TFLite's plain kernels: inside a
convolution it costs nothing, and the range before it takes no part in the scale.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from edgeid.runtime.graph import Add, Clip, Conv, Gemm, Graph, Layer, Relu

_RELU = 1  # ActivationFunctionType
_CLIPS = {(-1.0, 1.0): 2, (0.0, 6.0): 3}


@dataclass(frozen=True)
class FusedActivation:
    """The activation that the two layers together write, and the function's number."""

    output: str
    function: int


def fused_activations(graph: Graph, entry: str) -> dict[str, FusedActivation]:
    """By what a convolution, fully connected layer or sum writes: the function that alone
    reads it."""
    layers = graph.layers_of(entry)
    readers = Counter(name for layer in layers for name in layer.inputs)
    readers[graph.entry(entry).output] += 1
    writers = {layer.output: layer for layer in layers}
    found = {}
    for layer in layers:
        function, before = _function(layer), layer.inputs[0]
        writer = writers.get(before)
        if function and readers[before] == 1 and isinstance(writer, Conv | Gemm | Add):
            found[before] = FusedActivation(layer.output, function)
    return found


def _function(layer: Layer) -> int:
    if isinstance(layer, Relu):
        return _RELU
    return _CLIPS.get((layer.low, layer.high), 0) if isinstance(layer, Clip) else 0
