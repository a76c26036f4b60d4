"""Weighted k-means over many sub-spaces at once.

The error of a vector x under codeword c is sum_d w_d (x_d - c_d)^2 with weights of the
vector's own. With the second moment of a layer's input as weight this is the error of the
layer's output, as far as its inputs are uncorrelated (Stock et al. 2020, "And the bit goes
down", section 3.1, with the input's second-moment matrix cut to its diagonal).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edgeid.runtime.errors import DataError

SEED_VECTORS = 32  # a codeword; k-means++ looks at no more than this many times K
MAX_SCORES = 1 << 24  # vector-codeword errors held at once


@dataclass(frozen=True)
class Clusters:
    """A codebook for each sub-space.

    Attributes:
        codewords: (spaces, K, r) float32.
        indices: (spaces, N) int64, the codeword of each vector.
        errors: (spaces,) weighted squared error of each sub-space.
        history: total error after each iteration; it never rises but for rounding.
    """

    codewords: Tensor
    indices: Tensor
    errors: Tensor
    history: tuple[float, ...]


def kmeans(
    vectors: Tensor,
    weights: Tensor,
    k: int,
    *,
    seed: int = 0,
    iterations: int = 25,
    tolerance: float = 1e-4,
) -> Clusters:
    """Lloyd's algorithm after k-means++ (Arthur and Vassilvitskii 2007), sub-spaces side by side.

    A codeword that no vector uses is moved to the vector with the largest error. Equal
    arguments give equal results.

    Args:
        vectors: (spaces, N, r) float32.
        weights: (spaces, N, r), not negative; a padded dimension has weight 0.
        k: codewords of each sub-space; it may exceed N.
        seed: of the first codewords.
        iterations: at most.
        tolerance: stop once an iteration lowers the error by less than this share.

    Raises:
        DataError: shapes differ, something is not finite, or a weight is negative.
    """
    _check(vectors, weights, k, iterations)
    codewords = _first_codewords(vectors, weights, k, seed)
    indices = assign(vectors, weights, codewords)
    history: list[float] = []
    errors = torch.zeros(len(vectors))
    for _ in range(max(1, iterations)):
        _use_empty(indices, errors_of(vectors, weights, codewords, indices), k)
        codewords = centroids(vectors, weights, indices, k)
        each = errors_of(vectors, weights, codewords, indices)
        errors = each.double().sum(1)
        history.append(float(errors.sum()))
        if len(history) > 1 and history[-2] - history[-1] <= tolerance * history[-2]:
            break
        moved = assign(vectors, weights, codewords)
        better = errors_of(vectors, weights, codewords, moved) < each
        indices = torch.where(better, moved, indices)  # rounding must not make it worse
    return Clusters(codewords, indices, errors.float(), tuple(history))


def assign(vectors: Tensor, weights: Tensor, codewords: Tensor) -> Tensor:
    """(spaces, N) index of the codeword with the least weighted error; the first of equals."""
    spaces, count, _ = vectors.shape
    k = codewords.shape[1]
    left = torch.cat([vectors * weights * -2, weights], dim=2)
    right = torch.cat([codewords, codewords.square()], dim=2).transpose(1, 2)
    indices = torch.empty(spaces, count, dtype=torch.int64)
    rows = max(1, min(count, MAX_SCORES // k))
    step = max(1, MAX_SCORES // (rows * k))
    for space in range(0, spaces, step):
        part = slice(space, space + step)
        for row in range(0, count, rows):
            some = slice(row, row + rows)
            indices[part, some] = (left[part, some] @ right[part]).argmin(2)
    return indices


def centroids(vectors: Tensor, weights: Tensor, indices: Tensor, k: int) -> Tensor:
    """(spaces, K, r) weighted mean of each cluster; 0 where a cluster has no weight."""
    spaces, _, r = vectors.shape
    flat = (indices + k * torch.arange(spaces)[:, None]).reshape(-1)
    total = torch.zeros(spaces * k, r)
    mass = torch.zeros(spaces * k, r)
    total.index_add_(0, flat, (vectors * weights).reshape(-1, r))
    mass.index_add_(0, flat, weights.reshape(-1, r))
    means = torch.where(mass > 0, total / mass.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    return means.reshape(spaces, k, r)


def errors_of(vectors: Tensor, weights: Tensor, codewords: Tensor, indices: Tensor) -> Tensor:
    """(spaces, N) weighted squared error of each vector under its codeword."""
    chosen = torch.gather(codewords, 1, indices[:, :, None].expand_as(vectors))
    return ((vectors - chosen).square() * weights).sum(2)


def _check(vectors: Tensor, weights: Tensor, k: int, iterations: int) -> None:
    if vectors.ndim != 3 or vectors.shape != weights.shape or not vectors.numel():
        raise DataError(
            f"k-means needs vectors and weights (spaces, N, r), "
            f"got {tuple(vectors.shape)} and {tuple(weights.shape)}"
        )
    if k < 1 or iterations < 0:
        raise DataError(f"{k} codewords, {iterations} iterations: at least 1 and 0 are needed")
    if not (torch.isfinite(vectors).all() and torch.isfinite(weights).all()):
        raise DataError("k-means: vectors or weights hold NaN or infinity")
    if weights.min() < 0:
        raise DataError(f"k-means: the smallest weight is {float(weights.min())}, must be >= 0")


def _first_codewords(vectors: Tensor, weights: Tensor, k: int, seed: int) -> Tensor:
    """k-means++: each further codeword is a vector, drawn in proportion to its error."""
    generator = torch.Generator().manual_seed(seed)
    spaces, count, r = vectors.shape
    if count > SEED_VECTORS * k:
        some = torch.randperm(count, generator=generator)[: SEED_VECTORS * k]
        vectors, weights = vectors[:, some], weights[:, some]
    chance = weights.sum(2)
    nearest = torch.full_like(chance, torch.inf)
    codewords = torch.empty(spaces, k, r)
    rows = torch.arange(spaces)
    for number in range(k):
        picked = _draw(chance, generator)
        codewords[:, number] = vectors[rows, picked]
        error = ((vectors - codewords[:, number, None]).square() * weights).sum(2)
        nearest = torch.minimum(nearest, error)
        chance = nearest
    return codewords


def _draw(chance: Tensor, generator: torch.Generator) -> Tensor:
    """One column of each row in proportion to ``chance``; any where the whole row is 0."""
    largest = chance.amax(1, keepdim=True)
    scaled = torch.where(largest > 0, chance / largest.clamp_min(1e-38), 1.0)
    return torch.multinomial(scaled, 1, generator=generator)[:, 0]


def _use_empty(indices: Tensor, errors: Tensor, k: int) -> None:
    """Give each empty cluster the vector with the largest error, in place.

    Such a vector shares its cluster with another: alone it would have no error.
    """
    spaces = len(indices)
    flat = (indices + k * torch.arange(spaces)[:, None]).reshape(-1)
    counts = torch.bincount(flat, minlength=spaces * k).reshape(spaces, k)
    for space in torch.nonzero((counts == 0).any(1))[:, 0].tolist():
        empty = torch.nonzero(counts[space] == 0)[:, 0]
        order = torch.argsort(errors[space], descending=True, stable=True)[: len(empty)]
        worst = order[errors[space, order] > 0]
        indices[space, worst] = empty[: len(worst)]
