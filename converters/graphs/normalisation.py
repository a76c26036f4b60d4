"""Batch norm on a graph: taken out of the layers for training, folded back afterwards.

A graph has its batch norms folded into the layers before them. Training needs them back:
every convolution becomes a convolution and an Affine, and the Affine is trained as a batch
norm with the statistics that the samples have at this place. The function stays the same.
Entries that share a weight keep norms of their own, so that the statistics of one task do
not meet those of the other (paper 004 merges "the parameters of the convolutional filters").
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgeid.converters.graphs.torch_graph import GraphModule, from_torch
from edgeid.runtime.encoding import FloatArray, encode_float32
from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import Affine, Concat, Conv, Gemm, Graph, Layer

EPS = 1e-5  # as torch.nn.BatchNorm2d


def split_norms(graph: Graph, entries: Sequence[str]) -> Graph:
    """Give every convolution and fully connected layer of the entries an Affine of its own,
    which takes over the bias; the same outputs. Layers that an Affine follows stay."""
    names = {layer.name for entry in entries for layer in graph.layers_of(entry)}
    followed = {
        layer.inputs[0] for layer in graph.layers if isinstance(layer, Affine)
    } & _read_once(graph)
    tensors, layers = dict(graph.tensors), list[Layer]()
    for layer in graph.layers:
        weighted = isinstance(layer, Conv | Gemm) and layer.name in names
        if not weighted or layer.output in followed:
            layers.append(layer)
            continue
        assert isinstance(layer, Conv | Gemm)
        norm = f"{layer.name}.norm"
        product = f"{layer.output}:product"
        layers.append(replace(layer, bias=None, output=product))
        layers.append(Affine(norm, (product,), layer.output, f"{norm}.weight", f"{norm}.bias"))
        tensors[f"{norm}.weight"] = encode_float32(np.ones(tensors[layer.weight].shape[0]))
        tensors[f"{norm}.bias"] = encode_float32(_bias(graph, layer))
    return _without_spares(replace(graph, layers=tuple(layers), tensors=tensors))


def fold_norms(graph: Graph) -> Graph:
    """Fold every Affine into the layer before it, also through a Concat, where that layer
    shares its weight with none; the same outputs."""
    graph = _norms_before_joins(graph)
    readers = Counter(name for layer in graph.layers for name in layer.tensor_names())
    writers = {layer.output: layer for layer in graph.layers}
    alone = _read_once(graph)
    tensors = dict(graph.tensors)
    folded: dict[str, Layer | None] = {}
    for layer in graph.layers:
        before = writers.get(layer.inputs[0])
        if not isinstance(layer, Affine) or layer.inputs[0] not in alone:
            continue
        if not isinstance(before, Conv | Gemm) or readers[before.weight] > 1:
            continue
        scale, shift = (tensors[name].decode() for name in layer.tensor_names())
        weight = tensors[before.weight].decode()
        column = scale.reshape(-1, *[1] * (weight.ndim - 1)).astype(np.float64)
        bias = f"{before.name}.bias"
        tensors[bias] = encode_float32(_bias(graph, before).astype(np.float64) * scale + shift)
        tensors[before.weight] = encode_float32(weight * column)
        folded[before.name] = replace(before, output=layer.output, bias=bias)
        folded[layer.name] = None
    layers = [folded.get(layer.name, layer) for layer in graph.layers]
    kept = tuple(layer for layer in layers if layer is not None)
    return _without_spares(replace(graph, layers=kept, tensors=tensors))


def _norms_before_joins(graph: Graph) -> Graph:
    """An Affine after a Concat becomes one on each input of it, where these are convolutions
    that it alone reads."""
    writers = {layer.output: layer for layer in graph.layers}
    alone = _read_once(graph)
    tensors = dict(graph.tensors)
    changed: dict[str, tuple[Layer, ...]] = {}
    for norm in graph.layers:
        join = writers.get(norm.inputs[0])
        if not (isinstance(norm, Affine) and isinstance(join, Concat) and join.output in alone):
            continue
        sources = [writers.get(name) for name in join.inputs]
        convs = [x for x in sources if isinstance(x, Conv) and x.output in alone]
        if len(convs) != len(join.inputs):
            continue
        ends = np.cumsum([tensors[x.weight].shape[0] for x in convs])[:-1]
        scales, shifts = (np.split(tensors[name].decode(), ends) for name in norm.tensor_names())
        parts = tuple(
            Affine(
                name := f"{conv.name}.norm",
                (conv.output,),
                f"{conv.output}:normed",
                f"{name}.weight",
                f"{name}.bias",
            )
            for conv in convs
        )
        for part, scale, shift in zip(parts, scales, shifts, strict=True):
            tensors |= {part.weight: encode_float32(scale), part.bias: encode_float32(shift)}
        joined = replace(join, inputs=tuple(x.output for x in parts), output=norm.output)
        changed |= {join.name: (*parts, joined), norm.name: ()}
    layers = tuple(x for layer in graph.layers for x in changed.get(layer.name, (layer,)))
    return _without_spares(replace(graph, layers=layers, tensors=tensors))


def _read_once(graph: Graph) -> set[str]:
    """Activations that one layer alone reads."""
    readers = Counter(name for layer in graph.layers for name in layer.inputs)
    readers.update(entry.output for entry in graph.entries)
    return {name for name, count in readers.items() if count == 1}


def _bias(graph: Graph, layer: Conv | Gemm) -> FloatArray:
    if layer.bias is None:
        return np.zeros(graph.tensors[layer.weight].shape[0], np.float32)
    return graph.tensors[layer.bias].decode()


def _without_spares(graph: Graph) -> Graph:
    used = {name for layer in graph.layers for name in layer.tensor_names()}
    kept = {name: tensor for name, tensor in graph.tensors.items() if name in used}
    graph = replace(graph, tensors=kept)
    graph.validate()
    return graph


class ChannelNorm(nn.Module):
    """Batch norm over all axes but the second, of feature maps and of vectors."""

    mean: Tensor
    var: Tensor

    def __init__(self, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(scale.detach().clone())
        self.bias = nn.Parameter(shift.detach().clone())
        self.register_buffer("mean", torch.zeros_like(scale))
        self.register_buffer("var", torch.full_like(scale, 1 - EPS))
        self.seen: int | None = None  # batches while statistics are settled, else None

    def forward(self, x: Tensor) -> Tensor:
        if self.seen is None:
            return F.batch_norm(
                x, self.mean, self.var, self.weight, self.bias, self.training, 0.1, EPS
            )
        # not batch_norm's own average: it keeps n / (n - 1) times the variance it divides by,
        # which would shrink the values a little with every round
        rows = x.detach().transpose(0, 1).flatten(1)
        mean, var = rows.mean(1), rows.var(1, correction=0)
        self.seen += 1
        self.mean.lerp_(mean, 1 / self.seen)
        self.var.lerp_(var, 1 / self.seen)
        return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, EPS)

    def restate(self, mean: Tensor, var: Tensor) -> None:
        """Take other statistics without changing what is computed from the present ones."""
        scale, shift = self.affine()
        self.mean.copy_(mean)
        self.var.copy_(var)
        with torch.no_grad():
            self.weight.copy_(scale * (self.var + EPS).sqrt())
            self.bias.copy_(shift + scale * self.mean)

    def affine(self) -> tuple[Tensor, Tensor]:
        """The scale and shift that it is in inference."""
        scale = self.weight.detach() / (self.var + EPS).sqrt()
        return scale, self.bias.detach() - self.mean * scale


class NormModule(GraphModule):
    """A graph as a torch module whose Affine layers are batch norms.

    ``norms`` holds them in the order of ``norm_layers``; graphs with the same layers have
    them in the same order, whatever their weights.

    Raises:
        GraphError: a layer serves two of the entries, so that no statistics are its own.
    """

    def __init__(self, graph: Graph, entries: Sequence[str]) -> None:
        super().__init__(graph, tuple(entries))
        served = Counter(layer.name for entry in entries for layer in graph.layers_of(entry))
        twice = [name for name, count in served.items() if count > 1]
        if twice:
            raise GraphError(f"layer {twice[0]!r} serves two entries: its norm cannot be trained")
        self.norm_layers = tuple(
            layer for layer in graph.layers if isinstance(layer, Affine) and layer.name in served
        )
        self.norms = nn.ModuleList(
            ChannelNorm(self.weight(layer.weight), self.weight(layer.bias))
            for layer in self.norm_layers
        )
        self._norm_of = {layer.name: i for i, layer in enumerate(self.norm_layers)}

    def norm(self, layer: str) -> ChannelNorm:
        """The norm that an Affine layer is."""
        found = self.norms[self._norm_of[layer]]
        assert isinstance(found, ChannelNorm)
        return found

    def norms_of(self, entry: str) -> list[ChannelNorm]:
        """The norms of an entry in execution order."""
        return [self.norm(x.name) for x in self.graph.layers_of(entry) if x.name in self._norm_of]

    def _run(self, layer: Layer, inputs: list[Tensor]) -> Tensor:
        if layer.name in self._norm_of:
            normed: Tensor = self.norm(layer.name)(inputs[0])
            return normed
        return super()._run(layer, inputs)

    def measure(self, inputs: Mapping[str, Iterable[Tensor]]) -> None:
        """Take the statistics of these inputs (batches for each entry); same function."""
        self.eval()
        with torch.no_grad():
            for entry, batches in inputs.items():
                sums = [_Moments() for _ in self.norms_of(entry)]
                places = [x for x in self.graph.layers_of(entry) if x.name in self._norm_of]
                for x in batches:
                    values = self.activations(x, entry)
                    for moments, place in zip(sums, places, strict=True):
                        moments.add(values[place.inputs[0]])
                for moments, norm in zip(sums, self.norms_of(entry), strict=True):
                    norm.restate(*moments.mean_and_variance())

    def settle(self, inputs: Mapping[str, Iterable[Tensor]]) -> None:
        """Re-estimate the statistics as plain averages over batches, scale and shift of the
        normalised values staying: each channel gets back the mean and the spread that it had
        before its weights changed."""
        self.train()
        with torch.no_grad():
            for entry, batches in inputs.items():
                for norm in self.norms_of(entry):
                    norm.seen = 0
                for x in batches:
                    self(x, entry)
                for norm in self.norms_of(entry):
                    norm.seen = None
        self.eval()

    def to_graph(self) -> Graph:
        """The graph with the present parameters, norms folded where they can be."""
        with torch.no_grad():
            for layer in self.norm_layers:
                scale, shift = self.norm(layer.name).affine()
                self.weight(layer.weight).copy_(scale)
                self.weight(layer.bias).copy_(shift)
        return fold_norms(from_torch(self))


class _Moments:
    """Running sums of an activation, by channel."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, x: Tensor) -> None:
        rows = x.double().transpose(0, 1).flatten(1)  # (channels, values)
        self.count += rows.shape[1]
        self.total = self.total + rows.sum(1)
        self.squares = self.squares + rows.square().sum(1)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        if not isinstance(self.total, Tensor) or not isinstance(self.squares, Tensor):
            raise GraphError("statistics need at least one batch of inputs")
        mean = self.total / self.count
        return mean.float(), (self.squares / self.count - mean**2).clamp(min=0).float()
