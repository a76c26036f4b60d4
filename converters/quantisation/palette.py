"""Palette: a dictionary of weights found by k-means, to compare log min-max with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from edgeid.converters.quantisation.dictionary import (
    Precision,
    Scope,
    check_options,
    check_replaced,
    dense_weights,
    index_values,
    replace_weights,
    rounded,
)
from edgeid.converters.recipe import Context, Pass, PassResult
from edgeid.runtime.encoding import FloatArray
from edgeid.runtime.errors import DataError
from edgeid.runtime.graph import Graph

SEED_VALUES = 1 << 14  # about so many of the sorted values, evenly spaced, are offered as seeds

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Palette(Pass):
    """Store weights as indices into a dictionary of 2^bits centroids of their own.

    Rules: only uncompressed weights in ``scope`` are changed; a weight with no more distinct
    values than the dictionary has room for is kept exactly; a weight that would not get
    smaller stays as it is.

    Attributes:
        bits: of an index with its sign, 1..12.
        scope: "convolutions", or "all" weights, biases and slopes.
        iterations: of Lloyd's algorithm, at most.
        dictionary: float type of its values; float32 is taken where float16 would add an
            error of more than 0.1 %.
    """

    bits: int = 6
    scope: Scope = "convolutions"
    iterations: int = 100
    dictionary: Precision = "float16"

    name: ClassVar[str] = "palette"

    def __post_init__(self) -> None:
        check_options(self.bits, self.scope, self.dictionary)
        if type(self.iterations) is not int or self.iterations < 1:
            raise DataError(f"iterations {self.iterations!r} must be a whole number from 1")

    def requires(self, graph: Graph, _context: Context) -> None:
        """Raise GraphError where no weight in the scope is uncompressed."""
        dense_weights(graph, self.scope)

    def call(self, graph: Graph, context: Context) -> PassResult:
        """Cluster, and store by index what gets smaller by it."""
        weights = dense_weights(graph, self.scope)
        indexed = {}
        for name, weight in context.track(weights.items(), self.name, len(weights)):
            centroids = cluster(weight, 2**self.bits, context.seed, self.iterations)
            nearest = centroids[nearest_centroid(weight, centroids)]
            indexed[name] = index_values(rounded(nearest, self.dictionary))
        return replace_weights(graph, indexed)

    def ensures(self, before: Graph, after: Graph, _context: Context) -> None:
        """Raise GraphError unless only weights have changed, into indexed ones."""
        check_replaced(before, after)


def cluster(weight: FloatArray, count: int, seed: int, iterations: int) -> Values:
    """Centroids of the weight's values by k-means, (at most count,) in ascending order.

    Lloyd's algorithm from k-means++ seeds (Arthur and Vassilvitskii 2007). On a line the
    clusters are intervals of the sorted values, so that an iteration is a binary search for
    the borders and one sum over the values. Equal arguments give equal results.
    """
    values = np.sort(weight.ravel()).astype(np.float64)
    distinct = np.unique(values)
    if distinct.size <= count:
        return distinct
    centroids = _seeds(values, count, np.random.default_rng(seed))
    borders = None
    for _ in range(iterations):
        found = np.searchsorted(values, _middles(centroids), side="right")
        if borders is not None and np.array_equal(found, borders):
            break
        borders = found
        edges = np.concatenate([[0], borders, [values.size]])
        used = np.diff(edges) > 0  # a cluster that holds nothing stays where it is
        centroids[used] = np.add.reduceat(values, edges[:-1][used]) / np.diff(edges)[used]
    return centroids


def nearest_centroid(weight: FloatArray, centroids: Values) -> NDArray[np.int64]:
    """Index of the nearest of ascending centroids for each weight; the lower of two as near."""
    return np.searchsorted(_middles(centroids), weight.astype(np.float64), side="left")


def _middles(centroids: Values) -> Values:
    return (centroids[1:] + centroids[:-1]) / 2


def _seeds(values: Values, count: int, rng: np.random.Generator) -> Values:
    """k-means++: each further seed is a value, drawn in proportion to its squared distance."""
    some = values[:: max(1, values.size // SEED_VALUES)]
    if np.unique(some).size < count:
        some = np.unique(values)
    seeds = [float(some[rng.integers(some.size)])]
    distance = (some - seeds[0]) ** 2
    while len(seeds) < count:
        chance = np.cumsum(distance)
        picked = np.searchsorted(chance, rng.random() * chance[-1], side="right")
        seeds.append(float(some[min(int(picked), some.size - 1)]))
        distance = np.minimum(distance, (some - seeds[-1]) ** 2)
    return np.sort(np.array(seeds))
