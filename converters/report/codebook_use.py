"""How well a graph uses its codebooks and dictionaries."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeid.runtime.codebook import Codebook
from edgeid.runtime.graph import Graph
from edgeid.runtime.indexed import Indexed
from edgeid.runtime.packing import unpack_bits

Counts = NDArray[np.int64]  # (sub-spaces, K)

STEPS = 64  # of the profile


@dataclass(frozen=True)
class CodebookUse:
    """The codebooks that one weight has, or that several share; or a dictionary of values.

    Attributes:
        tensors: the weights.
        kind: "codebook" or "dictionary" (r = 1, one sub-space).
        k, r: codewords of a sub-space and their length.
        spaces: sub-spaces.
        bits: of an index as stored.
        entropy: mean bits that an index carries, by how often its sub-space names each
            codeword; an entropy coder would come down to it.
        indices: how many there are, of all weights.
        dead: codewords that nothing names.
        codewords: all of them, spaces * k.
        bits_per_weight: of indices, codewords and scales.
        profile: how often codewords are named, from the most to the least frequent, against
            even use (1.0); mean over the sub-spaces, at most 64 values.
    """

    tensors: tuple[str, ...]
    kind: str
    k: int
    r: int
    spaces: int
    bits: int
    entropy: float
    indices: int
    dead: int
    codewords: int
    bits_per_weight: float
    profile: tuple[float, ...]


def codebook_use(graph: Graph) -> tuple[CodebookUse, ...]:
    """For each set of codebooks and each dictionary, in the order of the layers.

    Weights whose codewords are equal share them, as in the file. Dictionaries of biases and
    slopes are left out: there each value is one of its own, nearly.
    """
    groups: dict[bytes, list[str]] = {}
    names = dict.fromkeys(t for layer in graph.layers for t in layer.tensor_names())
    for name in names:
        tensor = graph.tensors[name]
        if isinstance(tensor, Codebook):
            table: NDArray[np.generic] = tensor.codewords
        elif isinstance(tensor, Indexed) and len(tensor.shape) > 1:
            table = tensor.dictionary
        else:
            continue
        head = f"{tensor.encoding}{table.dtype.str}{table.shape}".encode()
        key = hashlib.sha256(head + np.ascontiguousarray(table).tobytes()).digest()
        groups.setdefault(key, []).append(name)
    return tuple(_use(graph, tuple(names)) for names in groups.values())


def _use(graph: Graph, names: tuple[str, ...]) -> CodebookUse:
    tensors = [graph.tensors[name] for name in names]
    weights = sum(math.prod(tensor.shape) for tensor in tensors)
    first = tensors[0]
    if isinstance(first, Codebook):
        spaces, k, r = first.codewords.shape
        bits, table = first.bits, first.codewords.nbytes
    else:
        assert isinstance(first, Indexed)
        spaces, k, r = 1, first.dictionary.size, 1
        bits, table = first.bits, first.dictionary.nbytes
    counts = np.zeros((spaces, k), np.int64)
    stored = table
    for tensor in tensors:
        own = _counts(tensor, k)
        counts[: len(own)] += own
        stored += tensor.nbytes - table
    return CodebookUse(
        tensors=names,
        kind="codebook" if isinstance(first, Codebook) else "dictionary",
        k=k,
        r=r,
        spaces=spaces,
        bits=bits,
        entropy=entropy(counts),
        indices=int(counts.sum()),
        dead=int((counts == 0).sum()),
        codewords=spaces * k,
        bits_per_weight=8 * stored / weights,
        profile=_profile(counts),
    )


def _counts(tensor: object, k: int) -> Counts:
    """How often a weight names each codeword of its sub-spaces."""
    if isinstance(tensor, Codebook):
        indices = tensor.unpack_indices()
        return np.stack([np.bincount(space.ravel(), minlength=k) for space in indices])
    assert isinstance(tensor, Indexed)
    flat = unpack_bits(tensor.indices, tensor.bits, math.prod(tensor.shape))
    return np.bincount(flat, minlength=k)[None]


def entropy(counts: Counts) -> float:
    """Bits of an index: each sub-space's own entropy, weighted by its number of indices."""
    total = counts.sum(axis=1, keepdims=True)
    share = counts / np.maximum(total, 1)
    logs = np.log2(share, out=np.zeros_like(share), where=share > 0)
    each = -(share * logs).sum(axis=1)
    # 0.0 + : one codeword for all is 0 bits, not -0
    return 0.0 + float((each * total[:, 0]).sum() / max(1, int(total.sum())))


def _profile(counts: Counts) -> tuple[float, ...]:
    named = counts[counts.sum(axis=1) > 0]
    ranked = -np.sort(-named, axis=1) / named.sum(axis=1, keepdims=True) * named.shape[1]
    mean = ranked.mean(axis=0)
    parts = np.array_split(mean, min(STEPS, len(mean)))
    return tuple(float(part.mean()) for part in parts)
