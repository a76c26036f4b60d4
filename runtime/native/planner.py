"""From a graph to the program of the native engine: layers joined into steps, forms chosen."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from edgeid.runtime.activation_scale import ActivationScale
from edgeid.runtime.codebook import Codebook
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.graph import (
    Add,
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv,
    Entry,
    Flatten,
    Gemm,
    GlobalAveragePool,
    Graph,
    L2Normalize,
    Layer,
    MaxPool,
    Mul,
    PRelu,
    Relu,
    Reshape,
)
from edgeid.runtime.native import program as p
from edgeid.runtime.native.weights import MAX_PRODUCTS, dense_weights, lookup_weights, pays

Weights = p.LookupWeights | p.DenseWeights | p.FloatWeights


def plan(graph: Graph, entry_name: str) -> p.Program:
    """The program of one entry.

    Args:
        graph: validated. Layers whose input has no activation scale are computed in float32.
        entry_name: raises GraphError if there is no such entry.
    """
    entry = graph.entry(entry_name)
    planner = _Planner(graph, entry)
    for layer in graph.layers_of(entry_name):
        planner.add(layer)
    steps = _with_forms(planner.steps, entry, graph.scales)
    values = {step.output.name: step.output for step in steps}
    shape = planner.shapes[entry.output]
    return p.Program(entry.name, entry.shape, steps, values, entry.output, shape)


class _Planner:
    """Walks over layers in order; what follows a layer and is read by nobody else joins it."""

    def __init__(self, graph: Graph, entry: Entry) -> None:
        self.graph = graph
        self.shapes = graph.infer_shapes(entry.name)
        self.readers: dict[str, list[Layer]] = defaultdict(list)
        for layer in graph.layers_of(entry.name):
            for name in layer.inputs:
                self.readers[name].append(layer)
        self.output = entry.output
        self.joined: set[str] = set()
        source = p.Value(entry.input, p.as_size(entry.shape))
        self.steps: list[p.Step] = [p.Pack(entry.input, (), source)]
        self.written = {entry.input}

    def add(self, layer: Layer) -> None:
        if layer.name in self.joined:
            return
        step = self._step(layer)
        self.steps.append(step)
        self.written.add(step.output.name)

    def _step(self, layer: Layer) -> p.Step:
        if isinstance(layer, Conv | Gemm):
            return self._convolution(layer)
        if isinstance(layer, Affine | PRelu | Relu | Clip | Add | Mul):
            return self._elementwise(layer)
        where = (layer.name, layer.inputs, self._value(layer.output))
        if isinstance(layer, MaxPool | AveragePool):
            window = p.Window(layer.kernel, layer.stride, layer.pad)
            return p.Pool(*where, window=window, largest=isinstance(layer, MaxPool))
        if isinstance(layer, GlobalAveragePool):
            height, width = self.shapes[layer.inputs[0]][1:]
            window = p.Window((height, width), (1, 1), (0, 0, 0, 0))
            return p.Pool(*where, window=window, largest=False)
        if isinstance(layer, Flatten | Reshape):
            return p.Reshape(*where)
        if isinstance(layer, Concat):
            return p.Concat(*where)
        if isinstance(layer, L2Normalize):
            return p.Normalise(*where, eps=layer.eps)
        raise layer.error("the native engine does not know this operator")

    def _value(self, name: str) -> p.Value:
        return p.Value(name, p.as_size(self.shapes[name]))

    def _convolution(self, layer: Conv | Gemm) -> p.Convolution:
        tensor = self.graph.tensors[layer.weight]
        window, groups = p.Window((1, 1), (1, 1), (0, 0, 0, 0)), 1
        if isinstance(layer, Conv):
            kernel = (tensor.shape[2], tensor.shape[3])
            window, groups = p.Window(kernel, layer.stride, layer.pad), layer.groups
        weights, gain = self._weights(layer, window, groups)
        shift = np.zeros_like(gain)
        if layer.bias is not None:
            shift = self._decoded(layer.bias)
        tail = self._tail(_Tail(layer.output, gain, shift))
        return p.Convolution(
            layer.name, layer.inputs, self._value(tail.output), window, groups, weights, tail.end()
        )

    def _weights(
        self, layer: Conv | Gemm, window: p.Window, groups: int
    ) -> tuple[Weights, FloatArray]:
        tensor = self.graph.tensors[layer.weight]
        scale = self.graph.scales.get(layer.inputs[0])
        outputs, products = tensor.shape[0], int(np.prod(tensor.shape[1:]))
        depthwise = groups == outputs and tensor.shape[1] == 1
        if scale is None or products > MAX_PRODUCTS or not (groups == 1 or depthwise):
            values = tensor.decode().reshape(*tensor.shape[:2], *window.kernel)
            return p.FloatWeights(values), np.ones(outputs, np.float32)
        if isinstance(tensor, Codebook) and groups == 1 and pays(tensor, window):
            return lookup_weights(tensor, scale, self.graph.table_scales.get(layer.name))
        return dense_weights(tensor, scale)

    def _elementwise(self, layer: Layer) -> p.Elementwise:
        channels = self.shapes[layer.output][0]
        ones, zeros = np.ones(channels, np.float32), np.zeros(channels, np.float32)
        tail = _Tail(layer.output, ones, zeros)
        if isinstance(layer, Affine | PRelu | Relu | Clip):
            tail = self._join(tail, layer) or tail
        tail = self._tail(tail, residual=False)
        product = isinstance(layer, Mul)
        return p.Elementwise(
            layer.name, layer.inputs, self._value(tail.output), product, tail.end()
        )

    def _tail(self, tail: _Tail, *, residual: bool = True) -> _Tail:
        """What can be done right behind a layer, as long as nobody else reads the results."""
        while tail.output != self.output and len(self.readers[tail.output]) == 1:
            follower = self.readers[tail.output][0]
            joined = self._join(tail, follower) if residual or not _adds(follower) else None
            if joined is None:
                break
            self.joined.add(follower.name)
            tail = joined
        return tail

    def _join(self, tail: _Tail, layer: Layer) -> _Tail | None:
        if isinstance(layer, Affine):
            return tail.affine(layer, self._decoded(layer.weight), self._decoded(layer.bias))
        if isinstance(layer, PRelu):
            return tail.prelu(layer, self._decoded(layer.slope))
        if isinstance(layer, Relu):
            return tail.clip(layer, 0.0, np.inf)
        if isinstance(layer, Clip):
            return tail.clip(layer, layer.low, layer.high)
        if isinstance(layer, Add):
            others = [name for name in layer.inputs if name != tail.output]
            if len(others) == 1 and others[0] in self.written:
                return tail.add(layer, others[0])
        return None

    def _decoded(self, name: str) -> FloatArray:
        return self.graph.tensors[name].decode()


def _adds(layer: Layer) -> bool:
    return isinstance(layer, Add)


@dataclass(frozen=True)
class _Tail:
    """An epilogue in the making. Each method gives None where the layer cannot be part of it."""

    output: str
    gain: FloatArray
    shift: FloatArray
    residual: str | None = None
    activations: tuple[p.Activation, p.Activation] = field(
        default_factory=lambda: (p.Activation(), p.Activation())
    )

    def affine(self, layer: Layer, weight: FloatArray, bias: FloatArray) -> _Tail | None:
        if self.residual is not None or not _idle(self.activations[0]):
            return None
        gain, shift = self.gain * weight, self.shift * weight + bias
        return replace(self, output=layer.output, gain=gain, shift=shift)

    def prelu(self, layer: Layer, slope: FloatArray) -> _Tail | None:
        if not _idle(self._last):
            return None
        return self._with(layer, p.Activation(slope))

    def clip(self, layer: Layer, low: float, high: float) -> _Tail | None:
        if self._last.low != -np.inf or self._last.high != np.inf:
            return None
        return self._with(layer, replace(self._last, low=low, high=high))

    def add(self, layer: Layer, other: str) -> _Tail | None:
        if self.residual is not None:
            return None
        return replace(self, output=layer.output, residual=other)

    @property
    def _last(self) -> p.Activation:
        return self.activations[self.residual is not None]

    def _with(self, layer: Layer, activation: p.Activation) -> _Tail:
        first, second = self.activations
        pair = (activation, second) if self.residual is None else (first, activation)
        return replace(self, output=layer.output, activations=pair)

    def end(self) -> p.Epilogue:
        first, second = self.activations
        return p.Epilogue(self.gain, self.shift, first, self.residual, second)


def _idle(activation: p.Activation) -> bool:
    return activation.slope is None and (activation.low, activation.high) == (-np.inf, np.inf)


def _with_forms(
    steps: list[p.Step], entry: Entry, scales: Mapping[str, ActivationScale]
) -> tuple[p.Step, ...]:
    """Steps that write exactly the forms that are read."""
    coded: set[str] = set()
    real = {entry.output}
    for step in steps:
        integer = isinstance(step, p.Convolution) and not isinstance(step.weights, p.FloatWeights)
        (coded if integer else real).update(step.inputs)
        if isinstance(step, p.Convolution) and step.epilogue.residual is not None:
            real.add(step.epilogue.residual)
    return tuple(
        replace(
            step,
            output=replace(
                step.output,
                scale=scales[step.output.name] if step.output.name in coded else None,
                real=step.output.name in real,
            ),
        )
        for step in steps
    )
