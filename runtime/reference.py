"""The numpy engine: the oracle of the other engines, and all a device without them needs.

A convolution is one matrix product an image: the input is unfolded so that each column
holds what one output position sees (im2col). Images are taken a few at a time and an
activation is dropped after its last reader, so memory does not grow with the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from edgeid.runtime.activation_scale import ActivationScale
from edgeid.runtime.blas import blas_threads
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.engine import Engine, check_input
from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import (
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv,
    Entry,
    Flatten,
    Gemm,
    Graph,
    L2Normalize,
    Layer,
    MaxPool,
    PRelu,
    Reshape,
    Shape,
)

IMAGES_AT_ONCE = 8  # keeps the activations of a SphereFace-20 batch below 15 MB

Inputs = Sequence[FloatArray]
Step = Callable[[Inputs, FloatArray], FloatArray]


class ReferenceEngine(Engine):
    """Runs a graph with numpy alone."""

    name = "reference"

    def __init__(self, graph: Graph, threads: int = 1, *, quantised: bool = False) -> None:
        """Decode every weight once.

        Args:
            graph: validated here.
            threads: of the matrix products.
            quantised: whether convolutions and fully connected layers read activations as an
                integer engine stores them: each that has one of the graph's scales is rounded
                to eight bits (``ActivationScale``) where such a layer reads it. All else is
                float32 as ever: sums, biases, slopes and residual sums.

        Raises:
            GraphError: the graph is not valid, or is to run quantised and has no scales.
        """
        if quantised and not graph.scales:
            raise GraphError("the graph has no activation scales: calibrate them first")
        self._threads = threads
        graph.validate()
        self._graph = graph
        weights = {name: tensor.decode() for name, tensor in graph.tensors.items()}
        scales = graph.scales if quantised else {}
        self._programs = {e.name: _Program(graph, e, weights, scales) for e in graph.entries}

    def run(self, entry: str, x: FloatArray) -> FloatArray:
        """See ``Engine.run``. Safe to call from several threads."""
        x = check_input(self._graph, entry, x)
        program = self._programs[entry]
        out = np.empty((len(x), *program.output_shape), dtype=np.float32)
        with blas_threads(self._threads):
            for start in range(0, len(x), IMAGES_AT_ONCE):
                part = slice(start, start + IMAGES_AT_ONCE)
                out[part] = program.run(x[part])
        return out


class _Program:
    """The steps of one entry, each with the activations that nobody reads after it."""

    def __init__(
        self,
        graph: Graph,
        entry: Entry,
        weights: dict[str, FloatArray],
        scales: Mapping[str, ActivationScale],
    ) -> None:
        layers = graph.layers_of(entry.name)
        shapes = graph.infer_shapes(entry.name)
        self._entry = entry
        self.output_shape = shapes[entry.output]
        self._scratch = max((_unfolded(layer, shapes, weights) for layer in layers), default=0)
        last_reader = {name: layer.name for layer in layers for name in layer.inputs}
        last_reader[entry.output] = ""
        self._steps = [
            (
                layer,
                _rounding(layer, _step(layer, weights), scales),
                [name for name in set(layer.inputs) if last_reader[name] == layer.name],
            )
            for layer in layers
        ]

    def run(self, x: FloatArray) -> FloatArray:
        scratch = np.empty(self._scratch, dtype=np.float32)
        values = {self._entry.input: x}
        for layer, step, finished in self._steps:
            values[layer.output] = step([values[name] for name in layer.inputs], scratch)
            for name in finished:
                del values[name]
        return values[self._entry.output]


def _unfolded(layer: Layer, shapes: dict[str, Shape], weights: dict[str, FloatArray]) -> int:
    """Values that the unfolded input of a convolution takes, for one image and one group."""
    if not isinstance(layer, Conv):
        return 0
    positions = math.prod(shapes[layer.output][1:])
    return math.prod(weights[layer.weight].shape[1:]) * positions


def _rounding(layer: Layer, step: Step, scales: Mapping[str, ActivationScale]) -> Step:
    """The step of a layer that reads its input in eight bits, where that has a scale."""
    scale = scales.get(layer.inputs[0]) if isinstance(layer, Conv | Gemm) else None
    if scale is None:
        return step
    return lambda inputs, scratch: step([scale.dequantise(scale.quantise(inputs[0]))], scratch)


def _step(layer: Layer, weights: dict[str, FloatArray]) -> Step:
    if isinstance(layer, Conv):
        return _conv_step(layer, weights)
    if isinstance(layer, Gemm):
        matrix = weights[layer.weight].T
        bias = None if layer.bias is None else weights[layer.bias]
        return lambda inputs, _: _added(inputs[0] @ matrix, bias)
    if isinstance(layer, PRelu):
        return _prelu_step(weights[layer.slope])
    if isinstance(layer, Affine):
        weight, shift = weights[layer.weight], weights[layer.bias]
        return lambda inputs, _: inputs[0] * _along(weight, inputs[0]) + _along(shift, inputs[0])
    return _plain_step(layer)


def _plain_step(layer: Layer) -> Step:
    """Steps of the layers without weights."""
    if isinstance(layer, Clip):
        low, high = np.float32(layer.low), np.float32(layer.high)
        return lambda inputs, _: np.clip(inputs[0], low, high)
    if isinstance(layer, MaxPool):
        return lambda inputs, _: _max_pool(layer, inputs[0])
    if isinstance(layer, AveragePool):
        return lambda inputs, _: _average_pool(layer, inputs[0])
    if isinstance(layer, Reshape):
        shape = layer.shape
        return lambda inputs, _: inputs[0].reshape(_with_batch(inputs[0], shape))
    if isinstance(layer, L2Normalize):
        return lambda inputs, _: _normalized(inputs[0], layer.eps)
    return _STEPS[layer.op]


def _flat(x: FloatArray) -> FloatArray:
    return x.reshape(len(x), math.prod(x.shape[1:]))


def _with_batch(x: FloatArray, shape: Shape) -> Shape:
    # with -1 numpy could not tell an empty batch, so the free axis is worked out here
    count = math.prod(x.shape[1:])
    known = math.prod(n for n in shape if n != -1)
    return (len(x), *(count // known if n == -1 else n for n in shape))


_STEPS: dict[str, Step] = {
    "Relu": lambda inputs, _: np.maximum(inputs[0], np.float32(0)),
    "Add": lambda inputs, _: inputs[0] + inputs[1],
    "Mul": lambda inputs, _: inputs[0] * inputs[1],
    "GlobalAveragePool": lambda inputs, _: inputs[0].mean(axis=(2, 3), keepdims=True),
    Flatten.op: lambda inputs, _: _flat(inputs[0]),
    Concat.op: lambda inputs, _: np.concatenate(inputs, axis=1),
}


def _along(values: FloatArray, x: NDArray[Any]) -> FloatArray:
    """Per-channel values shaped to broadcast over ``x`` (N, channels, ...)."""
    return values.reshape(-1, *[1] * (x.ndim - 2))


def _added(x: FloatArray, bias: FloatArray | None) -> FloatArray:
    if bias is not None:
        x += bias
    return x


def _prelu_step(slope: FloatArray) -> Step:
    if slope.min() >= 0 and slope.max() <= 1:  # then the larger of x and slope * x is right
        return lambda inputs, _: _leaky(inputs[0], _along(slope, inputs[0]))
    return lambda inputs, _: np.where(
        inputs[0] > 0, inputs[0], inputs[0] * _along(slope, inputs[0])
    )


def _leaky(x: FloatArray, slope: FloatArray) -> FloatArray:
    scaled = x * slope
    np.maximum(x, scaled, out=scaled)
    return scaled


def _normalized(x: FloatArray, eps: float) -> FloatArray:
    length = np.sqrt(np.square(x).sum(axis=1, keepdims=True))
    return np.asarray(x / np.maximum(length, np.float32(eps)), dtype=np.float32)


def _padded(x: FloatArray, pad: tuple[int, int, int, int], value: float) -> FloatArray:
    top, left, bottom, right = pad
    if not any(pad):
        return x
    n, channels, height, width = x.shape
    out = np.full((n, channels, height + top + bottom, width + left + right), value, np.float32)
    out[:, :, top : top + height, left : left + width] = x
    return out


def _taps(x: FloatArray, kernel: tuple[int, int], stride: tuple[int, int]) -> NDArray[np.float32]:
    """View (N, channels, rows, columns, kernel height, kernel width) of a padded input."""
    windows = sliding_window_view(x, kernel, axis=(2, 3))
    return windows[:, :, :: stride[0], :: stride[1]]


def _max_pool(layer: MaxPool, x: FloatArray) -> FloatArray:
    taps = _taps(_padded(x, layer.pad, -math.inf), layer.kernel, layer.stride)
    return np.asarray(taps.max(axis=(4, 5)), dtype=np.float32)


def _average_pool(layer: AveragePool, x: FloatArray) -> FloatArray:
    total = _taps(_padded(x, layer.pad, 0.0), layer.kernel, layer.stride).sum(axis=(4, 5))
    inside = _padded(np.ones((1, 1, *x.shape[2:]), np.float32), layer.pad, 0.0)
    counts = _taps(inside, layer.kernel, layer.stride).sum(axis=(4, 5))
    return np.asarray(total / counts, dtype=np.float32)


def _conv_step(layer: Conv, weights: dict[str, FloatArray]) -> Step:
    weight = weights[layer.weight]
    bias = None if layer.bias is None else weights[layer.bias][:, None, None]
    if layer.groups == weight.shape[0] and weight.shape[1] == 1:
        return lambda inputs, _: _added(_depthwise(layer, weight, inputs[0]), bias)
    return lambda inputs, scratch: _added(_conv(layer, weight, inputs[0], scratch), bias)


def _depthwise(layer: Conv, weight: FloatArray, x: FloatArray) -> FloatArray:
    """One filter a channel: a sum of shifted, scaled inputs, a kernel position at a time."""
    kernel = (weight.shape[2], weight.shape[3])
    taps = _taps(_padded(x, layer.pad, 0.0), kernel, layer.stride)
    out = taps[..., 0, 0] * weight[:, 0, 0, 0, None, None]
    term = np.empty_like(out)
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            if i or j:
                np.multiply(taps[..., i, j], weight[:, 0, i, j, None, None], out=term)
                out += term
    return out


def _conv(layer: Conv, weight: FloatArray, x: FloatArray, scratch: FloatArray) -> FloatArray:
    outputs, channels, *kernel = weight.shape
    taps = _taps(_padded(x, layer.pad, 0.0), (kernel[0], kernel[1]), layer.stride)
    n, _, rows, columns = taps.shape[:4]
    out = np.empty((n, outputs, rows, columns), np.float32)
    taps = taps.transpose(0, 1, 4, 5, 2, 3)
    per_group = outputs // layer.groups
    unfolded = scratch[: channels * kernel[0] * kernel[1] * rows * columns]
    unfolded = unfolded.reshape(channels, kernel[0], kernel[1], rows, columns)
    for image in range(n):
        for group in range(layer.groups):
            np.copyto(unfolded, taps[image, group * channels : (group + 1) * channels])
            filters = slice(group * per_group, (group + 1) * per_group)
            np.matmul(
                weight[filters].reshape(per_group, -1),
                unfolded.reshape(-1, rows * columns),
                out=out[image, filters].reshape(per_group, rows * columns),
            )
    return out
