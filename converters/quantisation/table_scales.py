"""What one step of a look-up table stands for, chosen on sample inputs, a number a layer.

The native engine keeps the products of activations and codewords in eight bits
(``runtime/native/program.py``). As with activations, covering the largest makes all steps
larger: the step of least squared error is taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.codebook import Codebook, sub_spaces
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.graph import Conv, Gemm, Graph
from edgeid.runtime.native import program as p
from edgeid.runtime.native.planner import plan

POSITIONS = 64  # of an image, drawn at random
VALUES = 1 << 20  # of a layer, at most, that a step is chosen on
FRACTIONS = np.geomspace(0.15, 1, 24)  # of the largest entry, that 127 steps may reach


def looked_up(graph: Graph, entry: str) -> dict[str, Conv | Gemm]:
    """The layers that the native engine computes by look-up, by name."""
    steps = plan(graph, entry).steps
    names = {
        step.name
        for step in steps
        if isinstance(step, p.Convolution) and isinstance(step.weights, p.LookupWeights)
    }
    layers = (x for x in graph.layers_of(entry) if isinstance(x, Conv | Gemm))
    return {layer.name: layer for layer in layers if layer.name in names}


def choose_table_scales(
    graph: Graph, layers: Mapping[str, Conv | Gemm], inputs: Iterable[tuple[str, FloatArray]]
) -> dict[str, float]:
    """The step of each layer's table entries.

    Args:
        graph: with scales.
        layers: from ``looked_up``.
        inputs: activations (N, channels, ...) by name; of those that no layer of ``layers``
            reads nothing is taken.
    """
    rng = np.random.default_rng(0)
    seen: dict[str, list[FloatArray]] = {name: [] for name in layers}
    for name, x in inputs:
        for layer in layers.values():
            if layer.inputs[0] == name:
                seen[layer.name].append(_entries(graph, layer, x, rng))
    return {
        name: least_error_step(np.concatenate(values)) for name, values in seen.items() if values
    }


def _entries(
    graph: Graph, layer: Conv | Gemm, x: FloatArray, rng: np.random.Generator
) -> FloatArray:
    """Entries of the tables at some positions of every image, flat."""
    codebook = graph.tensors[layer.weight]
    assert isinstance(codebook, Codebook)  # by ``looked_up``
    scale = graph.scales[layer.inputs[0]]
    spaces, length = sub_spaces(codebook.weight_shape, codebook.length), codebook.length
    rounded = scale.dequantise(scale.quantise(x))
    columns = rounded.reshape(*x.shape[:2], -1).transpose(0, 2, 1)  # (N, positions, channels)
    some = rng.integers(0, columns.shape[1], min(POSITIONS, columns.shape[1]))
    vectors = np.zeros((len(x) * len(some), spaces * length), np.float32)
    vectors[:, : columns.shape[2]] = columns[:, some].reshape(len(vectors), -1)
    codewords = codebook.decode_codewords()[:spaces]
    entries = np.einsum(
        "nsj,skj->nsk", vectors.reshape(len(vectors), spaces, length), codewords
    ).reshape(-1)
    most = max(VALUES // 16, 1)
    return entries if entries.size <= most else rng.choice(entries, most, replace=False)


def least_error_step(entries: NDArray[np.float32]) -> float:
    """The step of least squared error when values are rounded to -128..127 steps."""
    largest = float(np.abs(entries).max(initial=0))
    if largest == 0:
        return 1.0
    steps = largest * FRACTIONS / 127
    errors = [
        float(np.square(np.clip(np.rint(entries / step), -128, 127) * step - entries).mean())
        for step in steps
    ]
    return float(np.float32(steps[int(np.argmin(errors))]))
