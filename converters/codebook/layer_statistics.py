"""What the weights of a layer matter: how large its inputs are and how far its outputs reach.

An error dw of the weight from input channel c at one kernel tap to output o moves the
embedding by about dw^2 * E[x_c^2] * E[(d embedding / d y_o)^2] (the diagonal of a Kronecker-
factored curvature, Martens and Grosse 2015, "Optimizing Neural Networks with K-FAC").
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from edgeid.converters.graphs.torch_graph import GraphModule
from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import Conv, Gemm, Graph, Layer

BATCH = 32


class LayerWalk(GraphModule):
    """Runs one entry on a fixed set of inputs, layer by layer, from front to back.

    Weights may be replaced on the way (``set_weight``): layers behind see the effect. Only
    activations that are still to be read are kept.
    """

    def __init__(self, graph: Graph, entry: str, inputs: Tensor) -> None:
        super().__init__(graph, (entry,))
        self._left = list(graph.layers_of(entry))
        self._values = {graph.entry(entry).input: inputs}
        self._output = graph.entry(entry).output

    def input_of(self, layer: Layer) -> Tensor:
        """What the layer reads, after running everything before it.

        Raises:
            GraphError: the walk is past the layer, or never comes to it.
        """
        if all(x.name != layer.name for x in self._left):
            raise GraphError(f"layer {layer.name!r} is behind, or not on the way")
        while self._left[0].name != layer.name:
            self._step()
        return self._values[layer.inputs[0]]

    def activation(self, name: str) -> Tensor:
        """An activation, after running what it takes; the walk goes no further.

        Raises:
            GraphError: nothing needs it any more, or nothing writes it.
        """
        while name not in self._values and self._left:
            self._step()
        if name not in self._values:
            raise GraphError(f"activation {name!r} is behind, or not on the way")
        return self._values[name]

    def finish(self) -> Tensor:
        """The entry's output."""
        return self.activation(self._output)

    @torch.no_grad()
    def set_weight(self, name: str, value: Tensor) -> None:
        """Replace a weight for the layers still to come."""
        self.weight(name).copy_(value)

    @torch.no_grad()
    def _step(self) -> None:
        layer = self._left[0]
        inputs = [self._values[name] for name in layer.inputs]
        starts = range(0, len(inputs[0]), BATCH)
        parts = [self._run(layer, [x[i : i + BATCH] for x in inputs]) for i in starts]
        del self._left[0]
        wanted = {self._output, *(name for x in self._left for name in x.inputs)}
        self._values[layer.output] = torch.cat(parts)
        self._values = {name: v for name, v in self._values.items() if name in wanted}


def tap_moments(layer: Conv | Gemm, inputs: Tensor, kernel: Sequence[int]) -> Tensor:
    """E[x^2] that each weight of a filter meets: (in, height, width), or (in,) of a Gemm.

    Args:
        layer: without groups.
        inputs: of the layer, (N, in[, rows, columns]).
        kernel: shape of the weight.
    """
    mean = inputs.square().mean(0)
    if isinstance(layer, Gemm):
        return mean
    top, left, bottom, right = layer.pad
    padded = functional.pad(mean[None], (left, right, top, bottom))
    height, width = kernel[2:]
    patches = functional.unfold(padded, (height, width), stride=layer.stride)[0]
    return patches.mean(1).reshape(-1, height, width)


def output_reach(
    module: GraphModule, entry: str, activations: Sequence[str], inputs: Tensor, seed: int
) -> dict[str, Tensor]:
    """For each activation (channels,): E[|d embedding / d y|^2], summed over positions.

    The embedding is taken at unit length. The expectation runs over the inputs, with one
    random direction of the embedding for each (Hutchinson's estimator).
    """
    generator = torch.Generator().manual_seed(seed)
    totals: dict[str, Tensor] = {}
    for start in range(0, len(inputs), BATCH):
        values = module.activations(inputs[start : start + BATCH], entry)
        unit = functional.normalize(values[module.graph.entry(entry).output].flatten(1))
        direction = torch.randn(unit.shape, generator=generator)
        gradients = torch.autograd.grad(
            (unit * direction).sum(), [values[name] for name in activations]
        )
        for name, gradient in zip(activations, gradients, strict=True):
            reach = gradient.square().reshape(*gradient.shape[:2], -1).sum((0, 2)) / len(inputs)
            totals[name] = totals[name] + reach if name in totals else reach
    return totals
