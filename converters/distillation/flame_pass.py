"""Put lighter structures in place of a graph's 3x3 convolutions and train them (paper 003).

The same structures as in ``flame``, for networks that came as graphs: any customer's ONNX
file. The original is the teacher; no labels are needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from edgeid.converters.graphs.normalisation import NormModule, split_norms
from edgeid.converters.graphs.weight_calibration import (
    Schedule,
    calibrate_weights,
    draw_inputs,
    regression_task,
)
from edgeid.converters.networks.flame import RATIO, Structure, squeeze_width
from edgeid.converters.recipe import Context, Pass, PassResult
from edgeid.runtime.encoding import Tensor, encode_float32
from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import Affine, Concat, Conv, Graph, Layer, Relu


@dataclass(frozen=True)
class FlameSubstitution(Pass):
    """Replace 3x3 convolutions and train the network to give its old embeddings.

    Needs samples of the entries; leaves the other entries, and every convolution that reads
    one channel, has groups, other strides by axis or another padding than 1.

    Attributes:
        entries: to change; None: all that have samples.
        structure: "fire", "depthwise" (and point-wise) or "flame".
        ratio: squeezed over output channels.
        epochs: of training over all samples.
        batch, rate, settle, bfloat16: see ``weight_calibration``.
    """

    entries: tuple[str, ...] | None = None
    structure: Structure = "flame"
    ratio: float = RATIO
    epochs: int = 10
    batch: int = 64
    rate: float = 3e-3
    settle: int = 16
    bfloat16: bool = False

    name: ClassVar[str] = "flame"

    def requires(self, graph: Graph, context: Context) -> None:
        for entry in self._entries(context):
            context.inputs(entry)
            if not replaceable_layers(graph, entry):
                raise GraphError(f"entry {entry!r} has no 3x3 convolution that can be replaced")

    def call(self, graph: Graph, context: Context) -> PassResult:
        torch.set_num_threads(context.threads)
        entries = self._entries(context)
        tasks = [regression_task(graph, e, context.inputs(e), self.batch) for e in entries]
        schedule = Schedule(self.epochs, self.rate, self.settle, self.bfloat16)
        changed = split_norms(graph, entries)
        count = sum(len(replaceable_layers(graph, entry)) for entry in entries)
        rng = np.random.default_rng(context.seed)
        inputs = draw_inputs(tasks, schedule.settle, (context.seed, 0))
        old = NormModule(changed, entries)
        old.measure(inputs)
        for entry in entries:
            changed = substitute_layers(changed, entry, self.structure, self.ratio, rng)
        module = NormModule(changed, entries)
        for layer in old.norm_layers:  # the channels keep the mean and the spread they had
            module.norm(layer.name).load_state_dict(old.norm(layer.name).state_dict())
        module.settle(inputs)
        loss = calibrate_weights(
            module, tasks, schedule, (context.seed, 1), lambda x, what: context.track(x, what)
        )
        module.settle(inputs)
        figures: dict[str, float | int | str] = {f"loss/{k}": v for k, v in loss.items()}
        figures |= {"replaced": count, "structure": self.structure}
        return PassResult(
            module.to_graph(), (f"{count} 3x3 convolutions replaced by {self.structure}",), figures
        )

    def ensures(self, before: Graph, after: Graph, context: Context) -> None:
        for entry in self._entries(context):
            kept = {layer.name for layer in after.layers_of(entry)}
            left = [x.name for x in replaceable_layers(before, entry) if x.name in kept]
            if left:
                raise GraphError(f"layer {left[0]!r} of entry {entry!r} was not replaced")

    def _entries(self, context: Context) -> tuple[str, ...]:
        return tuple(context.samples) if self.entries is None else self.entries


def replaceable_layers(graph: Graph, entry: str) -> tuple[Conv, ...]:
    """The 3x3 convolutions of an entry that a structure can stand for."""
    return tuple(
        layer
        for layer in graph.layers_of(entry)
        if isinstance(layer, Conv)
        and graph.tensors[layer.weight].shape[2:] == (3, 3)
        and graph.tensors[layer.weight].shape[1] > 1
        and (layer.groups, layer.pad) == (1, (1, 1, 1, 1))
        and layer.stride[0] == layer.stride[1]
    )


def substitute_layers(
    graph: Graph, entry: str, structure: Structure, ratio: float, rng: np.random.Generator
) -> Graph:
    """The graph with untrained structures in place of an entry's 3x3 convolutions."""
    layers, tensors = list[Layer](), dict(graph.tensors)
    old = {layer.name for layer in replaceable_layers(graph, entry)}
    for layer in graph.layers:
        if layer.name not in old or not isinstance(layer, Conv):
            layers.append(layer)
            continue
        c_out, c_in = graph.tensors[layer.weight].shape[:2]
        parts = _Parts(layer, rng)
        if structure == "depthwise":
            parts.depthwise_pointwise(layer.inputs[0], c_in, c_out, layer.output)
        else:
            parts.fire(structure, c_in, c_out, squeeze_width(c_out, ratio))
        layers += parts.layers
        tensors |= parts.tensors
    used = {name for layer in layers for name in layer.tensor_names()}
    kept = {name: tensor for name, tensor in tensors.items() if name in used}
    graph = replace(graph, layers=tuple(layers), tensors=kept)
    graph.validate()
    return graph


