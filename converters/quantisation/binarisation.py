"""Binarisation training: weights of one or two bits, learned by distillation (paper 003).

The paper has the row "binarization training, 2 bits" without saying how. Here every filter
(output channel) has one magnitude a, and its weights are

    1 bit   {-a, a}      sign(w), a = mean |w|                     (Rastegari et al. 2016)
    2 bits  {-a, 0, a}   0 where |w| <= 0.7 mean |w|, a = mean |w| of the others
                                                                   (Li and Liu 2016)

Full-precision weights are trained behind them: the network computes with the quantised ones,
and the gradient passes as if nothing was quantised. Magnitudes are not stored with the
weights but in the Affine after the layer, where the batch norm of the training ends up too:
a weight is an index into the dictionary -1, (0,) 1, and storing it rounds nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from edgeid.converters.graphs.normalisation import NormModule, split_norms
from edgeid.converters.graphs.weight_calibration import (
    Schedule,
    calibrate_weights,
    draw_inputs,
    regression_task,
)
from edgeid.converters.quantisation.dictionary import SCOPES, Scope
from edgeid.converters.recipe import Context, Pass, PassResult
from edgeid.runtime.encoding import Dense, FloatArray, encode_float32
from edgeid.runtime.errors import DataError, GraphError
from edgeid.runtime.graph import Affine, Conv, Gemm, Graph, Layer
from edgeid.runtime.indexed import Indexed, make_indexed

THRESHOLD = 0.7  # of the mean magnitude; with two bits a weight below it is 0

Bits = Literal[1, 2]


@dataclass(frozen=True)
class Binarise(Pass):
    """Give weights one or two bits, and train the network to give its old embeddings.

    Rules: only uncompressed weights in ``scope`` are binarised, and of these only those with
    ``smallest`` values or more: the first layer on grey images has few, and needs them. All
    other weights, biases and slopes of the entries are trained along. Needs samples of the
    entries, no labels.

    Attributes:
        bits: 1 or 2 a weight.
        scope: "convolutions", or "all": fully connected layers too.
        smallest: tensors of fewer weights stay as they are.
        entries: to change; None: all that have samples.
        epochs: of training over all samples.
        batch, rate, settle, bfloat16: see ``weight_calibration``.
    """

    bits: Bits = 2
    scope: Scope = "convolutions"
    smallest: int = 1024
    entries: tuple[str, ...] | None = None
    epochs: int = 10
    batch: int = 64
    rate: float = 1e-3
    settle: int = 16
    bfloat16: bool = False

    name: ClassVar[str] = "binarise"

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in (1, 2):
            raise DataError(f"bits {self.bits!r} must be 1 or 2")
        if self.scope not in SCOPES:
            raise DataError(f"scope {self.scope!r} is none of {', '.join(SCOPES)}")
        if self.smallest < 1:
            raise DataError(f"smallest {self.smallest!r} must be 1 or more")

    def requires(self, graph: Graph, context: Context) -> None:
        """Raise DataError without samples; GraphError where there is no weight to binarise,
        or one of them serves another entry too, which would not be trained."""
        entries = self._entries(context)
        for entry in entries:
            context.inputs(entry)
        chosen = self._weights(graph, entries)
        if not chosen:
            raise GraphError(
                f"scope {self.scope!r}: entries {[*entries]} have no uncompressed weight of "
                f"{self.smallest} values or more"
            )
        trained = {layer.name for entry in entries for layer in graph.layers_of(entry)}
        for layer in graph.layers:
            if layer.name not in trained and chosen.intersection(layer.tensor_names()):
                raise GraphError(
                    f"layer {layer.name!r} of an entry that is not trained shares its weight "
                    f"with {[*entries]}: give samples of that entry too"
                )

    def call(self, graph: Graph, context: Context) -> PassResult:
        """Train, and store what was binarised by index."""
        torch.set_num_threads(context.threads)
        entries = self._entries(context)
        tasks = [regression_task(graph, e, context.inputs(e), self.batch) for e in entries]
        schedule = Schedule(self.epochs, self.rate, self.settle, self.bfloat16)
        inputs = draw_inputs(tasks, schedule.settle, (context.seed, 0))
        chosen = self._weights(graph, entries)
        graph = split_norms(graph, entries)
        old = NormModule(graph, entries)
        old.measure(inputs)
        module = BinaryModule(graph, entries, chosen, self.bits)
        module.load_state_dict(old.state_dict())  # channels keep the mean and spread they had
        module.settle(inputs)
        loss = calibrate_weights(
            module, tasks, schedule, (context.seed, 1), lambda x, what: context.track(x, what)
        )
        module.settle(inputs)
        weights = sum(math.prod(graph.tensors[name].shape) for name in chosen)
        figures: dict[str, float | int | str] = {f"loss/{k}": v for k, v in loss.items()}
        figures |= {"tensors": len(chosen), "weights": weights, "bits": self.bits}
        line = f"{len(chosen)} tensors of {weights:,} weights: {self.bits} bits a weight"
        return PassResult(module.to_graph(), (line,), figures)

    def ensures(self, before: Graph, after: Graph, context: Context) -> None:
        """Raise GraphError unless the weights are indices of so many bits."""
        for name in sorted(self._weights(before, self._entries(context))):
            tensor = after.tensors.get(name)
            if not isinstance(tensor, Indexed) or tensor.bits > self.bits:
                raise GraphError(f"weight {name!r} was not stored with {self.bits} bits")

    def _entries(self, context: Context) -> tuple[str, ...]:
        return tuple(context.samples) if self.entries is None else self.entries

    def _weights(self, graph: Graph, entries: Sequence[str]) -> frozenset[str]:
        kinds = Conv if self.scope == "convolutions" else Conv | Gemm
        layers = [layer for entry in entries for layer in graph.layers_of(entry)]
        names = {layer.weight for layer in layers if isinstance(layer, kinds)}
        return frozenset(
            name
            for name in names
            if isinstance(tensor := graph.tensors[name], Dense)
            and math.prod(tensor.shape) >= self.smallest
        )


def binarise(weight: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Signs and magnitudes of a weight's filters.

    Args:
        weight: (filters, ...).
        bits: 1: signs are -1 and 1; 2: also 0.

    Returns:
        Signs of the weight's shape, and magnitudes (filters, 1, ...): their product is the
        binarised weight. A filter of zeros has magnitude 0.
    """
    axes = tuple(range(1, weight.ndim))
    size = weight.abs()
    mean = size.mean(axes, keepdim=True)
    if bits == 1:
        return torch.where(weight < 0, -1.0, 1.0), mean
    some = (size > THRESHOLD * mean).float()
    return weight.sign() * some, (size * some).sum(axes, True) / some.sum(axes, True).clamp(min=1)


