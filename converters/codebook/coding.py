"""Coding the pairs from front to back: each layer sees the inputs that it will have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from edgeid.converters.codebook.coded_weights import CodedPair, Coding, cluster
from edgeid.converters.codebook.layer_statistics import BATCH, LayerWalk
from edgeid.converters.codebook.output_error import OutputError, output_error, patches_of
from edgeid.converters.codebook.pair_files import pair_file, read_pair, write_pair
from edgeid.converters.codebook.pairing import Pair, Pairing
from edgeid.converters.codebook.plan import (
    Importance,
    decoded,
    first_readers,
    make_walks,
    measure_moments,
    measure_reach,
)
from edgeid.converters.codebook.refinement import refine
from edgeid.converters.graphs.output_scales import affines
from edgeid.converters.recipe import Context
from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.graph import Affine, Conv, Gemm, Graph

FURTHER = 16384  # samples of a layer whose filters have more weights than there are patches


@dataclass(frozen=True)
class CodedGraph:
    """A graph whose paired weights are codewords.

    Attributes:
        graph: with the coded weights as stored.
        pairs: the same weights, in the order of the pairing.
        importance: what an error of each coded weight costs.
    """

    graph: Graph
    pairs: tuple[CodedPair, ...]
    importance: Importance

    def entries(self) -> tuple[str, ...]:
        """Names of the entries that read coded weights."""
        return tuple(name for name, outputs in self._outputs().items() if outputs)

    def outputs(self) -> dict[str, list[str]]:
        """For each of them the activations behind its coded layers and their Affines."""
        return {name: outputs for name, outputs in self._outputs().items() if outputs}

    def _outputs(self) -> dict[str, list[str]]:
        coded = {name for pair in self.pairs for name in pair.shapes}
        following = affines(self.graph)
        return {
            entry.name: [
                following[layer.name].output
                for layer in self.graph.layers_of(entry.name)
                if layer.name in following and layer.tensor_names()[0] in coded
            ]
            for entry in self.graph.entries
        }


def code_graph(
    original: Graph,
    graph: Graph,
    pairing: Pairing,
    codings: Sequence[Coding],
    context: Context,
    *,
    samples: int,
    rounds: int = 0,
    done: Sequence[CodedPair] = (),
) -> CodedGraph:
    """Cluster the weights of each pair, front to back.

    The inputs that weigh a layer's errors are those behind the layers coded already. After
    each layer the scale and shift of its output channels are fitted by least squares to
    what the float network computes there. Pairs that are done are kept in ``context.work``
    and not clustered again.

    Args:
        original: with an Affine after each coded layer (``with_output_scales``).
        graph: the same, the weights that are not coded stored as they will be.
        pairing: its weights.
        codings: of each pair, and perhaps of others behind them.
        context: its samples feed the layers.
        samples: how many of them.
        rounds: of refinement against the original layers' outputs; 0 leaves what k-means made.
        done: the first pairs where they are coded already, in both graphs; they stay as they are.
    """
    originals = make_walks(original, pairing, context, samples)
    walks = make_walks(graph, pairing, context, samples)
    reach = measure_reach(original, pairing, context, samples)
    tensors = dict(graph.tensors)
    pairs: list[CodedPair] = []
    moments: dict[str, list[tuple[str, Tensor]]] = {}
    steps = list(zip(pairing.pairs, codings, strict=False))
    for number, (pair, coding) in enumerate(context.track(steps, "codebooks")):
        moments.update(measure_moments(pair, graph, walks))
        if number < len(done):
            pairs.append(done[number])
            continue
        importance = Importance({t: moments[t] for t in pair.tensors}, reach)
        coded = read_pair(pair_file(context.work, number), pair, graph, coding)
        if coded is None:
            coded = _clustered(pair, graph, importance, coding, context, number)
            if rounds:
                view = _View(graph, walks, originals, context, samples)
                errors = view.errors(pair, reach, coding.r)
                coded = refine(coded, errors, rounds)
            write_pair(coded, pair_file(context.work, number))
        pairs.append(coded)
        tensors.update(coded.stored())
        for name in pair.tensors:
            for walk in walks.values():
                if name in walk.tensor_names:
                    walk.set_weight(name, coded.decode(name))
        for name, values in _fitted(pair, graph, walks, originals).items():
            tensors[name] = encode_float32(values.numpy())
    changed = replace(graph, tensors=tensors)
    changed.validate()
    return CodedGraph(changed, tuple(pairs), Importance(moments, reach))


def _fitted(
    pair: Pair,
    graph: Graph,
    walks: Mapping[str, LayerWalk],
    originals: Mapping[str, LayerWalk],
) -> dict[str, Tensor]:
    """New scales and shifts behind the layers of a pair, set in the walks as well."""
    following = affines(graph)
    found: dict[str, Tensor] = {}
    for readers in pair.readers:
        for entry, layer in readers:
            affine = following[layer]
            raw = walks[entry].activation(affine.inputs[0])
            wanted = originals[entry].activation(affine.output)
            scale, shift = fit_channels(raw, wanted, *_decoded(graph, affine))
            walks[entry].set_weight(affine.weight, scale)
            walks[entry].set_weight(affine.bias, shift)
            found |= {affine.weight: scale, affine.bias: shift}
    return found


def _decoded(graph: Graph, affine: Affine) -> tuple[Tensor, Tensor]:
    values = decoded(graph, (affine.weight, affine.bias))
    return values[affine.weight], values[affine.bias]


def fit_channels(
    raw: Tensor, wanted: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    """The scale and shift of each channel (axis 1) that bring ``raw`` nearest to ``wanted``.

    A scale stays within half and twice the present one; a channel without variation keeps
    its scale and shift.
    """
    axes = (0, *range(2, raw.ndim))
    along = (1, -1, *[1] * (raw.ndim - 2))
    mean_raw, mean_wanted = raw.mean(axes), wanted.mean(axes)
    centred = raw - mean_raw.reshape(along)
    variance = centred.square().mean(axes)
    covariance = (centred * (wanted - mean_wanted.reshape(along))).mean(axes)
    factor = covariance / variance.clamp_min(1e-30) / torch.where(scale == 0, 1.0, scale)
    new = scale * factor.clamp(0.5, 2.0)
    usable = variance > 1e-12
    new_shift = mean_wanted - new * mean_raw
    return torch.where(usable, new, scale), torch.where(usable, new_shift, shift)


@dataclass(frozen=True)
class _View:
    """What layers read and put out on the samples, the pairs before them coded."""

    graph: Graph
    walks: Mapping[str, LayerWalk]
    originals: Mapping[str, LayerWalk]
    context: Context
    samples: int

    def errors(self, pair: Pair, reach: Mapping[str, Tensor], r: int) -> dict[str, OutputError]:
        """Of the outputs of a pair's layers, as functions of their weights."""
        found = {}
        for name, readers in first_readers(pair, self.graph).items():
            weight = decoded(self.graph, (name,))[name]
            parts = []
            for entry, layer in readers:
                seen = self._seen(entry, layer, weight[0].numel())
                parts.append(patches_of(layer, *seen, tuple(weight.shape), reach[layer.name]))
            found[name] = output_error(parts, weight, r)
        return found

    def _seen(self, entry: str, layer: Conv | Gemm, unknowns: int) -> tuple[Tensor, Tensor]:
        """What a layer reads, and what the original puts out there; on further samples too
        where the filters have more weights than there are patches."""
        walk, original = self.walks[entry], self.originals[entry]
        source, target = layer.inputs[0], affines(self.graph)[layer.name].inputs[0]
        inputs, outputs = [walk.input_of(layer)], [original.activation(target)]
        patches = outputs[0][:, 0].numel()
        wanted = min(FURTHER, -(-2 * unknowns * len(inputs[0]) // patches))
        more = torch.from_numpy(self.context.inputs(entry)[self.samples : wanted])
        with torch.no_grad():
            for x in torch.split(more, BATCH) if len(more) else ():
                inputs.append(walk.activations(x, entry)[source])
                outputs.append(original.activations(x, entry)[target])
        return torch.cat(inputs), torch.cat(outputs)


def _clustered(
    pair: Pair,
    graph: Graph,
    importance: Importance,
    coding: Coding,
    context: Context,
    number: int,
) -> CodedPair:
    weights = decoded(graph, pair.tensors)
    costs = {name: importance.of(name) for name in weights}
    return cluster(weights, costs, coding, seed=context.seed + number)
