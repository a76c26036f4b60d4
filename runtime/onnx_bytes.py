"""One entry of a graph as the bytes of an ONNX model, without the onnx package.

ONNX files are Protocol Buffers (https://protobuf.dev/programming-guides/encoding); the
field numbers are those of onnx/onnx.proto. Weights are written as float32, the batch axis
is free. Opset 18 and IR version 8 are read by every onnxruntime since 1.14.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.graph import Graph, Shape
from edgeid.runtime.layers import (
    Affine,
    AveragePool,
    Clip,
    Conv,
    Gemm,
    L2Normalize,
    Layer,
    MaxPool,
    PRelu,
    Reshape,
)

IR_VERSION = 8
OPSET = 18
MIN_EXTERNAL = 256  # values; smaller constants stay in the bytes, where shapes are inferred
_FLOAT, _INT64 = 1, 7  # TensorProto.DataType
_ATTRIBUTE_INT, _ATTRIBUTE_INTS = 2, 7  # AttributeProto.AttributeType

Attribute = int | Sequence[int]
Chunks = Sequence[bytes | memoryview]  # what is joined at the very end


def graph_to_onnx(graph: Graph, entry_name: str) -> bytes:
    """ONNX ModelProto of one entry: input (N, *shape) float32, output (N, ...) float32.

    Raises:
        GraphError: no such entry, or its layers do not fit together.
    """
    return _model(_Writer(graph, entry_name))


def graph_to_onnx_parts(graph: Graph, entry_name: str) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """The same model without its larger weights, and those weights by their names in it.

    For an engine that takes weights from memory: they are never copied into the bytes.
    """
    weights: dict[str, NDArray[Any]] = {}
    return _model(_Writer(graph, entry_name, weights)), weights


def _model(writer: _Writer) -> bytes:
    entry, shapes = writer.entry, writer.shapes
    body: Chunks = [
        *writer.nodes,
        _text(2, entry.name),
        *writer.initializers,
        _value_info(11, entry.input, entry.shape),
        _value_info(12, entry.output, shapes[entry.output]),
    ]
    opset = _small(8, _text(1, ""), _integer(2, OPSET))
    return b"".join([_integer(1, IR_VERSION), _text(2, "edgeid"), *_message(7, body), opset])


class _Writer:
    """Collects the nodes and the constants of an entry."""

    def __init__(
        self, graph: Graph, entry_name: str, external: dict[str, NDArray[Any]] | None = None
    ) -> None:
        self.entry = graph.entry(entry_name)
        self.shapes = graph.infer_shapes(entry_name)
        self.nodes: list[bytes] = []
        self.initializers: list[bytes | memoryview] = []
        self._graph = graph
        self._external = external
        self._written: set[str] = set()
        for layer in graph.layers_of(entry_name):
            self._layer(layer)

    def _layer(self, layer: Layer) -> None:
        """Append the node, or the few nodes, of one layer."""
        if isinstance(layer, Conv):
            attributes: dict[str, Attribute] = {
                "strides": layer.stride,
                "pads": layer.pad,
                "group": layer.groups,
                "kernel_shape": self._graph.tensors[layer.weight].shape[2:],
            }
            self._node("Conv", layer, self._weights(layer), attributes)
        elif isinstance(layer, Gemm):
            self._node("Gemm", layer, self._weights(layer), {"transB": 1})
        elif isinstance(layer, PRelu):
            self._node("PRelu", layer, [self._channels(layer, layer.slope)])
        elif isinstance(layer, Affine):
            scaled = f"{layer.name}:scaled"
            weight, bias = self._channels(layer, layer.weight), self._channels(layer, layer.bias)
            self._raw("Mul", [layer.inputs[0], weight], scaled)
            self._raw("Add", [scaled, bias], layer.output)
        elif isinstance(layer, MaxPool | AveragePool):
            window: dict[str, Attribute] = {
                "kernel_shape": layer.kernel,
                "strides": layer.stride,
                "pads": layer.pad,
            }
            self._node(layer.op, layer, [], window)
        elif isinstance(layer, L2Normalize):
            self._l2_normalize(layer)
        else:
            self._node(layer.op, layer, self._constants(layer), _ATTRIBUTES.get(layer.op))

    def _node(
        self,
        op: str,
        layer: Layer,
        constants: list[str],
        attributes: dict[str, Attribute] | None = None,
    ) -> None:
        self._raw(op, [*layer.inputs, *constants], layer.output, attributes)

    def _raw(
        self,
        op: str,
        inputs: list[str],
        output: str,
        attributes: dict[str, Attribute] | None = None,
    ) -> None:
        parts = [_text(1, name) for name in inputs] + [_text(2, output), _text(4, op)]
        parts += [_attribute(*item) for item in (attributes or {}).items()]
        self.nodes.append(_small(1, *parts))

    def _weights(self, layer: Layer) -> list[str]:
        return [
            self._constant(f"{name}:dense", self._graph.tensors[name].decode())
            for name in layer.tensor_names()
        ]

    def _channels(self, layer: Layer, name: str) -> str:
        """A per-channel tensor with trailing axes, so that ONNX broadcasts it over the image."""
        rank = len(self.shapes[layer.inputs[0]])
        values = self._graph.tensors[name].decode().reshape(-1, *[1] * (rank - 1))
        return self._constant(f"{name}:{rank}", values)

    def _constants(self, layer: Layer) -> list[str]:
        """Inputs that are parameters in the graph and tensors in ONNX."""
        prefix = f"{layer.name}:"
        if isinstance(layer, Clip):
            low, high = (np.array(v, dtype=np.float32) for v in (layer.low, layer.high))
            return [self._constant(prefix + "low", low), self._constant(prefix + "high", high)]
        if isinstance(layer, Reshape):
            shape = (0, *self.shapes[layer.output])  # 0 keeps the batch as it is
            return [self._constant(prefix + "shape", np.array(shape, dtype=np.int64))]
        return []

    def _l2_normalize(self, layer: L2Normalize) -> None:
        # LpNormalization has no eps: zero vectors would differ between engines
        prefix = f"{layer.name}:"
        axes = self._constant(prefix + "axes", np.array([1], dtype=np.int64))
        floor = self._constant(prefix + "eps", np.array(layer.eps, dtype=np.float32))
        self._raw("ReduceL2", [layer.inputs[0], axes], prefix + "length", {"keepdims": 1})
        self._raw("Max", [prefix + "length", floor], prefix + "divisor")
        self._raw("Div", [layer.inputs[0], prefix + "divisor"], layer.output)

    def _constant(self, name: str, value: NDArray[Any]) -> str:
        # a colon keeps the names of constants apart from those of activations
        name = f"const:{name}"
        if name not in self._written:
            self._written.add(name)
            stored: Chunks
            if self._external is not None and value.size >= MIN_EXTERNAL:
                self._external[name] = value
                stored = [_tensor_header(name, value), _ELSEWHERE]
            else:
                stored = _tensor(name, value)
            self.initializers.extend(_message(5, stored))
        return name


_ATTRIBUTES: dict[str, dict[str, Attribute]] = {"Concat": {"axis": 1}}


def _varint(value: int) -> bytes:
    out = bytearray()
    value &= (1 << 64) - 1  # negative numbers are written as 64-bit two's complement
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _integer(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _message(number: int, parts: Chunks) -> Chunks:
    size = sum(len(part) for part in parts)
    return [_varint(number << 3 | 2) + _varint(size), *parts]


def _small(number: int, *parts: bytes) -> bytes:
    return b"".join(_message(number, parts))


def _text(number: int, value: str) -> bytes:
    return _small(number, value.encode("utf-8"))


def _integers(number: int, values: Iterable[int]) -> bytes:
    return _small(number, *(_varint(v) for v in values))


def _attribute(name: str, value: Attribute) -> bytes:
    if isinstance(value, int):
        return _small(5, _text(1, name), _integer(3, value), _integer(20, _ATTRIBUTE_INT))
    return _small(5, _text(1, name), _integers(8, value), _integer(20, _ATTRIBUTE_INTS))


def _tensor_header(name: str, value: NDArray[Any]) -> bytes:
    kind = _INT64 if value.dtype == np.int64 else _FLOAT
    return _integers(1, value.shape) + _integer(2, kind) + _text(8, name)


def _tensor(name: str, value: NDArray[Any]) -> Chunks:
    stored = np.ascontiguousarray(value, dtype="<i8" if value.dtype == np.int64 else "<f4")
    # a view: the weights are copied once, when all is joined
    data = stored.reshape(-1).view(np.uint8).data
    return [_tensor_header(name, value), *_message(9, [data])]


# TensorProto.external_data (location = "memory") and data_location = EXTERNAL
_ELSEWHERE = _small(13, _text(1, "location"), _text(2, "memory")) + _integer(14, 1)


def _value_info(number: int, name: str, shape: Shape) -> bytes:
    sizes = [_text(2, "N"), *(_integer(1, size) for size in shape)]
    dimensions = _small(2, *(_small(1, size) for size in sizes))
    return _small(number, _text(1, name), _small(2, _small(1, _integer(1, _FLOAT), dimensions)))