class BinaryModule(NormModule):
    """A graph with norms split off, which computes with some of its weights binarised.

    Args:
        binary: names of those weights.
        bits: of each, 1 or 2.
    """

    def __init__(
        self, graph: Graph, entries: Sequence[str], binary: frozenset[str], bits: int
    ) -> None:
        self._binary, self._bits = binary, bits  # the norms are read while all is built
        super().__init__(graph, entries)

    def weight(self, name: str) -> Tensor:
        weight = super().weight(name)
        if name not in self._binary:
            return weight
        with torch.no_grad():
            signs, magnitudes = binarise(weight, self._bits)
        return signs * magnitudes + (weight - weight.detach())  # adds 0, and the gradient

    def to_graph(self) -> Graph:
        """The graph as it is stored: signs by index, magnitudes in an Affine after the
        layer; the norms of other layers are folded."""
        weights = {name: super(BinaryModule, self).weight(name) for name in self._binary}
        signs = {name: binarise(w.detach(), self._bits)[0] for name, w in weights.items()}
        return store_signs(super().to_graph(), {n: s.numpy() for n, s in signs.items()}, self._bits)


def store_signs(graph: Graph, signs: Mapping[str, FloatArray], bits: int) -> Graph:
    """Take the magnitudes out of weights; the same outputs.

    Args:
        graph: its weights of these names are signs times a number for each filter.
        signs: of these weights: -1, 1 and, with two bits, 0.
        bits: 1 or 2.
    """
    levels = np.array([-1, 1] if bits == 1 else [-1, 0, 1], np.float16)
    tensors = dict(graph.tensors)
    followed = {layer.inputs[0]: layer for layer in graph.layers if isinstance(layer, Affine)}
    layers = list[Layer]()
    for layer in graph.layers:
        if not isinstance(layer, Conv | Gemm) or layer.weight not in signs:
            layers.append(layer)
            continue
        scale = _magnitudes(graph.tensors[layer.weight].decode(), signs[layer.weight])
        shift = tensors[layer.bias].decode() if layer.bias else np.zeros_like(scale)
        norm = followed.get(layer.output)
        if norm is None:
            name, inner = f"{layer.name}.norm", f"{layer.output}:product"
            norm = Affine(name, (inner,), layer.output, f"{name}.weight", f"{name}.bias")
            layers += [replace(layer, bias=None, output=inner), norm]
        else:  # two layers share the weight, and have kept norms of their own
            layers.append(replace(layer, bias=None))
            gain = tensors[norm.weight].decode()
            scale, shift = scale * gain, shift * gain + tensors[norm.bias].decode()
        tensors |= {norm.weight: encode_float32(scale), norm.bias: encode_float32(shift)}
    for name, values in signs.items():
        tensors[name] = make_indexed(levels, np.searchsorted(levels, values))
    used = {name for layer in layers for name in layer.tensor_names()}
    kept = {name: tensor for name, tensor in tensors.items() if name in used}
    graph = replace(graph, layers=tuple(layers), tensors=kept)
    graph.validate()
    return graph


def _magnitudes(weight: FloatArray, signs: FloatArray) -> FloatArray:
    """m of weight = m * signs, (filters,); negative where a norm's scale is."""
    rows, flags = weight.reshape(len(weight), -1), signs.reshape(len(signs), -1)
    some = np.abs(flags).argmax(1)[:, None]  # a weight of the filter that is not 0, if any
    found = np.take_along_axis(rows, some, 1) * np.take_along_axis(flags, some, 1)
    return np.asarray(found[:, 0], np.float32)
