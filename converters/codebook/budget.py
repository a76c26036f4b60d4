"""Which K and r each pair takes: the least error that fits into a number of bytes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from torch import Tensor

from edgeid.converters.codebook.coded_weights import Coding, cluster
from edgeid.runtime.blobs import ALIGNMENT
from edgeid.runtime.codebook import index_shape, make_codebook, sub_spaces
from edgeid.runtime.errors import DataError
from edgeid.runtime.format import ModelFile, dump_model
from edgeid.runtime.graph import Graph

SAMPLE_SPACES = 6
SAMPLE_VECTORS = 16384
ITERATIONS = 8
DIGITS = 16  # by which the sizes in a tensor's part of the header may grow


@dataclass(frozen=True)
class Choice:
    """One way to code one pair.

    Attributes:
        coding: of the codebooks that the pair shares.
        nbytes: its size.
        error: of the embeddings that it is expected to cause (squared distance at unit
            length, summed over the entries).
        apart: the coding of each weight where each has codebooks of its own instead.
    """

    coding: Coding
    nbytes: int
    error: float
    apart: tuple[Coding, ...] = ()


def expected_error(
    weights: Mapping[str, Tensor], importance: Mapping[str, Tensor], coding: Coding, seed: int
) -> float:
    """The weighted error of coding a pair, estimated on a few of its sub-spaces."""
    widest = max(weight.shape[1] for weight in weights.values())
    spaces = -(-widest // coding.r)
    step = max(1, spaces // SAMPLE_SPACES)
    error, seen = 0.0, 0
    for space in range(step // 2, spaces, step):
        some = slice(space * coding.r, (space + 1) * coding.r)
        part = {n: w[:, some] for n, w in weights.items() if w.shape[1] > space * coding.r}
        cost = {n: importance[n][:, some] for n in part}
        error += _one_space(part, cost, coding, seed)
        seen += 1
    return error * spaces / seen


def _one_space(
    weights: dict[str, Tensor], costs: dict[str, Tensor], coding: Coding, seed: int
) -> float:
    """Error of one sub-space; of a large one from every n-th kernel position."""
    total = sum(w[:, 0].numel() for w in weights.values())
    stride = max(1, total // SAMPLE_VECTORS)
    if stride > 1:
        weights = {n: _thinned(w, stride) for n, w in weights.items()}
        costs = {n: _thinned(c, stride) for n, c in costs.items()}
    kept = sum(w[:, 0].numel() for w in weights.values())
    found = cluster(weights, costs, coding, seed=seed, iterations=ITERATIONS)
    return found.error * total / kept


def _thinned(weight: Tensor, stride: int) -> Tensor:
    flat = weight.flatten(2) if weight.ndim > 2 else weight[:, :, None]
    some = flat[:, :, ::stride] if flat.shape[2] >= stride else flat[::stride]
    return some[..., None].contiguous()


def rest_bytes(graph: Graph, coded: Collection[str]) -> int:
    """Bytes that a model file takes beside the parts of its coded weights; rather too many.

    Measured on a file in which the coded weights stand for themselves in the smallest form.
    """
    rng = np.random.default_rng(0)  # equal parts would be stored once
    tensors, parts = dict(graph.tensors), 0
    for name in coded:
        shape = graph.tensors[name].shape
        codewords = rng.integers(-127, 128, (sub_spaces(shape, 8), 16, 8), dtype=np.int8)
        indices = rng.integers(16, size=index_shape(shape, 8), dtype=np.uint8)
        scale = rng.uniform(1, 2, len(codewords)).astype(np.float32)
        tensors[name] = make_codebook(codewords, indices, shape, scale)
        parts += tensors[name].nbytes
    size = len(dump_model(ModelFile(replace(graph, tensors=tensors))))
    return size - parts + (3 * ALIGNMENT + DIGITS) * len(coded)


def allocate(choices: Sequence[Sequence[Choice]], budget: int) -> list[Choice]:
    """One choice for each pair, the sum of errors small and the sum of bytes within budget.

    From the smallest choices on, the step with the most error saved per byte is taken while
    it fits, along each pair's convex hull of (bytes, error): the Lagrangian solution, off
    the optimum by less than one step (Shoham and Gersho 1988).

    Raises:
        DataError: not even the smallest choices fit; it says what is needed.
    """
    hulls = [lower_hull(options) for options in choices]
    level = [0] * len(hulls)
    left = budget - sum(hull[0].nbytes for hull in hulls)
    if left < 0:
        raise DataError(
            f"{budget} bytes are left for the coded weights, the smallest codebooks "
            f"need {budget - left}: raise the budget by {-left} bytes or more"
        )
    while True:
        steps = [
            (_slope(hull[at], hull[at + 1]), -number)
            for number, (hull, at) in enumerate(zip(hulls, level, strict=True))
            if at + 1 < len(hull) and hull[at + 1].nbytes - hull[at].nbytes <= left
        ]
        if not steps:
            return [hull[at] for hull, at in zip(hulls, level, strict=True)]
        number = -max(steps)[1]
        at = level[number]
        left -= hulls[number][at + 1].nbytes - hulls[number][at].nbytes
        level[number] += 1


def cheapest(choices: Sequence[Sequence[Choice]], error: float) -> float:
    """Bytes at which ``allocate`` comes down to an error, between two steps by proportion.

    Infinite where not even the largest choices do.
    """
    hulls = [lower_hull(options) for options in choices]
    steps = [(a, b) for hull in hulls for a, b in pairwise(hull)]  # slopes fall along a hull
    size = float(sum(hull[0].nbytes for hull in hulls))
    left = sum(hull[0].error for hull in hulls) - error
    for small, large in sorted(steps, key=lambda step: -_slope(*step)):
        if left <= 0:
            break
        taken = min(1.0, left / (small.error - large.error))
        size += taken * (large.nbytes - small.nbytes)
        left -= small.error - large.error
    return size if left <= 1e-9 * abs(error) else math.inf


def _slope(small: Choice, large: Choice) -> float:
    return (small.error - large.error) / (large.nbytes - small.nbytes)


def lower_hull(options: Sequence[Choice]) -> list[Choice]:
    """The options on the lower convex hull of (bytes, error), from small to large."""
    ordered = sorted(options, key=lambda c: (c.nbytes, c.error))
    hull: list[Choice] = []
    for option in ordered:
        if hull and option.error >= hull[-1].error:
            continue  # larger and no better
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull
