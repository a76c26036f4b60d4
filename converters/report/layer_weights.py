"""A layer's weight as another graph stores it, brought back into the first graph's form."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from edgeid.converters.graphs.output_scales import affines
from edgeid.converters.graphs.torch_graph import GraphModule
from edgeid.converters.quantisation.dictionary import relative_error
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.graph import Conv, Flatten, Gemm, Graph, Layer

WIDEST = 1024  # channels; matching takes their cube
VALUES = 4096  # of each channel that the matching looks at
UNLIKE = 0.9  # relative error from which two weights have nothing in common


class LayerWeights:
    """The weighted layers of one entry, with what they read and write on some inputs."""

    def __init__(self, graph: Graph, entry: str, inputs: FloatArray) -> None:
        self._graph = graph
        self._layers = graph.layers_of(entry)
        self._affines = affines(graph)
        self._module = GraphModule(graph, (entry,))
        self._inputs, self._entry = inputs, entry
        self._values: dict[str, torch.Tensor] = {}

    def layer(self, name: str) -> Conv | Gemm | None:
        """The weighted layer of that name, if there is one."""
        for layer in self._layers:
            if layer.name == name and isinstance(layer, Conv | Gemm):
                return layer
        return None

    def weight(self, layer: Conv | Gemm) -> FloatArray:
        """(out, in, height, width), the scale of an Affine behind it multiplied in.

        A fully connected layer over a flattened map is a convolution as large as the map.
        """
        weight = self._graph.tensors[layer.weight].decode()
        return self.scale(layer)[:, None, None, None] * weight.reshape(
            len(weight), *self._form(layer)
        )

    def scale(self, layer: Conv | Gemm) -> FloatArray:
        """(out,) of the Affine behind the layer, ones without."""
        if layer.name in self._affines:
            return self._graph.tensors[self._affines[layer.name].weight].decode()
        return np.ones(self._graph.tensors[layer.weight].shape[0], np.float32)

    def read(self, layer: Conv | Gemm) -> NDArray[np.float32]:
        """(in, n) values of each input channel."""
        before = self._flattened(layer)
        return self._channels(before.inputs[0] if before else layer.inputs[0])

    def written(self, layer: Conv | Gemm) -> NDArray[np.float32]:
        """(out, n) values of each output channel, after an Affine behind it."""
        affine = self._affines.get(layer.name)
        return self._channels(affine.output if affine else layer.output)

    def _form(self, layer: Conv | Gemm) -> tuple[int, int, int]:
        shape = self._graph.tensors[layer.weight].shape
        if isinstance(layer, Conv):
            return shape[1], shape[2], shape[3]
        before = self._flattened(layer)
        if before is None:
            return shape[1], 1, 1
        channels, height, width = self._graph.infer_shapes(self._entry)[before.inputs[0]]
        return channels, height, width

    def _flattened(self, layer: Conv | Gemm) -> Layer | None:
        """The Flatten of a map that a fully connected layer reads."""
        for other in self._layers:
            if other.output == layer.inputs[0] and isinstance(other, Flatten):
                shape = self._graph.infer_shapes(self._entry)[other.inputs[0]]
                return other if isinstance(layer, Gemm) and len(shape) == 3 else None
        return None

    def _channels(self, name: str) -> NDArray[np.float32]:
        if not self._values:
            with torch.no_grad():
                x = torch.from_numpy(self._inputs)
                self._values = self._module.activations(x, self._entry)
        values = self._values[name].transpose(0, 1).flatten(1)
        return values[:, :: max(1, values.shape[1] // VALUES)].numpy()


def restored_weight(
    old: LayerWeights, new: LayerWeights, name: str
) -> tuple[FloatArray | None, str]:
    """The new weight of a layer of ``old`` in the old order, scale and shape.

    Returns:
        The weight and "", or None and why the layers cannot be compared.
    """
    before, after = old.layer(name), new.layer(name)
    assert before is not None
    if after is None:
        return None, "the layer is gone"
    was, now = old.weight(before), new.weight(after)
    if was.shape != now.shape or _groups(before) != _groups(after):
        return None, f"shape {_form(was)} became {_form(now)}"
    if relative_error(was, now) > UNLIKE:
        if max(was.shape[:2]) > WIDEST or _groups(before) > 1:
            return None, "its channels are in another order"
        outputs = _order(old.written(before), new.written(after))
        inputs = _order(old.read(before), new.read(after))
        if outputs is None or inputs is None:
            return None, "what it reads or writes has another shape"
        # an order may have been kept on one side, as that of the embedding always is
        kept = [(np.arange(len(order)), order) for order in (outputs, inputs)]
        tried = [now[o][:, i] for o in kept[0] for i in kept[1]]
        now = min(tried, key=lambda weight: relative_error(was, weight))
        if relative_error(was, now) > UNLIKE:
            return None, "its weights are unlike the old ones"
    scale = old.scale(before)
    scale = np.where(scale == 0, np.float32(1), scale)
    weight = now / scale[:, None, None, None]
    shape = (len(weight), -1) if isinstance(before, Gemm) else weight.shape
    return np.ascontiguousarray(weight.reshape(shape), dtype=np.float32), ""


def _groups(layer: Conv | Gemm) -> int:
    return layer.groups if isinstance(layer, Conv) else 1


def _form(weight: FloatArray) -> str:
    return " x ".join(map(str, weight.shape))


def _order(before: FloatArray, after: FloatArray) -> NDArray[np.intp] | None:
    """Which channel of ``after`` (channels, n) each channel of ``before`` is, by correlation."""
    if before.shape != after.shape:
        return None
    a, b = _centred(before), _centred(after)
    found: NDArray[np.intp] = linear_sum_assignment(a @ b.T, maximize=True)[1]
    return found


def _centred(values: FloatArray) -> NDArray[np.float64]:
    some = values.astype(np.float64)
    some -= some.mean(axis=1, keepdims=True)
    length = np.linalg.norm(some, axis=1, keepdims=True)
    return np.asarray(some / np.maximum(length, 1e-30))
