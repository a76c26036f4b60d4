"""A graph with coded weights as a torch module whose codewords can be trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from edgeid.converters.codebook.coded_weights import CodedPair
from edgeid.converters.codebook.subvectors import decode
from edgeid.converters.graphs.output_scales import affines
from edgeid.converters.graphs.torch_graph import GraphModule
from edgeid.runtime.encoding import encode_float32
from edgeid.runtime.graph import Conv, Gemm, Graph, PRelu


class CodebookModule(GraphModule):
    """Decodes its coded weights from codewords on the way, rounded as the file rounds them.

    Attributes:
        codewords: of each pair, trainable.
        gains: of each coded weight, in the order of ``coded``.
    """

    def __init__(self, graph: Graph, entries: Sequence[str], pairs: Sequence[CodedPair]) -> None:
        super().__init__(graph, tuple(entries))
        self._place = {n: (i, pair.shapes[n]) for i, pair in enumerate(pairs) for n in pair.shapes}
        self.coded = tuple(self._place)
        self._number = {name: number for number, name in enumerate(self.coded)}
        self.codewords = nn.ParameterList([nn.Parameter(p.codewords.clone()) for p in pairs])
        owners = [pairs[owner] for owner, _ in self._place.values()]
        self.gains = nn.ParameterList(
            [nn.Parameter(p.gains[n].clone()) for n, p in zip(self.coded, owners, strict=True)]
        )
        self.indices = [p.indices[n].clone() for n, p in zip(self.coded, owners, strict=True)]

    def weight(self, name: str) -> Tensor:
        if name not in self._place:
            return super().weight(name)
        number, (_, shape) = self._number[name], self._place[name]
        return decode(self.table(name), self.indices[number], shape)

    def table(self, name: str) -> Tensor:
        """(its sub-spaces, K, r): what the weight's indices point to."""
        owner, _ = self._place[name]
        gain = self.gains[self._number[name]]
        scaled: Tensor = _rounded(self.codewords[owner])[: len(gain)] * gain[:, None, None]
        return scaled

    def trainable(self, entries: Sequence[str], free: Sequence[str] = ()) -> list[Tensor]:
        """What may be trained for some of the entries: what no other entry reads.

        Codewords, gains, scales and shifts of output channels, biases, slopes, and of the weights
        outside the codebooks those named in ``free``.
        """
        others = [e for e in self.entries if e not in entries]
        read = {n for e in others for x in self.graph.layers_of(e) for n in x.tensor_names()}
        own = set(self.tensor_names) - read
        names = set(free)
        for layer in self.graph.layers:
            if isinstance(layer, PRelu):
                names.add(layer.slope)
            elif isinstance(layer, Conv | Gemm) and layer.bias is not None:
                names.add(layer.bias)
        for affine in affines(self.graph).values():
            names.update((affine.weight, affine.bias))
        coded = [name for name in self.coded if self._partners(name) <= own]
        owners = sorted({self._place[name][0] for name in coded})
        return [
            *(self.codewords[owner] for owner in owners),
            *(self.gains[self._number[name]] for name in coded),
            *(super(CodebookModule, self).weight(n) for n in self.tensor_names if n in names & own),
        ]

    def _partners(self, name: str) -> set[str]:
        """The coded weights with the same codewords."""
        owner, _ = self._place[name]
        return {other for other in self.coded if self._place[other][0] == owner}

    def pairs(self) -> tuple[CodedPair, ...]:
        """The coded weights with the present codewords, gains and indices."""
        found = []
        for owner, codewords in enumerate(self.codewords):
            names = [name for name in self.coded if self._place[name][0] == owner]
            numbers = {name: self._number[name] for name in names}
            found.append(
                CodedPair(
                    codewords=_rounded(codewords).detach(),
                    gains={n: self.gains[i].detach().clone() for n, i in numbers.items()},
                    indices={n: self.indices[i].clone() for n, i in numbers.items()},
                    shapes={n: self._place[n][1] for n in names},
                )
            )
        return tuple(found)

    def to_graph(self) -> Graph:
        """The graph with everything as it is stored."""
        tensors = dict(self.graph.tensors)
        for name in self.tensor_names:
            if name not in self._place:
                values = super().weight(name).detach().numpy()
                if tensors[name].decode().tobytes() != values.tobytes():  # keep what is unchanged
                    tensors[name] = encode_float32(values.copy())
        for pair in self.pairs():
            tensors.update(pair.stored())
        graph = replace(self.graph, tensors=tensors)
        graph.validate()
        return graph


def _rounded(codewords: Tensor) -> Tensor:
    """As int8 with one scale a sub-space; the gradient passes as if nothing was rounded."""
    with torch.no_grad():
        scale = codewords.abs().amax((1, 2), keepdim=True) / 127
        scale = torch.where(scale > 1e-30, scale, 1.0)
        change = (codewords / scale).round() * scale - codewords
    return codewords + change