class _Parts:
    """Layers and weights of one structure, named after the layer that it stands for."""

    def __init__(self, layer: Conv, rng: np.random.Generator) -> None:
        self.origin = layer
        self.layers: list[Layer] = []
        self.tensors: dict[str, Tensor] = {}
        self._rng = rng

    def fire(self, structure: str, c_in: int, c_out: int, squeezed: int) -> None:
        left = c_out // 2
        name = self.origin.name
        stride = self.origin.stride
        inner = self._unit("squeeze", self.origin.inputs[0], (squeezed, c_in, 1, 1))
        branches = (f"{name}.expand:0", f"{name}.spread:0")
        self._conv("expand", inner, branches[0], (left, squeezed, 1, 1), stride)
        if structure == "fire":
            shape = (c_out - left, squeezed, 3, 3)
            self._conv("spread", inner, branches[1], shape, stride)
        else:
            self.depthwise_pointwise(inner, squeezed, c_out - left, branches[1])
        self.layers.append(Concat(f"{name}.join", branches, self.origin.output))

    def depthwise_pointwise(self, x: str, c_in: int, c_out: int, output: str) -> None:
        inner = self._unit("depthwise", x, (c_in, 1, 3, 3), self.origin.stride, c_in)
        self._conv("pointwise", inner, output, (c_out, c_in, 1, 1))

    def _unit(
        self,
        part: str,
        x: str,
        shape: tuple[int, ...],
        stride: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> str:
        """Convolution, norm, ReLU; returns the activation."""
        name = f"{self.origin.name}.{part}"
        self._conv(part, x, f"{name}:0", shape, stride, groups)
        norm = Affine(f"{name}.norm", (f"{name}:0",), f"{name}:1", f"{name}.scale", f"{name}.shift")
        self.layers += [norm, Relu(f"{name}.relu", (norm.output,), f"{name}:2")]
        self._add(norm.weight, np.ones(shape[0]))
        self._add(norm.bias, np.zeros(shape[0]))
        return f"{name}:2"

    def _conv(
        self,
        part: str,
        x: str,
        output: str,
        shape: tuple[int, ...],
        stride: tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> None:
        name = f"{self.origin.name}.{part}"
        margin = shape[2] // 2
        pad = (margin, margin, margin, margin)
        self.layers.append(Conv(name, (x,), output, f"{name}.weight", None, stride, pad, groups))
        spread = np.sqrt(2 / np.prod(shape[1:]))  # He et al. 2015
        self._add(f"{name}.weight", self._rng.standard_normal(shape) * spread)

    def _add(self, name: str, values: NDArray[Any]) -> None:
        self.tensors[name] = encode_float32(values)
