"""The weights of one pair as codewords: clustering, decoding, storing, sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from edgeid.converters.codebook.kmeans import Clusters, kmeans
from edgeid.converters.codebook.subvectors import cut, decode, index_grid
from edgeid.runtime.codebook import (
    CODEWORDS,
    LENGTHS,
    Codebook,
    index_shape,
    make_codebook,
    quantise_codewords,
    sub_spaces,
)
from edgeid.runtime.errors import DataError
from edgeid.runtime.packing import packed_size

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Coding:
    """How finely weights are coded.

    Attributes:
        k: codewords of each sub-space: 16, 32, 64 or 256.
        r: length of a sub-vector: 2, 4 or 8.
    """

    k: int
    r: int

    def validate(self) -> None:
        """Raise DataError unless files can hold it."""
        if self.k not in CODEWORDS or self.r not in LENGTHS:
            raise DataError(
                f"K = {self.k}, r = {self.r}: K is one of {CODEWORDS}, r one of {LENGTHS}"
            )

    @property
    def bits(self) -> int:
        """Of one index."""
        return self.k.bit_length() - 1

    def nbytes(self, shapes: Sequence[Shape]) -> int:
        """Bytes of weights of these shapes that share their codebooks."""
        spaces = [sub_spaces(shape, self.r) for shape in shapes]
        indices = sum(
            packed_size(int(np.prod(index_shape(shape, self.r))), self.bits) for shape in shapes
        )
        return indices + max(spaces) * self.k * self.r + 4 * max(spaces) * len(shapes)


CODINGS = tuple(Coding(k, r) for r in LENGTHS for k in CODEWORDS)


@dataclass(frozen=True)
class CodedPair:
    """Weights that share their codewords.

    Attributes:
        codewords: (spaces, K, r), of the widest weight; rounded to what int8 can hold.
        gains: of each weight, (its spaces,): it reads codeword * gain.
        indices: of each weight, (its spaces, N) in the order of ``subvectors.cut``.
        shapes: of each weight.
        error: weighted squared error of the clustering, or 0 where not known.
    """

    codewords: Tensor
    gains: dict[str, Tensor]
    indices: dict[str, Tensor]
    shapes: dict[str, Shape]
    error: float = 0.0

    def decode(self, name: str) -> Tensor:
        """The weight."""
        gain = self.gains[name]
        scaled = self.codewords[: len(gain)] * gain[:, None, None]
        return decode(scaled, self.indices[name], self.shapes[name])

    def stored(self) -> dict[str, Codebook]:
        """The weights as a file keeps them, int8 codewords shared."""
        values, scale = quantise_codewords(self.codewords.numpy())
        found = {}
        for name, gain in self.gains.items():
            own = scale.copy()  # sub-spaces that only the wider weight has keep their scale
            own[: len(gain)] *= gain.numpy()
            grid = index_grid(self.indices[name], self.shapes[name]).numpy()
            found[name] = make_codebook(values, grid, self.shapes[name], own)
        return found


def cluster(
    weights: Mapping[str, Tensor],
    importance: Mapping[str, Tensor],
    coding: Coding,
    *,
    seed: int,
    iterations: int = 25,
) -> CodedPair:
    """Shared codebooks of one or more weights.

    Args:
        weights: float32 (out, in[, height, width]) by name.
        importance: of each weight, what a squared error of it costs; of the same shape.
        coding: K and r.
        seed: of k-means++.
        iterations: of k-means, at most.
    """
    shapes = {name: tuple(w.shape) for name, w in weights.items()}
    count = {name: sub_spaces(shape, coding.r) for name, shape in shapes.items()}
    parts = {
        name: (cut(w, coding.r), cut(importance[name], coding.r)) for name, w in weights.items()
    }
    gains = _gains(parts)
    indices: dict[str, list[Tensor]] = {name: [] for name in weights}
    codewords, error = [], 0.0
    start = 0
    for end in sorted(set(count.values())):  # the same weights have all sub-spaces of a stretch
        names = [name for name in weights if count[name] >= end]
        found = _clusters(
            {n: parts[n] for n in names}, gains, (start, end), coding, seed, iterations
        )
        codewords.append(found.codewords)
        error += float(found.errors.sum())
        sizes = [parts[name][0].shape[1] for name in names]
        for name, rows in zip(names, torch.split(found.indices, sizes, dim=1), strict=True):
            indices[name].append(rows)
        start = end
    values, scale = quantise_codewords(torch.cat(codewords).numpy())
    return CodedPair(
        codewords=torch.from_numpy(values * scale[:, None, None]),
        gains=gains,
        indices={name: torch.cat(rows) for name, rows in indices.items()},
        shapes=shapes,
        error=error,
    )


_Parts = Mapping[str, tuple[Tensor, Tensor]]


def _clusters(
    parts: _Parts,
    gains: Mapping[str, Tensor],
    stretch: tuple[int, int],
    coding: Coding,
    seed: int,
    iterations: int,
) -> Clusters:
    some = slice(*stretch)
    vectors, costs = [], []
    for name, (cut_weight, cut_importance) in parts.items():
        gain = gains[name][some, None, None]
        vectors.append(cut_weight[some] / gain)
        costs.append(cut_importance[some] * gain.square())
    return kmeans(
        torch.cat(vectors, 1), torch.cat(costs, 1), coding.k, seed=seed, iterations=iterations
    )


def _gains(parts: _Parts) -> dict[str, Tensor]:
    """The root mean square of each weight in each sub-space; 1 where nothing is shared."""
    gains = {}
    for name, (vectors, costs) in parts.items():
        mean = (vectors.square() * costs).sum((1, 2)) / costs.sum((1, 2)).clamp_min(1e-30)
        gain = mean.sqrt()
        alone = len(parts) == 1
        gains[name] = torch.ones_like(gain) if alone else torch.where(gain > 1e-12, gain, 1.0)
    return gains
