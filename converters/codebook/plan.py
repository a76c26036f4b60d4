"""Before anything is coded: pairs, what each weight matters, K and r of each pair, and the
order of the channels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgeid.converters.codebook.channel_order import Reader, choose_order
from edgeid.converters.codebook.coded_weights import Coding
from edgeid.converters.codebook.layer_statistics import LayerWalk, output_reach, tap_moments
from edgeid.converters.codebook.pairing import Pair, Pairing
from edgeid.converters.codebook.subvectors import cut
from edgeid.converters.graphs.output_scales import affines
from edgeid.converters.graphs.permutation import ChannelAxis, ChannelGroup, channel_groups, permute
from edgeid.converters.graphs.torch_graph import to_torch
from edgeid.converters.recipe import Context
from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.graph import Conv, Gemm, Graph

REACHED = 128  # samples on which the reach is measured, at most
FLOOR = 1e-3  # of the mean: a weight that seems not to matter still counts a little

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Importance:
    """What a squared error of a weight costs: an outer product of inputs and outputs.

    Attributes:
        moments: for each weight (layer, (in[, height, width]) E[x^2]), one layer an entry.
        reach: for each layer, (out,) E[|d embedding / d y|^2].
    """

    moments: dict[str, list[tuple[str, Tensor]]]
    reach: dict[str, Tensor]

    def of(self, name: str) -> Tensor:
        """(out, in[, height, width]): the expected squared error of the embedding for each
        squared error of the weight, summed over the layers that read it."""
        total: Tensor | None = None
        for layer, moments in self.moments[name]:
            reach = self.reach[layer].reshape(-1, *[1] * moments.ndim)
            product = reach * moments[None]
            total = product if total is None else total + product
        assert total is not None
        return total


def decoded(graph: Graph, names: Iterable[str]) -> Weights:
    """Weights as float32 tensors of their own."""
    return {name: torch.from_numpy(np.array(graph.tensors[name].decode())) for name in names}


def first_readers(pair: Pair, graph: Graph) -> dict[str, list[tuple[str, Conv | Gemm]]]:
    """For each weight of a pair (entry, layer), one layer an entry: the first that reads it."""
    layers = {layer.name: layer for layer in graph.layers}
    found: dict[str, list[tuple[str, Conv | Gemm]]] = {}
    for tensor, readers in zip(pair.tensors, pair.readers, strict=True):
        first: dict[str, Conv | Gemm] = {}
        for entry, name in readers:
            layer = layers[name]
            assert isinstance(layer, Conv | Gemm)
            first.setdefault(entry, layer)
        found[tensor] = list(first.items())
    return found


def measure_moments(
    pair: Pair, graph: Graph, walks: Mapping[str, LayerWalk]
) -> dict[str, list[tuple[str, Tensor]]]:
    """E[x^2] before the layers of a pair, in the walks' present state."""
    found: dict[str, list[tuple[str, Tensor]]] = {}
    for tensor, readers in first_readers(pair, graph).items():
        shape = graph.tensors[tensor].shape
        found[tensor] = [
            (layer.name, _raised(tap_moments(layer, walks[entry].input_of(layer), shape)))
            for entry, layer in readers
        ]
    return found


def measure_reach(
    graph: Graph, pairing: Pairing, context: Context, count: int
) -> dict[str, Tensor]:
    """The reach of each coded layer's raw output, that is, before its Affine."""
    module = to_torch(graph)
    following = affines(graph)
    reach: dict[str, Tensor] = {}
    coded: dict[str, list[str]] = {}
    for pair in pairing.pairs:
        for readers in pair.readers:
            for entry, layer in readers:
                coded.setdefault(entry, []).append(layer)
    for entry, layers in coded.items():
        names = [following[layer].inputs[0] for layer in layers]
        x = torch.from_numpy(context.inputs(entry)[: min(count, REACHED)])
        found = output_reach(module, entry, names, x, context.seed)
        reach.update({la: _raised(found[n]) for la, n in zip(layers, names, strict=True)})
    return reach


