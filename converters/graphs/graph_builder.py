"""Grows a graph layer by layer while weights are still plain arrays that can be folded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.encoding import Tensor, encode_float32
from edgeid.runtime.errors import GraphError, UnsupportedOperatorError
from edgeid.runtime.graph import MAX_ELEMENTS, Affine, Conv, Entry, Gemm, Graph, Layer, Shape


@dataclass(frozen=True)
class Node:
    """One node of the source network; "" stands for an optional input left out."""

    op: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def unsupported(self, what: str) -> UnsupportedOperatorError:
        """An error that names the node, its operator, and what about it is not supported."""
        return UnsupportedOperatorError(f"node {self.name!r} ({self.op}): {what}")

    def error(self, what: str) -> GraphError:
        """An error that names the node and its operator."""
        return GraphError(f"node {self.name!r} ({self.op}): {what}")


@dataclass
class GraphBuilder:
    """The graph so far.

    Attributes:
        constants: values known at conversion, by name.
        shapes: shape without batch of every activation so far.
        readers: how many nodes read each activation; what one node alone reads can be folded.
        lengths: names that stand for max(|x|, eps) over the channels, with x and eps; a
            division by one of them is an L2 normalisation.
    """

    readers: Counter[str]
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)
    shapes: dict[str, Shape] = field(default_factory=dict)
    lengths: dict[str, tuple[str, float]] = field(default_factory=dict)
    _aliases: dict[str, str] = field(default_factory=dict)
    _layers: list[Layer] = field(default_factory=list)
    _tensors: dict[str, NDArray[Any]] = field(default_factory=dict)

    def alias(self, name: str, target: str) -> None:
        """From here on ``name`` means ``target``."""
        target = self.resolve(target)
        self._aliases[name] = target
        self.readers[target] += self.readers[name] - 1

    def resolve(self, name: str) -> str:
        """The name without aliases."""
        return self._aliases.get(name, name)

    def constant(self, node: Node, index: int) -> NDArray[Any]:
        """The constant that the node reads at ``index``; raises where it is none."""
        name = self.resolve(node.inputs[index])
        if name not in self.constants:
            raise node.unsupported(f"input {name!r} must be a constant")
        return self.constants[name]

    def optional(self, node: Node, index: int) -> NDArray[Any] | None:
        """The constant at ``index``, None where the input is left out."""
        if index >= len(node.inputs) or not node.inputs[index]:
            return None
        return self.constant(node, index)

    def activation(self, node: Node, index: int = 0) -> str:
        """The activation that the node reads at ``index``; raises where it is none."""
        name = self.resolve(node.inputs[index])
        if name not in self.shapes:
            kind = "a constant" if name in self.constants else "not computed by a supported node"
            raise node.unsupported(f"input {name!r} is {kind}")
        return name

    def emit(self, layer: Layer, **tensors: NDArray[Any]) -> None:
        """Append a layer; ``tensors`` maps its fields (weight, bias ...) to arrays."""
        names = {role: f"{layer.name}.{role}" for role in tensors}
        changed: dict[str, Any] = dict(names)
        layer = replace(layer, **changed)
        self._tensors.update({names[role]: array for role, array in tensors.items()})
        shapes = {name: self._tensors[name].shape for name in layer.tensor_names()}
        inputs = [self.shapes[name] for name in layer.inputs]
        shape = layer.output_shape(inputs, shapes)
        if math.prod(shape) > MAX_ELEMENTS:
            raise layer.error(f"output shape {shape} is above the limit of {MAX_ELEMENTS} values")
        self.shapes[layer.output] = shape
        self._layers.append(layer)

    def emit_weighted(
        self, layer: Conv | Gemm, weight: NDArray[Any], bias: NDArray[Any] | None
    ) -> None:
        """Append a layer that may have a bias."""
        if bias is None:
            self.emit(layer, weight=weight)
        else:
            self.emit(layer, weight=weight, bias=bias)

    def axes(self, node: Node, rank: int) -> tuple[int, ...]:
        """The axes a node works on, from its attribute or its second input, counted from 0."""
        given = self.optional(node, 1)
        axes = node.attributes.get("axes", ()) if given is None else given.reshape(-1).tolist()
        return tuple(sorted(int(a) % rank for a in axes))

    def scale_shift(self, node: Node, x: str, scale: NDArray[Any], shift: NDArray[Any]) -> None:
        """y = x * scale + shift for each channel: folded into the layer before where that is
        exact, an Affine layer otherwise."""
        output = node.outputs[0]
        for index, layer in enumerate(self._layers):
            foldable = isinstance(layer, Conv | Gemm | Affine)
            if layer.output == x and foldable and self.readers[x] == 1:
                self._layers[index] = self._folded(layer, output, scale, shift)
                self.shapes[output] = self.shapes.pop(x)
                return
        affine = Affine(node.name, (x,), output, "", "")
        self.emit(affine, weight=scale, bias=shift)

    def _folded(self, layer: Layer, output: str, scale: NDArray[Any], shift: NDArray[Any]) -> Layer:
        weight, bias = f"{layer.name}.weight", f"{layer.name}.bias"
        old = self._tensors[weight].astype(np.float64)
        self._tensors[weight] = old * scale.reshape(-1, *[1] * (old.ndim - 1))
        self._tensors[bias] = self._tensors.get(bias, np.zeros(len(old))) * scale + shift
        changed: dict[str, Any] = {"output": output, "bias": bias}
        return replace(layer, **changed)

    def graph(self, entry: Entry) -> Graph:
        """The finished, validated graph with float32 weights."""
        if entry.output != self.resolve(entry.output):
            entry = replace(entry, output=self.resolve(entry.output))
        tensors: dict[str, Tensor] = {}
        for name, array in self._tensors.items():
            with np.errstate(over="ignore"):
                values = array.astype(np.float32)
            if not np.isfinite(values).all():
                raise GraphError(f"tensor {name!r} holds NaN or infinity after conversion")
            tensors[name] = encode_float32(values)
        graph = Graph((entry,), tuple(self._layers), tensors)
        graph.validate()
        return graph
