"""One entry of a graph as the bytes of a TFLite model, without a package of TFLite's.

TFLite keeps feature maps as (N, height, width, channels). Input and output of the model have
the axes that the graph has, (N, channels, height, width), so that the same arrays fit both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edgeid.runtime.flatbuffer import Scalar, Table
from edgeid.runtime.graph import (
    Affine,
    AveragePool,
    Clip,
    Concat,
    Conv,
    Flatten,
    Gemm,
    GlobalAveragePool,
    Graph,
    L2Normalize,
    Layer,
    MaxPool,
    PRelu,
    Reshape,
    Shape,
)
from edgeid.runtime.tflite_activations import fused_activations
from edgeid.runtime.tflite_model import TFLiteModel
from edgeid.runtime.tflite_windows import VALID, Window, padding_rule

_TO_NHWC, _TO_NCHW = (0, 2, 3, 1), (0, 3, 1, 2)
_L2_FLOOR = 1e-6  # TFLite's L2_NORMALIZATION divides by no less
_CLIPS = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1", (0.0, 1.0): "RELU_0_TO_1"}

Windows = tuple[Window, Window]  # down and across


def graph_to_tflite(graph: Graph, entry: str, description: str = "") -> bytes:
    """A TFLite model of one entry: input (N, *shape) float32, output (N, ...) float32.

    Weights are float32. L2Normalize divides by no length below 1e-6, whatever smaller one the
    layer has.

    Args:
        graph: a valid graph.
        entry: the name of the entry.
        description: text for people that the file carries.

    Raises:
        GraphError: no such entry, or a layer that TFLite cannot express, by name.
    """
    return _Writer(graph, entry).to_bytes(description)


class _Writer:
    """Walks through the layers; ``_places`` says which activation of the model is which."""

    def __init__(self, graph: Graph, entry: str) -> None:
        self._entry = graph.entry(entry)
        self._graph = graph
        self._shapes = graph.infer_shapes(entry)
        self._model = TFLiteModel()
        name, shape = self._entry.input, self._entry.shape
        self._input = self._model.activation(name, (1, *shape))
        self._places = {name: self._from_rows(f"{name}:map", self._input, shape, shape)}
        self._fused = fused_activations(graph, entry)
        for layer in graph.layers_of(entry):
            if layer.output not in self._places:  # it is when the layer before has computed it
                name, _ = self._written(layer)
                self._places[name] = self._layer(layer)

    def to_bytes(self, description: str) -> bytes:
        """The file; the output gets the axes that it has in the graph."""
        name, shape = self._entry.output, self._shapes[self._entry.output]
        output = self._to_rows(name)
        if len(shape) == 3 and not _order_matters(shape):
            output = self._reshape(f"{name}:rows", output, shape)
        return self._model.to_bytes({self._entry.input: self._input}, {name: output}, description)

    def _layer(self, layer: Layer) -> int:
        """Append the operators of one layer; the place of its output."""
        if isinstance(layer, Conv):
            return self._conv(layer)
        if isinstance(layer, Gemm):
            weight = self._weight(layer.weight, None)
            return self._simple("FULLY_CONNECTED", layer, [weight, self._bias(layer)])
        if isinstance(layer, PRelu):
            return self._simple("PRELU", layer, [self._channels(layer, layer.slope)])
        if isinstance(layer, Affine):
            return self._affine(layer)
        if isinstance(layer, Clip):
            return self._clip(layer)
        if isinstance(layer, MaxPool):
            return self._max_pool(layer)
        if isinstance(layer, AveragePool):
            return self._average_pool(layer)
        if isinstance(layer, GlobalAveragePool):
            _, height, width = self._shapes[layer.inputs[0]]
            whole = Window(height, height, 1, 0, 1), Window(width, width, 1, 0, 1)
            return self._pool("AVERAGE_POOL_2D", layer, self._input_of(layer), whole)
        return self._without_weights(layer)

    def _without_weights(self, layer: Layer) -> int:
        if isinstance(layer, Flatten | Reshape):
            rows, before = self._to_rows(layer.inputs[0]), self._shapes[layer.inputs[0]]
            shape = self._shapes[layer.output]
            return self._from_rows(layer.output, rows, before, shape)
        if isinstance(layer, Concat):
            axis = 3 if len(self._shapes[layer.output]) == 3 else 1
            return self._simple("CONCATENATION", layer, options=Table({0: Scalar("i", axis)}))
        if isinstance(layer, L2Normalize):
            if layer.eps > _L2_FLOOR:
                raise layer.error(f"eps {layer.eps}: TFLite divides by lengths from {_L2_FLOOR} on")
            if len(self._shapes[layer.output]) not in (1, 3):
                raise layer.error("TFLite normalises vectors and feature maps only")
            return self._simple("L2_NORMALIZATION", layer)
        if layer.op == "Relu":
            return self._simple("RELU", layer)
        if layer.op == "Add":
            return self._simple("ADD", layer)
        if layer.op == "Mul":
            return self._simple("MUL", layer)
        raise layer.error("the TFLite export does not know this operator")

    # layers with weights

    def _conv(self, layer: Conv) -> int:
        height, width = self._graph.tensors[layer.weight].shape[2:]
        windows = self._windows(layer, (height, width), layer.stride, layer.pad)
        channels = self._shapes[layer.inputs[0]][0]
        depthwise = layer.groups == channels > 1
        x, rule = self._input_of(layer), padding_rule(windows)
        if rule is None:
            x, rule = self._zero_padded(layer, x, windows), VALID
        fields = _sliding(rule, layer.stride)
        name, function = self._written(layer)
        fields[4 if depthwise else 3] = function
        if depthwise:
            fields[3] = Scalar("i", self._shapes[layer.output][0] // channels)
        # from (out, in, height, width); a depthwise weight becomes (1, height, width, out)
        weight = self._weight(layer.weight, (1, 2, 3, 0) if depthwise else _TO_NHWC)
        kind = "DEPTHWISE_CONV_2D" if depthwise else "CONV_2D"
        inputs = [x, weight, self._bias(layer)]
        return self._op(kind, name, inputs, self._shapes[layer.output], Table(fields))

    def _affine(self, layer: Affine) -> int:
        weight, bias = (self._channels(layer, name) for name in layer.tensor_names())
        shape = self._shapes[layer.output]
        inputs = [self._input_of(layer), weight]
        scaled = self._op("MUL", f"{layer.name}:scaled", inputs, shape)
        return self._op("ADD", layer.output, [scaled, bias], shape)

    def _weight(self, name: str, axes: tuple[int, ...] | None) -> int:
        values = self._graph.tensors[name].decode()
        return self._model.constant(name, values if axes is None else values.transpose(axes))

    def _bias(self, layer: Conv | Gemm) -> int:
        """The bias, or zeros: not every runtime takes a layer without."""
        if layer.bias is not None:
            return self._weight(layer.bias, None)
        zeros = np.zeros(self._shapes[layer.output][0], np.float32)
        return self._model.constant(f"{layer.name}:bias", zeros)

    def _channels(self, layer: Layer, name: str) -> int:
        """A tensor of one value a channel, so shaped that TFLite broadcasts it."""
        values = self._graph.tensors[name].decode()
        rank = len(self._shapes[layer.output])
        shape = (1, 1, 1, -1) if rank == 3 else (1, -1, *[1] * (rank - 1))
        return self._model.constant(name, values.reshape(shape))

    # clipping and pooling

    def _clip(self, layer: Clip) -> int:
        kind = _CLIPS.get((layer.low, layer.high))
        if kind is not None:
            return self._simple(kind, layer)
        shape = self._shapes[layer.output]
        low, high = (  # of the rank of the activation: ai-edge-quantizer takes no other
            self._model.constant(f"{layer.name}:{key}", np.full([1] * (len(shape) + 1), value))
            for key, value in (("low", np.float32(layer.low)), ("high", np.float32(layer.high)))
        )
        inputs = [self._input_of(layer), low]
        raised = self._op("MAXIMUM", f"{layer.name}:raised", inputs, shape)
        return self._op("MINIMUM", layer.output, [raised, high], shape)

    def _max_pool(self, layer: MaxPool) -> int:
        windows = self._windows(layer, layer.kernel, layer.stride, layer.pad)
        x = self._input_of(layer)
        if padding_rule(windows) is None:  # zeros could win: repeat what is at the edge instead
            channels, *size = self._shapes[layer.inputs[0]]
            for axis, window in enumerate(windows):
                index = self._model.constant(f"{layer.name}:edges", window.repeated())
                size[axis] += window.before + window.after
                options = Table({0: Scalar("i", axis + 1)})
                shape = (channels, size[0], size[1])
                x = self._op("GATHER", f"{layer.name}:padded", [x, index], shape, options)
        return self._pool("MAX_POOL_2D", layer, x, windows)

    def _average_pool(self, layer: AveragePool) -> int:
        windows = self._windows(layer, layer.kernel, layer.stride, layer.pad)
        x = self._input_of(layer)
        if padding_rule(windows) is not None:
            return self._pool("AVERAGE_POOL_2D", layer, x, windows)
        x = self._zero_padded(layer, x, windows)
        mean = self._pool("AVERAGE_POOL_2D", layer, x, windows, f"{layer.name}:mean")
        # the zeros were counted: give each mean back what they took
        counts = np.multiply.outer(windows[0].inside(), windows[1].inside())
        share = math.prod(layer.kernel) / counts[None, :, :, None]
        factor = self._model.constant(f"{layer.name}:share", share.astype(np.float32))
        shape = self._shapes[layer.output]
        return self._op("MUL", layer.output, [mean, factor], shape)

    def _pool(
        self, kind: str, layer: Layer, x: int, windows: Windows, name: str | None = None
    ) -> int:
        down, across = windows
        rule = padding_rule(windows)
        fields = _sliding(VALID if rule is None else rule, (down.stride, across.stride))
        fields |= {3: Scalar("i", across.kernel), 4: Scalar("i", down.kernel)}
        return self._op(kind, name or layer.output, [x], self._shapes[layer.output], Table(fields))

    def _windows(
        self, layer: Layer, kernel: tuple[int, int], stride: tuple[int, int], pad: Sequence[int]
    ) -> Windows:
        size, positions = self._shapes[layer.inputs[0]][1:], self._shapes[layer.output][1:]
        down, across = (
            Window(size[i], kernel[i], stride[i], pad[i], positions[i]) for i in range(2)
        )
        return down, across

    def _zero_padded(self, layer: Layer, x: int, windows: Windows) -> int:
        channels, height, width = self._shapes[layer.inputs[0]]
        down, across = windows
        pads = [(0, 0), (down.before, down.after), (across.before, across.after), (0, 0)]
        amounts = self._model.constant(f"{layer.name}:pads", np.array(pads, np.int32))
        shape = (channels, height + sum(pads[1]), width + sum(pads[2]))
        return self._op("PAD", f"{layer.name}:padded", [x, amounts], shape)

    # what all layers use

    def _input_of(self, layer: Layer) -> int:
        return self._places[layer.inputs[0]]

    def _written(self, layer: Layer) -> tuple[str, Scalar]:
        """What a layer's operator writes, and the activation function that it includes."""
        fused = self._fused.get(layer.output)
        if fused is None:
            return layer.output, Scalar("b", 0)
        return fused.output, Scalar("b", fused.function)

    def _simple(
        self, kind: str, layer: Layer, constants: Sequence[int] = (), options: Table | None = None
    ) -> int:
        """An operator that reads the layer's inputs and then constants. Options begin with the
        activation function, of operators that can include one."""
        inputs = [*(self._places[x] for x in layer.inputs), *constants]
        name, function = self._written(layer)
        chosen = Table({0: function}) if function.value else options
        return self._op(kind, name, inputs, self._shapes[layer.output], chosen)

    def _op(
        self,
        kind: str,
        name: str,
        inputs: Sequence[int],
        shape: Shape,
        options: Table | None = None,
    ) -> int:
        """Append an operator with an output of the graph's ``shape``, channels last."""
        channels_last = (*shape[1:], shape[0]) if len(shape) == 3 else shape
        output = self._model.activation(name, (1, *channels_last))
        self._model.operator(kind, inputs, output, options)
        return output

    def _to_rows(self, name: str) -> int:
        """The activation in the order that the graph keeps it in: channels first."""
        place, shape = self._places[name], self._shapes[name]
        if len(shape) != 3 or not _order_matters(shape):
            return place
        return self._transposed(f"{name}:rows", place, _TO_NCHW, shape)

    def _from_rows(self, name: str, place: int, before: Shape, shape: Shape) -> int:
        """``shape``, channels last, from rows that have the shape ``before``."""
        if len(shape) != 3:
            return self._reshape(name, place, shape)
        channels, height, width = shape
        if not _order_matters(shape):
            return self._reshape(name, place, (height, width, channels))
        if before != shape:
            place = self._reshape(f"{name}:rows", place, shape)
        return self._transposed(name, place, _TO_NHWC, (height, width, channels))

    def _reshape(self, name: str, place: int, shape: Shape) -> int:
        """Other axes, given as TFLite has them; the batch stays."""
        output = self._model.activation(name, (1, *shape))
        wanted = self._model.constant(f"{name}:shape", np.array((-1, *shape), np.int32))
        options = Table({0: np.array((-1, *shape), np.int32)})
        self._model.operator("RESHAPE", [place, wanted], output, options)
        return output

    def _transposed(self, name: str, place: int, axes: tuple[int, ...], shape: Shape) -> int:
        output = self._model.activation(name, (1, *shape))
        order = self._model.constant(f"{name}:axes", np.array(axes, np.int32))
        self._model.operator("TRANSPOSE", [place, order], output)
        return output


def _sliding(rule: int, stride: tuple[int, int]) -> dict[int, Scalar]:
    """The fields with which the options of convolutions and of pooling begin."""
    down, across = stride
    return {0: Scalar("b", rule), 1: Scalar("i", across), 2: Scalar("i", down)}


def _order_matters(shape: Shape) -> bool:
    """Whether (channels, height, width) lie otherwise in memory when the channels come last."""
    return shape[0] > 1 and shape[1] * shape[2] > 1