def measure_importance(graph: Graph, pairing: Pairing, context: Context, count: int) -> Importance:
    """Of all weights to be coded, in the network as it is."""
    moments: dict[str, list[tuple[str, Tensor]]] = {}
    walks = make_walks(graph, pairing, context, count)
    for pair in pairing.pairs:
        moments.update(measure_moments(pair, graph, walks))
    return Importance(moments, measure_reach(graph, pairing, context, count))


def make_walks(
    graph: Graph, pairing: Pairing, context: Context, count: int
) -> dict[str, LayerWalk]:
    """A walk for each entry that has coded weights, over its first ``count`` samples."""
    entries = {e for pair in pairing.pairs for readers in pair.readers for e, _ in readers}
    return {
        name: LayerWalk(graph, name, torch.from_numpy(context.inputs(name)[:count]))
        for name in sorted(entries)
    }


def unit_embeddings(
    graph: Graph, entry: str, inputs: Tensor, weights: Mapping[str, Tensor] | None = None
) -> Tensor:
    """(N, d) at unit length, with some weights replaced."""
    walk = LayerWalk(graph, entry, inputs)
    for name, weight in (weights or {}).items():
        if name in walk.tensor_names:
            walk.set_weight(name, weight)
    return functional.normalize(walk.finish().flatten(1))


def embedding_cosines(
    original: Graph, changed: Graph, context: Context, entries: Sequence[str]
) -> dict[str, float]:
    """Mean cosine between the embeddings of two graphs, for each entry."""
    found = {}
    for entry in entries:
        x = torch.from_numpy(context.inputs(entry))
        pair = unit_embeddings(original, entry, x), unit_embeddings(changed, entry, x)
        found[entry] = float((pair[0] * pair[1]).sum(1).mean())
    return found


def reorder_channels(
    graph: Graph, pairing: Pairing, codings: Sequence[Coding], importance: Importance
) -> Graph:
    """Permute every channel group that coded weights read; the outputs stay the same."""
    place = {t: number for number, pair in enumerate(pairing.pairs) for t in pair.tensors}
    scaled = {n: (w * importance.of(n).sqrt()).numpy() for n, w in decoded(graph, place).items()}
    # the weights as they matter, in a graph of their own that is permuted alongside
    shadow = replace(
        graph, tensors=graph.tensors | {name: encode_float32(w) for name, w in scaled.items()}
    )
    ordered: set[str] = set()
    for group in channel_groups(graph):
        axes = [a for a in group.readers() if a.tensor in place and _aligned(a, codings, place)]
        if group.fixed or not axes:
            continue
        r = max(codings[place[a.tensor]].r for a in axes)
        readers = []
        for axis in axes:
            tensors = pairing.pairs[place[axis.tensor]].tensors
            readers.append(_reader(shadow, group, axis, [t for t in tensors if t in ordered], r))
        order = choose_order(readers, r, float(codings[place[axes[0].tensor]].bits))
        graph, shadow = permute(graph, group, order), permute(shadow, group, order)
        ordered.update(axis.tensor for axis in axes)
    return graph


def _aligned(axis: ChannelAxis, codings: Sequence[Coding], place: Mapping[str, int]) -> bool:
    """Whether the group's channels begin at a sub-space and are single channels."""
    return axis.block == 1 and axis.start % codings[place[axis.tensor]].r == 0


def _reader(
    shadow: Graph, group: ChannelGroup, axis: ChannelAxis, partners: Sequence[str], r: int
) -> Reader:
    spaces = math.ceil(group.channels / r)
    weights = {n: w.double() for n, w in decoded(shadow, [axis.tensor, *partners]).items()}
    columns = weights[axis.tensor].transpose(0, 1).flatten(1)
    columns = columns[axis.start : axis.start + group.channels]
    beside = np.zeros((spaces, r, r))
    for partner in partners:
        vectors = cut(weights[partner], r)[axis.start // r :][:spaces]
        beside[: len(vectors)] += (vectors.transpose(1, 2) @ vectors).numpy()
    return Reader((columns @ columns.T).numpy(), beside)


def _raised(values: Tensor) -> Tensor:
    return values.clamp_min(FLOOR * float(values.mean())).clamp_min(1e-30)
