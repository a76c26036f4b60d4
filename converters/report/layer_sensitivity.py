"""What the new weights of one layer alone cost: the layers that a recipe hurts most.

Each layer of the original network in turn takes the weights that the last step stores for
it, all others stay; the loss is one minus the mean cosine to the original embeddings.
Passes may have put the channels of a layer into another order and its scale into an Affine
behind it. Both are undone: the order is found by matching what the channels compute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from edgeid.converters.graphs.torch_graph import GraphModule
from edgeid.converters.quantisation.dictionary import relative_error
from edgeid.converters.report.layer_weights import LayerWeights, restored_weight
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.graph import Conv, Gemm, Graph, Layer

SAMPLES = 64
BATCH = 16  # bounds the activations that are held
MATCHED = 16  # samples that the order of channels is found with


@dataclass(frozen=True)
class LayerSensitivity:
    """One weighted layer of the original.

    Attributes:
        name: of the layer.
        loss: 1 - mean cosine with this layer's weights alone changed; None where the layer
            could not be compared.
        error: relative one of the weight, |W' - W| / |W|.
        note: why it could not be compared; empty where it was.
    """

    name: str
    loss: float | None
    error: float | None
    note: str = ""


def layer_sensitivity(
    original: Graph, final: Graph, samples: Mapping[str, FloatArray]
) -> dict[str, tuple[LayerSensitivity, ...]]:
    """By entry, front to back; entries without samples are left out.

    Args:
        original, final: graphs with the same entries.
        samples: (N, *shape) of each entry; at most 64 are used.
    """
    return {entry: _of_entry(original, final, entry, x[:SAMPLES]) for entry, x in samples.items()}


def _of_entry(
    original: Graph, final: Graph, entry: str, x: FloatArray
) -> tuple[LayerSensitivity, ...]:
    old, new = (LayerWeights(graph, entry, x[:MATCHED]) for graph in (original, final))
    found: dict[str, LayerSensitivity] = {}
    trials: dict[str, FloatArray] = {}
    for layer in original.layers_of(entry):
        if not isinstance(layer, Conv | Gemm):
            continue
        weight, note = restored_weight(old, new, layer.name)
        if weight is None:
            found[layer.name] = LayerSensitivity(layer.name, None, None, note)
            continue
        before = original.tensors[layer.weight].decode()
        error = relative_error(before, weight)
        found[layer.name] = LayerSensitivity(layer.name, 0.0, error)
        if error > 0:
            trials[layer.name] = weight
    losses = _losses(original, entry, x, trials)
    return tuple(
        LayerSensitivity(name, losses[name], one.error) if name in losses else one
        for name, one in found.items()
    )


class _Reruns(GraphModule):
    """One entry, run again from a layer on with another weight there."""

    @torch.no_grad()
    def rerun(
        self, layers: Sequence[Layer], values: dict[str, torch.Tensor], weight: FloatArray
    ) -> torch.Tensor:
        """The last activation; ``layers`` begin with the one that takes the weight."""
        first = layers[0]
        assert isinstance(first, Conv | Gemm)
        parameter = self.weight(first.weight)
        kept = parameter.clone()
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(weight)))
        fresh: dict[str, torch.Tensor] = {}
        for layer in layers:
            fresh[layer.output] = self._run(layer, [fresh.get(i, values[i]) for i in layer.inputs])
        parameter.copy_(kept)
        return fresh[layers[-1].output]


def _losses(
    graph: Graph, entry: str, x: FloatArray, trials: Mapping[str, FloatArray]
) -> dict[str, float]:
    if not trials:
        return {}
    module = _Reruns(graph, (entry,))
    layers, output = graph.layers_of(entry), graph.entry(entry).output
    sums = dict.fromkeys(trials, 0.0)
    for start in range(0, len(x), BATCH):
        with torch.no_grad():
            values = module.activations(torch.from_numpy(x[start : start + BATCH]), entry)
        target = functional.normalize(values[output].flatten(1).double())
        for at, layer in enumerate(layers):
            if layer.name in trials:
                y = module.rerun(layers[at:], values, trials[layer.name])
                moved = functional.normalize(y.flatten(1).double())
                sums[layer.name] += float((moved * target).sum(1).sub(1).neg().sum())
    return {name: max(0.0, total / len(x)) for name, total in sums.items()}
