"""Filter alignment: bring the filters of one layer into the order of another layer's.

Paper 004 ("ZipperNet"), section III-A: the filters of network A are permuted so that the
total l1 distance to their partners in network B is least, by the Hungarian algorithm. The
text can be read in two ways, both are here:

    "score"    a filter is scored by the sum of its absolute weights; the distance of two
               filters is the difference of their scores
    "filter"   the distance of two filters is the sum of the absolute differences of their
               weights; this needs the input channels to be in the same order already

It works on graphs, where batch norm is folded: which tensors must permute together (biases,
slopes, the next layers' input channels, everything that a shortcut joins) follows from the
layers alone, so any two networks of one architecture can be aligned, and the result is what
the file stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from edgeid.converters.graphs.permutation import ChannelGroup, channel_groups, permute
from edgeid.runtime.errors import GraphError
from edgeid.runtime.graph import Conv, Gemm, Graph

Distance = Literal["score", "filter"]
Weighted = Conv | Gemm


@dataclass(frozen=True)
class Alignment:
    """How the filters of a layer were matched.

    Attributes:
        layer: whose filters moved.
        order: filter i is now the one that was at ``order[i]``.
        before: total distance to the partners in the old order.
        after: the same in the new order; never larger, but for rounding, where ``free``.
        free: whether the layer had a choice. The first layer that writes to a chain of
            shortcuts decides for the others; an entry's output keeps its order.
    """

    layer: str
    order: tuple[int, ...]
    before: float
    after: float
    free: bool


def filter_distances(
    moved: NDArray[Any], reference: NDArray[Any], distance: Distance
) -> NDArray[np.float64]:
    """Distance of every reference filter (row) to every moved filter (column).

    Args:
        moved, reference: weights (filters, ...) of one shape.

    Raises:
        GraphError: the shapes differ, or there is no such distance.
    """
    if moved.shape != reference.shape:
        raise GraphError(f"filters of shape {moved.shape} and {reference.shape} do not compare")
    rows = [w.reshape(len(w), -1).astype(np.float64) for w in (reference, moved)]
    if distance == "score":
        left, right = (np.abs(w).sum(axis=1) for w in rows)
        return np.asarray(np.abs(left[:, None] - right[None, :]), np.float64)
    if distance == "filter":
        return np.asarray(cdist(*rows, metric="cityblock"), np.float64)
    raise GraphError(f"distance {distance!r} is none of {', '.join(get_args(Distance))}")


def match_filters(distances: NDArray[np.float64]) -> NDArray[np.intp]:
    """The order of the columns with the least total distance to the rows (Hungarian)."""
    _, columns = linear_sum_assignment(distances)
    order = np.asarray(columns, np.intp)
    # among equal totals (the scores alone leave many) nothing moves without need
    still = np.arange(len(order))
    return still if _total(distances, still) <= _total(distances, order) else order


def align_layer(
    graph: Graph, moved: Weighted, reference: Weighted, distance: Distance
) -> tuple[Graph, Alignment]:
    """Permute the filters of ``moved`` towards those of ``reference``; all outputs stay.

    Args:
        graph: holds both layers; the channels that ``moved`` reads are aligned already.

    Raises:
        GraphError: the filters have different shapes.
    """
    ours, theirs = (graph.tensors[layer.weight].decode() for layer in (moved, reference))
    distances = filter_distances(ours, theirs, distance)
    still = np.arange(len(distances))
    group = movable_group(graph, moved)
    order = still if group is None else match_filters(distances)
    alignment = Alignment(
        layer=moved.name,
        order=tuple(order.tolist()),
        before=_total(distances, still),
        after=_total(distances, order),
        free=group is not None,
    )
    return (graph if group is None else permute(graph, group, order)), alignment


def movable_group(graph: Graph, layer: Weighted) -> ChannelGroup | None:
    """The channels that the layer writes first, None where it must take them as they are."""
    for group in channel_groups(graph):
        written = {axis.tensor for axis in group.axes if axis.axis == 0}
        if layer.weight in written and not group.fixed:
            writers = [
                other.name
                for other in graph.layers
                if isinstance(other, Conv | Gemm)
                and other.weight in written
                and (isinstance(other, Gemm) or other.groups == 1)
            ]
            return group if writers[:1] == [layer.name] else None
    return None


def _total(distances: NDArray[np.float64], order: NDArray[np.intp]) -> float:
    return float(distances[np.arange(len(order)), order].sum())
