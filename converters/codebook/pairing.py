"""Which layers of the networks share a codebook.

The layers of two networks are paired in order, first with first, as in co-compress
(METHODS.md section 1). Networks of different depth leave layers without a partner: among
all pairings that keep the order, the one is taken in which most input channels are shared,
since every shared sub-space saves one codebook. A layer without partner has codebooks of
its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import Conv, Gemm, Graph


@dataclass(frozen=True)
class Pair:
    """Weights that share their codebooks: of one layer of each network, or of one alone.

    Attributes:
        tensors: one or two weights; the second is missing where both networks read the
            same weight already, or where a layer has no partner.
        readers: for each weight the (entry, layer) pairs that read it.
    """

    tensors: tuple[str, ...]
    readers: tuple[tuple[tuple[str, str], ...], ...]

    @property
    def name(self) -> str:
        """For reports and files."""
        return " + ".join(self.tensors)


@dataclass(frozen=True)
class Pairing:
    """Pairs from front to back, and why the other weights are left out."""

    pairs: tuple[Pair, ...]
    kept: dict[str, str]


@dataclass(frozen=True)
class _Candidate:
    tensor: str
    channels: int
    depth: float  # share of the network's weighted layers that come before


def pair_layers(graph: Graph, entries: Sequence[str], narrow: int = 8) -> Pairing:
    """Pair the weights of one or two entries.

    Kept out are each network's first convolution, grouped and depth-wise convolutions, and
    layers with fewer than ``narrow`` input or output channels: there the look-up tables
    cost more than they save (KERNELS.md, point 5).

    Raises:
        GraphError: not one or two entries, or nothing is left to be coded.
    """
    if not 1 <= len(entries) <= 2 or len(set(entries)) != len(entries):
        raise GraphError(f"codebooks are shared by one or two entries, not {list(entries)}")
    kept: dict[str, str] = {}
    for entry in entries:
        kept.update(_kept_out(graph, entry, narrow))
    columns = [_candidates(graph, entry, kept) for entry in entries]
    matches = _aligned(columns[0], columns[1] if len(columns) == 2 else [])
    readers = _readers(graph, entries)
    pairs: list[Pair] = []
    taken: set[str] = set()
    for match in matches:
        tensors = tuple(dict.fromkeys(t for t in match if t not in taken))
        taken.update(tensors)
        if tensors:
            pairs.append(Pair(tensors, tuple(tuple(readers[t]) for t in tensors)))
    if not pairs:
        raise GraphError(f"no layer of {list(entries)} can be coded: {_reasons(kept)}")
    return Pairing(tuple(pairs), kept)


def _weighted(graph: Graph, entry: str) -> list[Conv | Gemm]:
    return [x for x in graph.layers_of(entry) if isinstance(x, Conv | Gemm)]


def _kept_out(graph: Graph, entry: str, narrow: int) -> dict[str, str]:
    reasons: dict[str, str] = {}
    for number, layer in enumerate(_weighted(graph, entry)):
        outputs, channels = graph.tensors[layer.weight].shape[:2]
        if number == 0:
            reasons[layer.weight] = "the first layer"
        elif isinstance(layer, Conv) and layer.groups > 1:
            reasons[layer.weight] = f"{layer.groups} groups"
        elif min(outputs, channels) < narrow:
            reasons[layer.weight] = f"{channels} -> {outputs} channels, fewer than {narrow}"
    return reasons


def _candidates(graph: Graph, entry: str, kept: dict[str, str]) -> list[_Candidate]:
    layers = _weighted(graph, entry)
    found: dict[str, _Candidate] = {}
    for number, layer in enumerate(layers):
        name = layer.weight
        if name not in kept and name not in found:
            channels = graph.tensors[name].shape[1]
            found[name] = _Candidate(name, channels, number / len(layers))
    return list(found.values())


def _readers(graph: Graph, entries: Sequence[str]) -> dict[str, list[tuple[str, str]]]:
    found: dict[str, list[tuple[str, str]]] = {}
    for entry in entries:
        for layer in _weighted(graph, entry):
            found.setdefault(layer.weight, []).append((entry, layer.name))
    return found


def _gain(a: _Candidate, b: _Candidate) -> float:
    """Shared input channels; among equals the layers at more similar depths."""
    if a.tensor == b.tensor:
        return 1e9  # one weight already: it stays one
    return min(a.channels, b.channels) - abs(a.depth - b.depth)


def _aligned(a: Sequence[_Candidate], b: Sequence[_Candidate]) -> list[tuple[str, ...]]:
    """The order-preserving pairing with the largest gain, by dynamic programming."""
    best = [[0.0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) - 1, -1, -1):
        for j in range(len(b) - 1, -1, -1):
            paired = best[i + 1][j + 1] + _gain(a[i], b[j])
            best[i][j] = max(paired, best[i + 1][j], best[i][j + 1])
    matches: list[tuple[str, ...]] = []
    i = j = 0
    while i < len(a) or j < len(b):
        if i < len(a) and j < len(b):
            paired = best[i + 1][j + 1] + _gain(a[i], b[j])
            if best[i][j] == paired:
                matches.append((a[i].tensor, b[j].tensor))
                i, j = i + 1, j + 1
                continue
        if i < len(a) and (j == len(b) or best[i][j] == best[i + 1][j]):
            matches.append((a[i].tensor,))
            i += 1
        else:
            matches.append((b[j].tensor,))
            j += 1
    return matches


def _reasons(kept: dict[str, str]) -> str:
    return "; ".join(f"{name}: {why}" for name, why in list(kept.items())[:4])
